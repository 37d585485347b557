"""MEND: the update is the gradient's factors, normalised and sent through a small network (Mitchell et al. 2022a)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from common.errors import UserError
from editors.configuration import Count, Natural
from .editable import Editable
from .factors import Factors, dimensions
from .learned_editor import LearnedEditor
from .low_rank import LowRankEditable
from .mend_net import FactorEditor
from .options import Options
from .published import mend_state


@dataclass(frozen=True, kw_only=True)
class MENDOptions(Options):
    """MEND's options: the networks that transform the gradient's factors."""

    edit_lr: float = 1e-4
    """Initial value of each weight's learned step size."""
    one_sided: bool = False
    """Only the narrower factor has a network."""
    n_hidden: Natural = 1
    init: Literal["id", "xavier"] = "id"
    """"id": the networks begin as the identity; "xavier": at random, without residual connections."""
    norm: bool = True
    combine: bool = True
    """One network for both factors together; false: one for each."""
    x_only: bool = False
    delta_only: bool = False
    rank: Count = 1920
    """Of the networks' weights."""
    mlp_class: str = "IDMLP"
    shared: bool = True
    """One editor for all weights of a shape; false: one for each weight."""
    descent: bool = False
    """Subtract the step instead of adding it. Published MEND editors add, and learn the sign."""

    ignored: ClassVar[Mapping[str, str]] = {
        "hidden_dim": "the network is as wide as the factors",
        "act": "every layer clamps at 0",
    }
    fixed: ClassVar[Mapping[str, tuple[Any, str]]] = {"mlp_class": ("IDMLP", "no other network takes the index of a weight")}
    free: ClassVar[frozenset[str]] = frozenset({"edit_lr"})

    def __post_init__(self):
        super().__post_init__()
        if self.combine and (self.one_sided or self.x_only or self.delta_only):
            raise UserError(
                "combine: one network for both factors can't be one_sided, x_only or delta_only; set combine to false"
            )
        if self.x_only and self.delta_only:
            raise UserError("x_only and delta_only exclude each other")


class MEND(LowRankEditable):
    """W' = W + lr * sum_b u'_b delta'_b^T (minus with `descent`), with (u', delta') = editor(u, delta) and lr learned."""

    name, title = "mend", "MEND"
    recipes = {"gtn": "serac"}
    options_class = MENDOptions
    read_published = staticmethod(mend_state)

    def __init__(self, model: nn.Module, inner_params: Sequence[str], options: MENDOptions | Mapping[str, Any] | None = None):
        super().__init__(model, inner_params, options)
        shapes = {name: dimensions(model, name) for name in self.inner}
        key_of = {name: str(shape) if self.options.shared else name.replace(".", "#") for name, shape in shapes.items()}
        members = {key: [name for name in self.inner if key_of[name] == key] for key in dict.fromkeys(key_of.values())}
        self.place = {name: (key, members[key].index(name) if self.options.shared else None) for name, key in key_of.items()}
        self.net.mend = nn.ModuleDict(
            {
                key: FactorEditor(*shapes[names[0]], self.options, len(names) if self.options.shared else None)
                for key, names in members.items()
            }
        )
        self.net.edit_lrs = nn.Parameter(torch.full((len(self.inner),), self.options.edit_lr))
        self.net.to(next(model.parameters()).device)

    def context(self, condition: None, factors: Mapping[str, Factors], segments: int) -> dict[str, Factors]:
        """The factors, normalised. In training their rows are counted before, those of one edit after the other: so edits side
        by side have the moments that they have in turn."""
        if not self.net.training or segments == 1:
            return {name: self._normalised(name, f) for name, f in factors.items()}
        parts = {
            name: list(zip(*(x.split(torch.bincount(f.segment, minlength=segments).tolist()) for x in f.tensors)))
            for name, f in factors.items()
        }
        turns = [{name: self._normalised(name, Factors(*part[i])) for name, part in parts.items()} for i in range(segments)]
        return {name: Factors(*map(torch.cat, zip(*(turn[name].tensors for turn in turns)))) for name in factors}

    def _normalised(self, name: str, factors: Factors) -> Factors:
        editor, dtype = self.net.mend[self.place[name][0]], self.net.edit_lrs.dtype
        return Factors(*editor.normalised(factors.u.to(dtype), factors.delta.to(dtype)), factors.segment)

    def transformed(self, number: int, factors: Factors, context: Mapping[str, Factors]) -> tuple[Tensor, Tensor, Tensor]:
        """Differentiable in the networks and step sizes, not in the gradient."""
        rate, name = self.net.edit_lrs[number], self.inner[number]
        key, mode = self.place[name]
        u, delta = self.net.mend[key].edited(context[name].u, context[name].delta, mode)
        return (-rate if self.options.descent else rate) * u, delta, factors.segment


class MENDEditor(LearnedEditor):
    """Mitchell et al. 2022a."""

    name, algorithm = MEND.title, MEND

    def _prepare(self, alg: Editable) -> None:
        super()._prepare(alg)
        if self.hparams.legacy_train_mode_stats:
            for editor in alg.net.mend.values():
                editor.k.fill_(float("nan"))
            alg.net.train()
