"""Learned editors whose updates are few factors: MEND, KE, and ENN outside training."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from ..edit import LowRank
from .editable import Editable
from .episode import Batch
from .factors import gradient_factors, linear_of


class LowRankEditable(Editable):
    """An edit is one step, or several, each made on what the last one left (see `parts`)."""

    @abstractmethod
    def update(self, batch: Batch, condition: Batch | None) -> dict[str, LowRank]:
        """{inner parameter: its change in one step}, with the parameter's own orientation."""

    def parts(self, batch: Batch, condition: Batch | None) -> list[tuple[Batch, Batch | None]]:
        """What each step of one edit is made of."""
        return [(batch, condition)]

    def updates(self, batch: Batch, condition: Batch | None = None) -> list[dict[str, LowRank]]:
        """The steps of one edit, in order."""
        now, steps = self, []
        for part, text in self.parts(batch, condition):
            if steps:
                now = now.with_weights(_added(now, steps[-1]))
            steps.append(now.update(part, text))
        return steps

    def new_weights(self, batch: Batch, condition: Batch | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        now = self
        for step in self.updates(batch, condition):
            now = now.with_weights(_added(now, step))
        return {name: now.weight(name) for name in self.inner}, {}

    def oriented(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """{inner parameter: (rows' factor, columns' factor)} of the gradient, without empty rows; the gradient is left^T right."""
        found = {}
        for name, factors in gradient_factors(self, batch).items():
            kept = factors.kept()
            found[name] = (kept.u, kept.delta) if linear_of(self.model, name)[1] else (kept.delta, kept.u)
        return found


def _added(now: Editable, step: dict[str, LowRank]) -> dict[str, Tensor]:
    return {name: now.weight(name) + change.dense().to(now.weight(name).dtype) for name, change in step.items()}
