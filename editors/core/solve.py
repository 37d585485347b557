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

from common.errors import UserError


@dataclass(frozen=True, eq=False)
class Factor:
    """Lower Cholesky factor of C' = C + ridge I, float64, kept on the CPU (d_in^2 numbers a layer are too many for a GPU)."""

    lower: Float[Tensor, "d_in d_in"]

    def solve(self, right: Float[Tensor, "d_in n"]) -> Float[Tensor, "d_in n"]:
        """C'^{-1} right, on right's device, float64."""
        right = double(right)
        return torch.cholesky_solve(right, self.lower.to(right.device))

    def plus(self, keys: Float[Tensor, "d_in n"]) -> Factor:
        """The factor of this matrix + K K^T, for about d_in^2 max(n, 128) operations rather than d_in^3.

        Block by block, an orthogonal matrix turns [L_b K_b] into [L'_b 0], and the rows below with it; adding by rotations
        is backward stable.
        """
        lower, keys = self.lower.clone(), double(keys).to("cpu", copy=True)
        d_in, n = keys.shape
        width = max(n, 128)
        for start in range(0, d_in, width):
            stop = min(start + width, d_in)
            block = torch.cat([lower[start:stop, start:stop], keys[start:stop]], 1)
            rotation, upper = torch.linalg.qr(block.T, mode="complete")
            lower[start:stop, start:stop] = upper[: stop - start].T
            below = torch.cat([lower[stop:, start:stop], keys[stop:]], 1) @ rotation
            lower[stop:, start:stop], keys[stop:] = below[:, : stop - start], below[:, stop - start :]
        return Factor((lower * lower.diagonal().sign()).contiguous())  # the positive diagonal that a Cholesky factor has


DEPENDENT = 1e-12
"""A key of which less than this share (squared) is new beside the other keys depends on them."""


def double(x: Tensor) -> Tensor:
    """x in float64, on its own device where that has float64 (MPS has not)."""
    return x.to("cpu" if x.device.type == "mps" else x.device, torch.float64)


