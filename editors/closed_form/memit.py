"""MEMIT: mass-editing memory in a transformer (Meng et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from common.errors import UserError
from editors.base import Task
from editors.changes import Dense, LowRank
from editors.configuration import NotNegative, Positive, Share
from editors.core import solve
from editors.core.sites import Sites
from .spread import Solver, SpreadEditor, SpreadHParams
from .statistics import covariance_factors, prepare, Prepared, second_moments


@dataclass(frozen=True, kw_only=True)
class MEMITHParams(SpreadHParams):
    mom2_update_weight: Positive
    """lambda: weight of the second moment; higher preserves other facts more and writes the new ones less fully."""
    update_norm_lambda: NotNegative = 0.0
    """mu: S = lambda C + mu I; higher keeps the weight change smaller and makes S regular when few keys were seen."""
    edited_key_memory: bool = False
    """In a sequence, add the keys of all earlier edits to S, so that later ones keep off them (MEMIT_seq of AlphaEdit's authors)."""
    rect_share: Share | None = None
    """Of each weight change keep only this share, the largest relative to the weight (RECT, Gu et al. 2024: 0.4)."""
    rect_absolute: bool = False
    """Relative to |weight| + 1e-8; false, as published: to |weight + 1e-8|."""
    prune: bool = False
    """At the end of a sequence, dampen the singular values of its whole change (PRUNE, Ma et al. 2024)."""
    residual: Literal["refresh", "stale"] = "refresh"
    """What is left to write after a layer: measured on the model edited so far, or on the unedited one, as MEMAT's published code
    does on a GPU. Of n layers stale writes 1/n + ... + 1/1 of the distance: 137/60 of it with five."""
    contexts: Literal["sampled", "greedy"] = "sampled"
    """How context_starts go on: sampled, ten tokens in all (MEMIT), or ten likeliest tokens more (MEMAT)."""
    context_starts: list[str] | None = None
    """Words that contexts begin with, in the language of the prompts; None: the published English ones."""
    context_groups: Literal["two", "each"] = "two"
    """Weights of a key's contexts: half for the bare prompt and half for all others (MEMIT), or the same for each (MEMAT)."""

    ignored: ClassVar[Mapping[str, str]] = SpreadHParams.ignored | {
        "emmet_lambda": "EMMET's",
        "rewrite_module_tmps": "the published code reads it nowhere",
    }

    def __post_init__(self):
        super().__post_init__()
        if self.edited_key_memory and self.dynamic:
            raise UserError("dynamic: edited_key_memory adds up on the first statistics; set one of the two false")
        if self.edited_key_memory and (self.residual == "stale" or self.rect_share is not None):
            other = "rect_share" if self.rect_share is not None else "residual stale"
            raise UserError(f"edited_key_memory: remembers the keys of the model with the whole edit in it, which {other} does not give")
        if self.context_starts is not None and not all(self.context_starts):
            raise UserError(f"context_starts: {self.context_starts} must be texts, none of them empty")
        if self.rect_absolute and self.rect_share is None:
            raise UserError("rect_absolute: without effect unless rect_share is set")


def regrouped(prepared: Prepared, hp: MEMITHParams, given: bool) -> Prepared:
    """With the contexts in the groups that context_groups asks for; those that were given stay in their own."""
    if given:
        return prepared
    bare, *others = prepared.templates
    groups = [[bare], others] if hp.context_groups == "two" else [[template] for template in prepared.templates]
    return replace(prepared, groups=groups)


class MEMIT(SpreadEditor):
    """The least-squares update A = (lambda C + K K^T)^{-1} K (eq. 14, 20)."""

    name = "MEMIT"
    hparams_class = MEMITHParams

    @property
    def refreshes(self) -> bool:
        return self.hparams.residual == "refresh"

    def contexts(self, task: Task) -> Prepared:
        hp = self.hparams
        kind = "memit" if hp.contexts == "sampled" else "greedy"
        return regrouped(prepare(task, hp, kind, starts=hp.context_starts), hp, given=task.context_templates is not None)

    def solver(self, task: Task, sites: Sites, info: dict[str, Any]) -> Solver:
        weight = self.hparams.mom2_update_weight
        moments = second_moments(task, self.hparams, sites, info)
        factors = covariance_factors(moments, self.hparams, info, ridge=self.hparams.update_norm_lambda / weight)
        if not self.hparams.edited_key_memory or task.memory is None:
            return Solver(moments, lambda layer, keys: solve.memit(factors[layer], weight, keys))

        def remembering(layer, keys):
            factor = task.memory.at(layer, lambda: solve.Factor(factors[layer].lower * weight**0.5))
            return solve.memit(factor, 1.0, keys)

        return Solver(moments, remembering, remember=lambda layer, keys: keys)

    def written(self, change: LowRank, weight: Tensor) -> LowRank | Dense:
        share = self.hparams.rect_share
        return change if share is None else Dense(solve.rect(change.dense(), weight.cpu(), share, self.hparams.rect_absolute))

    def at_the_end(self, originals: Mapping[str, Tensor], current: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.hparams.prune:
            return {}

        def pruned(old: Tensor, now: Tensor) -> Tensor:
            old_wide = solve.double(old)
            return (old_wide + solve.prune(solve.double(now) - old_wide, old_wide)).to(old)

        return {name: pruned(old, current[name]) for name, old in originals.items()}


@dataclass(frozen=True, kw_only=True)
class MEMITSeqHParams(MEMITHParams):
    edited_key_memory: bool = True


@dataclass(frozen=True, kw_only=True)
class MEMITRectHParams(MEMITHParams):
    rect_share: Share | None = 0.4


@dataclass(frozen=True, kw_only=True)
class MEMITPruneHParams(MEMITHParams):
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
