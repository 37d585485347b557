"""Learned editors whose updates are few factors (MEND, KE, ENN), applied to inputs without being multiplied out."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import Self

from common.errors import UserError
from editors.changes import Dense, LowRank
from editors.core.modules import hooked
from .editable import Editable, forward
from .episode import Batch
from .factors import CHUNK, Factors, gradient_factors, linear_of
from .options import Options


@dataclass(frozen=True)
class Rows:
    """What is added to a linear map y(x): sum_r (x . u_r) delta_r, of each of several edits side by side ("segments")."""

    u: Float[Tensor, "segments rank d_in"]
    delta: Float[Tensor, "segments rank d_out"]

    @staticmethod
    def packed(
        u: Float[Tensor, "rows d_in"], delta: Float[Tensor, "rows d_out"], segment: Int[Tensor, "rows"], segments: int
    ) -> Rows:
        """From rows of whatever segment, filled up with zeros to the longest."""
        if segments == 1:
            return Rows(u[None], delta[None])
        order = segment.argsort(stable=True)
        segment, counts = segment[order], torch.bincount(segment, minlength=segments)
        place = torch.arange(len(order), device=u.device) - (counts.cumsum(0) - counts)[segment]
        shape = segments, int(counts.max())

        def pack(x: Tensor) -> Tensor:
            return x.new_zeros(*shape, x.shape[-1]).index_put((segment, place), x[order])

        return Rows(pack(u), pack(delta))

    def plus(self, later: Rows) -> Rows:
        """These and later ones, along the rank."""
        return Rows(torch.cat([self.u, later.u], 1), torch.cat([self.delta, later.delta], 1))

    def of(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """What is added at inputs x, whose rows stand in the order of the segments."""
        flat = x.to(self.u.dtype).reshape(len(self.u), -1, x.shape[-1])
        return ((flat @ self.u.mT) @ self.delta).reshape(*x.shape[:-1], self.delta.shape[-1]).to(x.dtype)

    def change(self, in_first: bool) -> LowRank:
        """The same as a change of the weight, stored [d_in, d_out] or [d_out, d_in]. Of one segment."""
        u, delta = self.u[0].T, self.delta[0].T
        return LowRank(u, delta) if in_first else LowRank(delta, u)


class LowRankEditable(Editable):
    """An edit is one step, or several, each made on what the last one left (see `parts`).

    Several edits can be made side by side, each with the weights of its own (`segments`): that gives the losses and gradients
    of as many episodes in the time of few.
    """

    parallel = True

    def __init__(self, model: nn.Module, inner_params: Sequence[str], options: Options | Mapping[str, Any] | None = None):
        super().__init__(model, inner_params, options)
        self.in_first = {name: linear_of(model, name)[1] for name in self.inner}
        self.added: dict[str, Rows] = {}

    @abstractmethod
    def transformed(
        self, number: int, factors: Factors, context: Any
    ) -> tuple[Float[Tensor, "rows d_in"], Float[Tensor, "rows d_out"], Int[Tensor, "rows"]]:
        """What one step adds to inner parameter `number`, as rows (u, delta, segment), from its gradient's."""

    def context(self, condition: Batch | None, factors: Mapping[str, Factors], segments: int) -> Any:
        """What `transformed` needs besides, from the condition or from the factors of all inner parameters."""
        return None

    def parts(self, batch: Batch, condition: Batch | None, segments: int) -> list[tuple[Batch, Batch | None]]:
        """What each step of one edit is made of."""
        return [(batch, condition)]

    def second_order(self) -> bool:
        """Whether outer gradients go through the inner gradient, too."""
        return False

    def edit(
        self, batch: Batch, condition: Batch | None = None, detach_history: bool = False, segments: int = 1, chunk: int = CHUNK
    ) -> tuple[Self, dict[str, Any]]:
        """As `Editable.edit`; with segments, so many edits of equally many rows, each of which answers its share of later rows.

        chunk: so many rows go through the model together.
        """
        edited = self.detached() if detach_history else self
        for part, text in self.parts(batch, condition, segments):
            edited = edited.with_rows(edited.step(part, text, segments, chunk))
            if detach_history:
                edited = edited.detached()
        return edited, {}

    def step(self, batch: Batch, condition: Batch | None, segments: int, chunk: int) -> dict[str, Rows]:
        """What one step adds to each inner parameter."""
        gradients = gradient_factors(self, batch, segments, chunk, self.second_order())
        factors = {name: each.kept() for name, each in gradients.items()}
        context = self.context(condition, factors, segments)
        return {
            name: Rows.packed(*self.transformed(i, each, context), segments) for i, (name, each) in enumerate(factors.items())
        }

    def with_rows(self, rows: Mapping[str, Rows]) -> Self:
        """A copy to whose weights these are added, too."""
        edited = copy.copy(self)
        edited.added = {name: self.added[name].plus(more) if name in self.added else more for name, more in rows.items()}
        return edited._folded()

    def _folded(self) -> Self:
        """With weights in the place of factors that hold more numbers, where no gradient is wanted."""
        for name, rows in list(self.added.items()):
            segments, rank, d_in = rows.u.shape
            d_out = rows.delta.shape[-1]
            if (
                segments == 1
                and not rows.u.requires_grad
                and not rows.delta.requires_grad
                and rank * (d_in + d_out) > d_in * d_out
            ):
                self.overrides = self.overrides | {name: self.weight(name)}
                del self.added[name]
        return self

    def detached(self) -> Self:
        """A copy whose weights are plain numbers."""
        plain = copy.copy(self)
        plain.added = {name: Rows(rows.u.detach(), rows.delta.detach()) for name, rows in self.added.items()}
        return plain._folded()

    def weight(self, name: str) -> Tensor:
        weight = super().weight(name)
        if name not in self.added:
            return weight
        return weight + self.added[name].change(self.in_first[name]).dense().to(weight.dtype)

    def change(self, name: str) -> LowRank | Dense:
        """How an edited weight differs from the model's, without history."""
        plain = self.detached()
        if name in plain.overrides or name not in plain.added:
            original = plain.model.get_parameter(name).detach()
            wider = torch.promote_types(original.dtype, torch.float32)
            return Dense(plain.weight(name).detach().to(wider) - original.to(wider))
        return plain.added[name].change(self.in_first[name])

    def __call__(self, batch: Batch) -> Tensor:
        return self.run(batch)

    def run(self, batch: Batch, seen: dict[str, tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """Logits; `seen` takes the (input, output) of each inner parameter's module, where the graph begins at the latest."""
        names = self.inner if seen is not None else self.added
        with hooked(linear_of(self.model, name)[0].register_forward_hook(self._hook(name, seen)) for name in names):
            return forward(self.model, self.overrides, batch)

    def _hook(self, name: str, seen: dict[str, tuple[Tensor, Tensor]] | None):
        rows = self.added.get(name)

        def hook(module, inputs, output):
            if seen is not None and (name in seen or not isinstance(output, Tensor)):
                what = "runs more than once in a forward pass" if name in seen else "puts out more than a linear map does"
                raise UserError(f"inner_params: the module of {name} {what}, so the gradient has no such factors")
            if rows is not None:
                output = output + rows.of(inputs[0])
            if seen is not None:
                seen[name] = (inputs[0], output if output.requires_grad else output.requires_grad_(True))
            return output

        return hook

    def new_weights(self, batch: Batch, condition: Batch | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        edited, info = self.edit(batch, condition)
        return {name: edited.weight(name) for name in self.inner}, info