def factorise(moment: Float[Tensor, "d_in d_in"], ridge: float = 0.0, where: str = "", count: int | None = None) -> Factor:
    """Cholesky factor of moment + ridge I.

    where, count: the layer and the number of keys seen, for the error.
    Raises UserError if the matrix is not positive definite: says the rank and what to do.
    """
    matrix = moment.to("cpu", torch.float64)  # a copy unless it is float64 already; not changed below
    if ridge:
        matrix = matrix + ridge * torch.eye(len(matrix), dtype=torch.float64)
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if failed or not torch.isfinite(lower).all():
        if not torch.isfinite(matrix).all():
            raise UserError(f"{where}: the second moment holds NaN or infinity: collect the statistics again")
        rank = int(torch.linalg.matrix_rank(matrix, hermitian=True))
        if count is not None and not ridge:
            rank = min(rank, count)  # what is above it are the sums' rounding errors
        after_keys = "" if count is None else f" after {count} keys"
        raise UserError(
            f"{where}: the second moment is not positive definite (rank {rank} of {len(matrix)}{after_keys}): raise "
            "mom2_n_samples, collect in float64, or set relative_ridge (1e-3, say)"
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


def emmet(factor: Factor, weight: float, keys: Float[Tensor, "d_in n"], slack: float) -> Float[Tensor, "d_in n"]:
    """A = S^{-1} K (K^T S^{-1} K + slack I)^{-1}, S = weight C' (Gupta et al. 2024, eq. of EMMET).

    slack is EMMET's emmet_lambda, which a single key goes without. With slack 0 the constraint is exact, W' K = W K + R; with
    slack above 0 this is MEMIT's solution for slack S. Raises UserError when dependent keys leave no solution.
    """
    keys = double(keys)
    scaled = factor.solve(keys) / weight
    gram = keys.T @ scaled
    gram = (gram + gram.T) / 2
    if keys.shape[1] > 1:
        gram.diagonal().add_(slack)
    lower, failed = torch.linalg.cholesky_ex(gram)
    if failed or (lower.diagonal().square() <= DEPENDENT * gram.diagonal()).any():  # rounding may leave a small pivot
        raise UserError(
            f"the keys of the {keys.shape[1]} requests are linearly dependent (two requests about one subject?), so their "
            "equality constraints cannot all hold: set emmet_lambda above 0, or remove the doubles"
        )
    return torch.cholesky_solve(scaled.T, lower).T


@dataclass(frozen=True, eq=False)
class Gram:
    """K K^T over keys, in the dtype it was begun in, kept on the CPU."""

    matrix: Float[Tensor, "d_in d_in"]

    def plus(self, keys: Float[Tensor, "d_in n"]) -> Gram:
        """K K^T with these keys as well."""
        keys = keys.to(self.matrix)
        return Gram(self.matrix.addmm(keys, keys.T))


@dataclass(frozen=True, eq=False)
class Projector:
    """The orthogonal projection onto the span of `basis`, or onto its complement; of the two the smaller is kept."""

    basis: Float[Tensor, "d_in r"]
    complement: bool

    def __call__(self, x: Float[Tensor, "d_in n"]) -> Float[Tensor, "d_in n"]:
        x = double(x)
        basis = self.basis.to(x)
        inside = basis @ (basis.T @ x)
        return x - inside if self.complement else inside

    def dense(self) -> Float[Tensor, "d_in d_in"]:
        """The projection as a matrix."""
        inside = self.basis @ self.basis.T
        return torch.eye(len(inside), dtype=inside.dtype) - inside if self.complement else inside

    @property
    def rank(self) -> int:
        """Dimension of what is projected onto."""
        d_in, r = self.basis.shape
        return d_in - r if self.complement else r


def null_space(moment: Float[Tensor, "d_in d_in"], threshold: float) -> Projector:
    """The directions in which preserved keys are small: eigenvalues of their C below `threshold` (AlphaEdit eq. 8)."""
    values, vectors = torch.linalg.eigh(moment.to("cpu", torch.float64))
    kept = int((values < threshold).sum())  # ascending
    complement = kept > len(values) // 2
    basis = vectors[:, kept:] if complement else vectors[:, :kept]
    return Projector(basis.contiguous(), complement)  # laid out as it is after a restart: sums then have the same bits


def alphaedit_as_published(
    projector: Projector, earlier: Gram, l2: float, keys: Float[Tensor, "d_in n"]
) -> Float[Tensor, "d_in n"]:
    """A = (P (K K^T + K_p K_p^T) + l2 I)^{-1} P K by LU in float32; earlier: K_p K_p^T, of keys as they are.

    In exact arithmetic what `memit` gives for projected keys; its cost grows with d_in^3 for every batch.
    """
    keys = keys.float()
    projection, gram = projector.dense().to(keys), earlier.matrix.to(keys)
    system = projection @ gram.addmm(keys, keys.T)
    system.diagonal().add_(l2)
    return torch.linalg.solve(system, projection @ keys)


def rect(
    update: Float[Tensor, "*shape"], weight: Float[Tensor, "*shape"], share: float, absolute: bool = False
) -> Float[Tensor, "*shape"]:
    """Only the `share` of the update that is largest relative to the weight; 0 elsewhere (RECT, Gu et al. 2024).

    Relative: as published |update / (weight + 1e-8)|, which has no bound where the weight is near -1e-8; absolute:
    |update| / (|weight| + 1e-8).
    """
    weight = weight.to(update)
    relative = (update / ((weight.abs() if absolute else weight) + 1e-8)).abs()
    smallest_kept = relative.flatten().kthvalue(max(1, int((1 - share) * relative.numel()))).values
    return torch.where(relative >= smallest_kept, update, 0)


def prune(change: Float[Tensor, "rows columns"], original: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """The change, each singular value s above the original weight's largest, m, made ln(s) - ln(m) + m.

    Source: PRUNE (Ma et al. 2024).
    """
    left, values, right = torch.linalg.svd(double(change), full_matrices=False)
    most = torch.linalg.matrix_norm(double(original), 2)
    return (left * torch.where(values > most, (values / most).log() + most, values)) @ right
