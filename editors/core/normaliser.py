"""Running mean and standard deviation of vectors, column by column (the lifelong normaliser of UltraEdit, Gu et al. 2026)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .solve import double

EPS = torch.finfo(torch.float32).eps
"""As published: beside the count's degrees of freedom, and beside a standard deviation."""


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Statistics of all rows seen, float64 on the CPU. Their size does not grow with the rows.

    As published, a part of n rows adds n times its unbiased variance to the squared deviations, where n - 1 times would be
    exact. So it matters which rows come together, and not in which order they or the parts do.
    """

    statistics: Float[Tensor, "3 width"]
    """Mean; summed squared deviations; how many rows there were, in every column the same."""

    @classmethod
    def empty(cls, width: int) -> Normaliser:
        """Before the first row."""
        return cls(torch.zeros(3, width, dtype=torch.float64))

    @property
    def mean(self) -> Float[Tensor, " width"]:
        """Of each column."""
        return self.statistics[0]

    @property
    def count(self) -> float:
        """Rows seen."""
        return float(self.statistics[2, 0])

    @property
    def std(self) -> Float[Tensor, " width"]:
        """Standard deviation of each column; 0 as long as there is one row at the most."""
        if self.count < 2:
            return torch.zeros_like(self.mean)
        return (self.statistics[1] / (self.count - 1 + EPS)).sqrt()

    def plus(self, parts: Sequence[Float[Tensor, "rows width"]]) -> Normaliser:
        """After these parts, one after another. A part of one row has no variance (published: NaN)."""
        mean, squares, count = self.mean, self.statistics[1], self.count
        for part in parts:
            rows, n = double(part).cpu(), len(part)
            delta, total = rows.mean(0) - mean, count + n
            variance = rows.var(0) if n > 1 else torch.zeros_like(mean)
            squares = squares + n * variance + count * n / total * delta.square()
            mean, count = mean + n / total * delta, total
        return Normaliser(torch.stack([mean, squares, torch.full_like(mean, count)]))

    def __call__(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """The rows, centred and scaled, in float64 on the CPU."""
        return (double(rows).cpu() - self.mean) / (self.std + EPS)
