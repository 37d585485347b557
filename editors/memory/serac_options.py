"""What SERAC can be told: its scope classifier, its counterfactual model and how they are trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import nn

from common.errors import UserError
from editors.configuration import Bound, Natural
from editors.learned.options import Options
from .form import Form
from .scope import CrossScopeClassifier, EmbeddingScopeClassifier, POOLINGS, ScopeClassifier

Pooling = Annotated[str, Bound(lambda name: name in POOLINGS, f"is none of {', '.join(POOLINGS)}")]
Probability = Annotated[float, Bound(lambda probability: 0 < probability < 1, "must be between 0 and 1")]


@dataclass(frozen=True, kw_only=True)
class SERACOptions(Options):
    """SERAC's options: the scope classifier, the counterfactual model, and how both are trained."""

    cls_name: str = "distilbert-base-cased"
    """Encoder of the scope classifier: a model of the hub or a folder."""
    cls_class: str = "AutoModel"
    """Its class in transformers; with `cross_attend` its form with two classes."""
    supervised: bool = True
    """Train on which inputs are in scope; false: on the edited model's answers alone, through soft weighting."""
    cos: bool = False
    """Distance 1 - cosine instead of |q - e|^2."""
    square: bool = True
    """Square the distance |q - e|."""
    bound_embeds: bool = False
    """tanh before distances."""
    dist_heads: int = 1
    """Equal parts of the vectors, of which the nearest counts."""
    pooling: Pooling = "cls"
    """What stands for a text: the first token's state ("cls"), the encoder's pooler, or the mean over tokens."""
    cross_attend: bool = False
    """The classifier reads edit and input together."""
    freeze: Natural | None = None
    """Train only so many last blocks of the classifier, and its head."""
    use_all_negatives: bool = False
    """Every unrelated input is a negative of every edit of a batch, not just of its own."""
    other_edits_negative: bool = False
    """Inputs in the scope of one edit are negatives of the batch's others, too. Not published."""
    nearest_negatives: bool = False
    """Negatives are each input's nearest edit alone, which is what routing goes by: of unrelated inputs any, of others the
    nearest that is not their own. Not published."""
    pairs: int | None = None
    """With `cross_attend`, in training: so many edits of the batch that each input is read with, its own among them; None: all.
    With batches of n edits that is `pairs` readings an input instead of n. Not published."""
    freeze_cntr: bool = False
    """The model itself answers in scope, with the edit in its prompt; no counterfactual model is trained."""
    soft_weighting: bool = False
    """Mix both models' probabilities by the scope's, instead of asking one of them."""
    checkpoint_grad: bool = False
    """Recompute the classifier's activations instead of keeping them."""
    threshold: Probability = 0.5
    """Probability from which on an input is in scope. Published: 0.5."""

    ignored: ClassVar[Mapping[str, str]] = {"lora": "the published code reads it nowhere"}
    free: ClassVar[frozenset[str]] = frozenset({"threshold", "checkpoint_grad", "soft_weighting", "pairs"})

    def __post_init__(self):
        super().__post_init__()
        if self.nearest_negatives and (self.use_all_negatives or self.other_edits_negative):
            raise UserError("nearest_negatives goes with neither use_all_negatives nor other_edits_negative")
        usable = self.cross_attend and self.supervised and not self.use_all_negatives and not self.other_edits_negative
        if self.pairs is not None and (self.pairs < 2 or not usable):
            raise UserError("pairs: at least 2, with cross_attend and supervised, without use_all_negatives and "
                            "other_edits_negative")

    def scope_classifier(self, encoder: nn.Module, tok: Any, form: Form) -> ScopeClassifier:
        """The scope classifier that these options describe."""
        if self.cross_attend:
            return CrossScopeClassifier(encoder, tok, form)
        return EmbeddingScopeClassifier(
            encoder, tok, form, self.dist_heads, self.square, self.cos, self.bound_embeds, self.pooling
        )
