"""What kind of model an editor has to do with: how its labels stand to its logits, and what its decoder reads."""

from enum import Enum

from torch import nn

from common.errors import UserError
from .classifier import BertClassifier


class ModelKind(Enum):
    """The architecture of an edited model: what it reads and which tokens it scores."""

    DECODER = "decoder"
    """Scores its own input: GPT-2, GPT-Neo, GPT-J, Llama and their kin."""
    T5 = "t5"
    """Its decoder reads the labels, shifted right by one."""
    BART = "bart"
    """Its decoder reads the target with the first token replaced by the end of sentence (De Cao et al. 2021)."""
    BLENDERBOT = "blenderbot"
    """Its decoder reads the labels, shifted right by one."""
    CLASSIFIER = "classifier"
    """One logit for a text: true or false."""

    @property
    def shift(self) -> bool:
        """Whether the logits at a position predict the label of the next one."""
        return self in (ModelKind.DECODER, ModelKind.BART)

    @property
    def is_seq2seq(self) -> bool:
        """Whether an encoder reads the input and a decoder scores the target."""
        return self in (ModelKind.T5, ModelKind.BART, ModelKind.BLENDERBOT)


_SEQ2SEQ = {
    "t5": ModelKind.T5,
    "mt5": ModelKind.T5,
    "bart": ModelKind.BART,
    "blenderbot": ModelKind.BLENDERBOT,
    "blenderbot-small": ModelKind.BLENDERBOT,
}


def model_kind(model: nn.Module) -> ModelKind:
    """The kind of a model, from its configuration; its name plays no part. Raises UserError for what is none of them."""
    if isinstance(model, BertClassifier):
        return ModelKind.CLASSIFIER
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        if config.model_type not in _SEQ2SEQ:
            raise UserError(
                f"encoder-decoder models of type {config.model_type!r} are not supported, only {', '.join(_SEQ2SEQ)}"
            )
        return _SEQ2SEQ[config.model_type]
    if model.get_output_embeddings() is None:
        raise UserError(
            f"{type(model).__name__} has no language-model head, so there are no targets to edit; "
            "load the causal or sequence-to-sequence class of the model"
        )
    return ModelKind.DECODER
