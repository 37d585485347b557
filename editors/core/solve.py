"""The closed forms, as pure functions of tensors, in float64.

Notation of the papers, keys as columns: K is [d_in, n], R is [d_out, n], C the second moment [d_in, d_in].
S = lambda C + mu I is symmetric positive definite, so it is factored by Cholesky once, kept, and used for every batch:

    (S + K K^T)^{-1} K  =  M (I + K^T M)^{-1},   M = S^{-1} K      (Woodbury, in the form that needs only n x n systems)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import EditingError


@dataclass(frozen=True, eq=False)
class Factor:
    """Lower Cholesky factor of C' = C + ridge I, float64, kept on the CPU (d_in^2 numbers a layer are too many for a GPU)."""

    lower: Float[Tensor, "d_in d_in"]

    def solve(self, right: Float[Tensor, "d_in n"]) -> Float[Tensor, "d_in n"]:
        """C'^{-1} right, on right's device, float64."""
        right = double(right)
        return torch.cholesky_solve(right, self.lower.to(right.device))


def double(x: Tensor) -> Tensor:
    """x in float64, on its own device where that has float64 (MPS has not)."""
    return x.to("cpu" if x.device.type == "mps" else x.device, torch.float64)


def factorise(moment: Float[Tensor, "d_in d_in"], ridge: float = 0.0, where: str = "", count: int | None = None) -> Factor:
    """Cholesky factor of moment + ridge I.

    where, count: the layer and the number of keys seen, for the error.
    Raises EditingError if the matrix is not positive definite: says the rank and what to do.
    """
    matrix = moment.to("cpu", torch.float64)  # a copy unless it is float64 already; not changed below
    if ridge:
        matrix = matrix + ridge * torch.eye(len(matrix), dtype=torch.float64)
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if failed or not torch.isfinite(lower).all():
        if not torch.isfinite(matrix).all():
            raise EditingError(f"{where}: the second moment holds NaN or infinity: collect the statistics again")
        rank = int(torch.linalg.matrix_rank(matrix, hermitian=True))
        seen = "" if count is None else f" after {count} keys"
        raise EditingError(
            f"{where}: the second moment is not positive definite (rank {rank} of {len(matrix)}{seen}): raise mom2_n_samples, "
            "collect in float64, or set MEMIT's update_norm_lambda above 0"
        )
    return Factor(lower)


def memit(factor: Factor, weight: float, keys: Float[Tensor, "d_in n"]) -> Float[Tensor, "d_in n"]:
    """A = (weight C' + K K^T)^{-1} K, so that the update of W is R A^T (MEMIT eq. 14; C' is what was factored)."""
    keys = double(keys)
    d_in, n = keys.shape
    if n < d_in:
        scaled = factor.solve(keys) / weight
        gram = keys.T @ scaled
        gram.diagonal().add_(1)
        return torch.cholesky_solve(scaled.T, torch.linalg.cholesky((gram + gram.T) / 2)).T
    # As many keys as dimensions: the d_in x d_in system is the smaller one.
    lower = factor.lower.to(keys.device)
    system = weight * lower @ lower.T
    return torch.cholesky_solve(keys, torch.linalg.cholesky(system.addmm_(keys, keys.T)))


def rome_direction(factor: Factor | None, key: Float[Tensor, "d_in"]) -> Float[Tensor, "d_in"]:
    """u = C^{-1} k / |C^{-1} k| (ROME eq. 2); without statistics u = k / |k|."""
    key = double(key)
    u = key if factor is None else factor.solve(key[:, None])[:, 0]
    return u / u.norm()
