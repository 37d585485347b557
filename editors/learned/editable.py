"""The contract of every learned editor: a model that is never changed, and weights that take the place of some of its own."""

import copy
import difflib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import Self

from common.errors import UserError
from editors.core.fingerprint import model_fingerprint
from .episode import Batch
from .losses import IGNORED, Scores, score
from .model_kind import ModelKind, model_kind
from .options import Options

_INPUTS = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")


def forward(model: nn.Module, overrides: Mapping[str, Tensor], batch: Batch, **options) -> Tensor:
    """Logits of `batch` under `model` with `overrides` in the place of the parameters of these names. Labels are not read, but
    by sequence-to-sequence models: shifted right they are the decoder's input where the batch has none."""
    inputs = {name: batch[name] for name in _INPUTS if name in batch} | options
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = shifted_right(model.config, batch["labels"])
    output = functional_call(model, dict(overrides), (), inputs | {"use_cache": False})
    return output if isinstance(output, Tensor) else output.logits


def shifted_right(config, labels: Tensor) -> Tensor:
    """The decoder's input that predicts `labels`: its start token, then all labels but the last."""
    start = config.decoder_start_token_id
    if start is None:
        start = config.pad_token_id
    ids = labels.masked_fill(labels == IGNORED, config.pad_token_id)
    return torch.cat([ids.new_full((len(ids), 1), start), ids[:, :-1]], 1)


