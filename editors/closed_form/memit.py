"""MEMIT: mass-editing memory in a transformer (Meng et al., ICLR 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from common.errors import UserError
from editors.base import Task
from editors.changes import Dense, LowRank
from editors.configuration import Bound, NotNegative, Positive, Share
from editors.core import solve
from editors.core.decoder import Decoder
from .prepared import prepare, Prepared
from .spread import Solver, SpreadEditor, SpreadHParams
from .statistics import described, factorised, second_moments

OF_MEMAT = 'MEMAT has another one, which its profile ("default" or "paper") decides'
Starts = Annotated[list[str], Bound(all, "must be texts, none of them empty")]


@dataclass(frozen=True, kw_only=True)
class MEMITHParams(SpreadHParams):
    """MEMIT's keys: the weight of the covariance, and what is kept of a change."""

    mom2_update_weight: Positive
    """lambda: weight of the second moment; higher preserves other facts more and writes the new ones less fully."""
    update_norm_lambda: NotNegative = 0.0
    """mu: S = lambda C + mu I; higher keeps the weight change smaller and makes S regular when few keys were seen."""
    edited_key_memory: bool = False
    """In a sequence, add the keys of all earlier edits to S, so that later ones keep off them (MEMIT_seq of AlphaEdit's
    authors)."""
    rect_share: Share | None = None
    """Of each weight change keep only this share, the largest relative to the weight (RECT, Gu et al. 2024: 0.4)."""
    rect_absolute: bool = False
    """Relative to |weight| + 1e-8; false, as published: to |weight + 1e-8|."""
    prune: bool = False
    """At the end of a sequence, dampen the singular values of its whole change (PRUNE, Ma et al. 2024)."""
    context_starts: Starts | None = None
    """Words that contexts begin with, in the language of the prompts; None: the published English ones."""

    ignored: ClassVar[Mapping[str, str]] = SpreadHParams.ignored | {
        "emmet_lambda": "EMMET's",
        "rewrite_module_tmps": "the published code reads it nowhere",
    }
    fixed: ClassVar[Mapping[str, tuple[Any, str]]] = SpreadHParams.fixed | {
        "residual": ("refresh", OF_MEMAT), "contexts": ("sampled", OF_MEMAT), "context_groups": ("two", OF_MEMAT),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.edited_key_memory and self.dynamic:
            raise UserError("dynamic: edited_key_memory adds up on the first statistics; set one of the two false")
        if self.edited_key_memory and self.rect_share is not None:
            raise UserError("edited_key_memory: remembers the keys of the model with the whole edit in it, which rect_share "
                            "does not give")
        if self.rect_absolute and self.rect_share is None:
            raise UserError("rect_absolute: without effect unless rect_share is set")


class MEMIT(SpreadEditor):
    """The least-squares update A = (lambda C + K K^T)^{-1} K (eq. 14, 20)."""

    name = "MEMIT"
    hparams_class = MEMITHParams

    def contexts(self, task: Task) -> Prepared:
        return prepare(task, self.hparams, "memit", starts=self.hparams.context_starts)

    def solver(self, task: Task, decoder: Decoder) -> Solver:
        weight = self.hparams.mom2_update_weight
        moments = second_moments(decoder, self.hparams, task.progress)
        factors = factorised(moments, self.hparams, ridge=self.hparams.update_norm_lambda / weight)
        statistics = described(moments, factors.added)
        if not self.hparams.edited_key_memory or task.memory is None:
            return Solver(moments, lambda layer, keys: solve.memit(factors[layer], weight, keys), statistics=statistics)

        def remembering(layer, keys):
            factor = task.memory.at(layer, lambda: solve.Factor(factors[layer].lower * weight**0.5))
            return solve.memit(factor, 1.0, keys)

        return Solver(moments, remembering, remember=lambda layer, keys: keys, statistics=statistics)

    def written(self, change: LowRank, weight: Tensor) -> LowRank | Dense:
        share = self.hparams.rect_share
        return change if share is None else Dense(solve.rect(change.dense(), weight.cpu(), share, self.hparams.rect_absolute))

    def at_the_end(self, originals: Mapping[str, Tensor], current: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.hparams.prune:
            return {}

        def pruned(original: Tensor, edited: Tensor) -> Tensor:
            wide = solve.double(original)
            return (wide + solve.prune(solve.double(edited) - wide, wide)).to(original)

        return {name: pruned(original, current[name]) for name, original in originals.items()}


@dataclass(frozen=True, kw_only=True)
class MEMITSeqHParams(MEMITHParams):
    """MEMIT's keys with edited_key_memory."""

    edited_key_memory: bool = True


@dataclass(frozen=True, kw_only=True)
class MEMITRectHParams(MEMITHParams):
    """MEMIT's keys with rect_share 0.4."""

    rect_share: Share | None = 0.4


@dataclass(frozen=True, kw_only=True)
class MEMITPruneHParams(MEMITHParams):
    """MEMIT's keys with prune."""

    prune: bool = True


class MEMITSeq(MEMIT):
    """MEMIT with edited_key_memory, under the name that AlphaEdit's authors gave it."""

    name, hparams_class, hparams_folder = "MEMIT_seq", MEMITSeqHParams, "MEMIT"


class MEMITRect(MEMIT):
    """MEMIT with rect_share 0.4, under the name that AlphaEdit's authors gave it."""

    name, hparams_class, hparams_folder = "MEMIT_rect", MEMITRectHParams, "MEMIT"


class MEMITPrune(MEMIT):
    """MEMIT with prune, under the name that AlphaEdit's authors gave it."""

    name, hparams_class, hparams_folder = "MEMIT_prune", MEMITPruneHParams, "MEMIT"
