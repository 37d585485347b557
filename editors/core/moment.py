"""The second moment of a layer's keys, and what follows from it: its rank, its factors, its null space."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from . import solve

IDENTITY = {
    "format": "format",
    "model_dtype": "model precision",
    "weights": "model",
    "layer": "layer",
    "module": "module",
    "tokenizer": "tokenizer",
    "corpus": "corpus",
    "n_samples": "number of documents",
    "max_keys": "number of keys",
    "max_length": "truncation",
    "dtype": "precision",
}
"""Fields of an identity that must agree before a file is used -> what they tell apart."""


@dataclass(frozen=True, eq=False)
class Moment:
    """Statistics of the keys k that enter one layer's down-projection, over `count` tokens of a corpus.

    What is asked of it is computed once and kept with it: one factorisation a layer serves every batch.
    """

    matrix: Float[Tensor, "d_in d_in"]
    """Uncentred second moment C: the sum of k k^T over all tokens, divided by `count`; float32 or float64, on the CPU."""
    count: int
    """Tokens seen."""
    layer: int
    identity: dict[str, Any]
    """What they were collected from: the fields of `IDENTITY` ("unknown" in published files) and further provenance."""
    mean: Float[Tensor, " d_in"] | None
    """Mean key; None if it is not in the file."""
    norm_mean: float | None
    """Mean length of a key; None if it is not in the file."""
    _factors: dict[float, solve.Factor] = field(default_factory=dict, init=False, repr=False)
    _null_spaces: dict[float, solve.Projector] = field(default_factory=dict, init=False, repr=False)

    @property
    def d_in(self) -> int:
        """Width of the keys."""
        return len(self.matrix)

    @property
    def noted_rank(self) -> int:
        """The rank that was noted when so few keys were collected that it could be below d_in; else d_in."""
        return min(self.identity.get("rank", self.d_in), max(self.count, 1))

    @cached_property
    def rank(self) -> int:
        """Of C, as far as its precision tells, and never above the number of keys; d_in where Cholesky succeeds."""
        if self.noted_rank == self.d_in and torch.linalg.cholesky_ex(self.matrix.double())[1]:
            return min(spectrum(self.matrix)["rank"], self.count)
        return min(self.noted_rank, self.count)

    def factor(self, ridge: float = 0.0) -> solve.Factor:
        """Cholesky factor of C + ridge I. Raises UserError, with layer, keys and remedy, if that is not positive definite."""
        if ridge not in self._factors:
            self._factors[ridge] = solve.factorise(self.matrix, ridge, where=f"block {self.layer}", count=self.count)
        return self._factors[ridge]

    def null_space(self, threshold: float, make: Callable[[], solve.Projector] | None = None) -> solve.Projector:
        """The projector onto the directions in which C is below `threshold` (AlphaEdit eq. 8).

        make: gives it at first use, from a file, say; by default an eigendecomposition of C does.
        """
        if threshold not in self._null_spaces:
            self._null_spaces[threshold] = make() if make else solve.null_space(self.matrix, threshold)
        return self._null_spaces[threshold]

    def summary(self) -> dict[str, Any]:
        """What tells these statistics from others, JSON-ready: their identity and, as published files lack one, two numbers."""
        return {name: self.identity[name] for name in IDENTITY} | {
            "count": self.count, "trace": float(self.matrix.diagonal().double().sum())}


def spectrum(moment: Float[Tensor, "d_in d_in"]) -> dict[str, float]:
    """Rank and condition number, as far as the precision of `moment` tells."""
    values = torch.linalg.eigvalsh(moment.double())
    # What rounding does to the eigenvalues: about this much if that of each element is independent, and more where some come
    # out below 0. Bounds for any rounding (numpy's d_in * eps) would call most of what float32 sums do resolve noise.
    noise = torch.maximum(torch.finfo(moment.dtype).eps * values[-1] / len(values) ** 0.5, -2 * values[0])
    return {"rank": int((values > noise).sum()), "condition": float(values[-1] / values[0].clamp_min(noise))}