class Editable(ABC):
    """A model under a learned editor: edited as often as one likes, each time into a copy that shares all networks.

    alg = MEND(model, inner_params, options)
    edited, info = alg.edit(episode.edit_inner)          # alg and the model are what they were
    edited(episode.edit_outer)                           # logits

    The edits of an edited one are added to those it has. A subclass gives `name`, `new_weights` and its networks in `net`, and
    says of itself what its training needs.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """In tables, and of the editor in hparams/ that it is trained for."""
    published: ClassVar[str | None] = None
    """Its name in configurations and checkpoints, where that is another."""
    recipes: ClassVar[Mapping[str, str]] = {}
    """Further published names -> the recipe of the data that goes with them."""
    recipe: ClassVar[str] = "mend"
    """Of the data that it is trained on: which equivalents, unrelated inputs and batches (see data.episodes)."""
    options_class: ClassVar[type[Options]] = Options
    trained: ClassVar[bool] = True
    """Whether there is anything to learn before the first edit."""
    parallel: ClassVar[bool] = False
    """Whether it makes the edits of several episodes side by side (`segments` of `LowRankEditable.edit`)."""
    trainer: ClassVar[str] = "editors.learned.trainer:Trainer"
    """What trains it, by name, since trainers know their algorithms."""
    ended: ClassVar[bool] = False
    """Whether its targets end with the end of the text."""
    draws_local: ClassVar[bool] = False
    """Whether its edits draw unrelated inputs of the training data (see FineTune)."""
    encoder_option: ClassVar[str | None] = None
    """The option that names a text encoder, which is loaded beside the model."""
    agreed: ClassVar[tuple[str, ...]] = ()
    """Options that may differ between a checkpoint and its editor, but not between a run and what it goes on from."""
    geometric: bool = False
    """Which `prob` its scores have (see `losses.score`)."""

    def __init__(self, model: nn.Module, inner_params: Sequence[str], options: Options | Mapping[str, Any] | None = None):
        """inner_params: names of the weight matrices that an edit may change, in the order of the learned step sizes."""
        self.model, self.inner, self.options = model, tuple(inner_params), self.options_class.of(options)
        self.kind: ModelKind = model_kind(model)
        self.overrides: dict[str, Tensor] = {}
        """Edited weights in the place of the model's."""
        self.net = nn.Module()
        check_parameters(model, self.inner)

    @classmethod
    def build(
        cls, model: nn.Module, inner_params: Sequence[str], options: Options | Mapping[str, Any] | None = None, **parts
    ) -> Self:
        """An untrained one. parts: what some are made of besides (see SERAC).

        Raises UserError for what does not fit the model.
        """
        return cls(model, inner_params, options)

    @classmethod
    def config_key(cls) -> str:
        """Its name in configurations and checkpoints."""
        return cls.published or cls.name

    @classmethod
    def options_of(cls, tree: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """Its options, from its sub-tree of a training's configuration and from the rest of it."""
        return dict(tree)

    @classmethod
    def needs_eager(cls, tree: Mapping[str, Any]) -> bool:
        """Whether the model has to compute attention step by step, so that it can be differentiated twice."""
        return False

    @staticmethod
    def read_published(tensors: Mapping[str, Tensor], vocabulary: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(options that the shapes tell, state) of the published code's networks. Raises UserError where they are not read."""
        raise UserError("published networks of this algorithm are not read, only those of MEND and KE")

    def __call__(self, batch: Batch) -> Tensor:
        """Logits under the edits so far: (batch, pos, vocabulary), or (batch, 1) of a classifier."""
        return forward(self.model, self.overrides, batch)

    def score(self, logits: Tensor, batch: Batch) -> Scores:
        """How well logits agree with the labels of their batch."""
        return score(logits, batch["labels"], self.kind.shift, self.geometric)

    def edit(self, batch: Batch, condition: Batch | None = None, detach_history: bool = False) -> tuple[Self, dict[str, Any]]:
        """(a copy that answers with the edit, what there is to tell about it).

        The copy's weights depend differentiably on the outer parameters, through all edits so far; with detach_history they are
        plain numbers. condition: see KE.
        """
        weights, info = self.new_weights(batch, condition)
        edited = copy.copy(self)
        edited.overrides = self.overrides | ({name: w.detach() for name, w in weights.items()} if detach_history else weights)
        return edited, info

    @abstractmethod
    def new_weights(self, batch: Batch, condition: Batch | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """({name: the edited weight}, info) for inner parameters; starts from `weight(name)`."""

    def weight(self, name: str) -> Tensor:
        """The weight of that name as it is now, edits included."""
        return self.overrides[name] if name in self.overrides else self.model.get_parameter(name)

    def outer_groups(self) -> dict[str, list[nn.Parameter]]:
        """What is trained, by the name of its learning rate in the configuration: "lr", and "lr_lr" of learned step sizes."""
        named = [(name, p) for name, p in self.net.named_parameters() if p.requires_grad]
        return {"lr": [p for name, p in named if name != "edit_lrs"], "lr_lr": [p for name, p in named if name == "edit_lrs"]}

    def outer_parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return [p for group in self.outer_groups().values() for p in group]

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of networks and model: in training, statistics of the factors are gathered and dropout is active."""
        self.net.train(mode)
        self.model.train(mode)
        return self

    def eval(self) -> Self:
        """`train(False)`."""
        return self.train(False)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the networks, not the model."""
        return dict(self.net.state_dict())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state` gave. Raises UserError for missing, superfluous or misshapen tensors."""
        try:
            self.net.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"the checkpoint's networks are not those of this {self.name}: {str(error).splitlines()[1].strip()}"
            ) from None

    def about(self) -> dict[str, Any]:
        """What a checkpoint must agree on to be loaded, JSON-ready; of the model all but the weights that are edited."""
        return {
            "algorithm": self.config_key(),
            "options": self.options.identity(),
            "inner_params": list(self.inner),
            **identity_of(self.model, self.inner),
        }


def identity_of(model: nn.Module, without: Collection[str]) -> dict[str, Any]:
    """What tells models apart, the named weights left out."""
    return {
        "model_type": model.config.model_type,
        "model": model_fingerprint(model, without),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "norms": norms(model, without),
    }


def norms(model: nn.Module, without: Collection[str], count: int = 32) -> dict[str, float]:
    """Lengths of parameters, evenly spaced among all: what tells models apart that were loaded in different precisions."""
    names = [name for name, _ in model.named_parameters() if name not in without]
    return {name: float(model.get_parameter(name).detach().double().norm()) for name in names[:: -(-len(names) // count)]}


def check_parameters(model: nn.Module, names: Sequence[str]) -> None:
    """Raises UserError unless these are different weight matrices of the model."""
    parameters = dict(model.named_parameters())
    missing = [name for name in names if name not in parameters]
    if missing:
        near = difflib.get_close_matches(missing[0], parameters, n=1)
        raise UserError(
            f"the model has no parameter{'s' * (len(missing) > 1)} {', '.join(missing)}"
            + (f"; the nearest is {near[0]}" if near else "")
        )
    if not names or len(set(names)) < len(names):
        raise UserError("inner_params: give at least one weight, and each once")
    vectors = [name for name in names if parameters[name].dim() != 2]
    if vectors:
        raise UserError(f"inner_params: {vectors[0]} is no matrix")
