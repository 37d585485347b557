"""Linear probes: for every attention head, does its output tell the new fact from the old one?

One logistic regression a head, as scikit-learn fits it with its defaults (C = 1, the intercept without penalty, no scaling):

    minimise  sum_i log(1 + exp(-y_i (w x_i + b))) + |w|^2 / 2

but all heads at once, by Newton's method in float64 to the minimum itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import EditingError

STEPS = 100
GRADIENT = 1e-9
"""Largest entry of a gradient, relative to the number of examples, at which a probe is done."""
CHUNK_FLOATS = 2**24


@dataclass(frozen=True)
class Probes:
    weight: Float[Tensor, "probes d"]
    intercept: Float[Tensor, " probes"]

    def predict(self, x: Float[Tensor, "n probes d"]) -> Bool[Tensor, "n probes"]:
        """Class 1 where w x + b > 0."""
        return torch.einsum("npd,pd->np", x.to(self.weight), self.weight) + self.intercept > 0


def fit(x: Float[Tensor, "n probes d"], label: Bool[Tensor, " n"]) -> Probes:
    """The probes of all columns p of x, float64 on x's device. Raises EditingError if only one class is there."""
    if label.all() or not label.any():
        raise EditingError("probes need examples of both classes")
    n, probes, d = x.shape
    step = max(1, CHUNK_FLOATS // ((d + 1) * (n + d + 1)))
    parts = [_newton(x[:, start : start + step].transpose(0, 1).double(), label) for start in range(0, probes, step)]
    solution = torch.cat(parts)
    return Probes(solution[:, :d], solution[:, d])


def _newton(x: Float[Tensor, "probes n d"], label: Bool[Tensor, " n"]) -> Float[Tensor, "probes d_and_1"]:
    """Newton's method with a backtracking line search; the objective is strictly convex where both classes are there."""
    probes, n, d = x.shape
    x = torch.cat([x, x.new_ones(probes, n, 1)], 2)
    sign = (2.0 * label.to(x) - 1)[None]
    penalty = x.new_ones(d + 1)
    penalty[d] = 0
    theta = x.new_zeros(probes, d + 1)

    def value(theta: Tensor) -> Float[Tensor, " probes"]:
        margin = sign * (x @ theta[..., None])[..., 0]
        return -torch.nn.functional.logsigmoid(margin).sum(1) + (penalty * theta**2).sum(1) / 2

    now = value(theta)
    for _ in range(STEPS):
        margin = sign * (x @ theta[..., None])[..., 0]
        miss = torch.sigmoid(-margin)
        gradient = penalty * theta - ((sign * miss)[:, None] @ x)[:, 0]
        if gradient.abs().max() <= GRADIENT * n:
            break
        hessian = (x * (miss * (1 - miss))[..., None]).transpose(1, 2) @ x + torch.diag(penalty)
        # The intercept has no penalty: where all margins are large its curvature vanishes to below rounding.
        hessian[:, d, d] += 1e-12
        direction = torch.linalg.solve(hessian, gradient)
        size = x.new_ones(probes)
        for _ in range(40):
            tried = theta - size[:, None] * direction
            fresh = value(tried)
            worse = fresh > now - 1e-4 * size * (gradient * direction).sum(1)
            worse &= (gradient.abs().amax(1) > GRADIENT * n) & (size > 1e-8)
            if not worse.any():
                break
            size = torch.where(worse, size / 2, size)
        better = fresh <= now
        theta, now = torch.where(better[:, None], tried, theta), torch.where(better, fresh, now)
        if not better.any():
            break
    return theta


def split(voters: Sequence[int], share: float, seed: int | None) -> tuple[list[int], list[int]]:
    """(training facts, validation facts): the first int(n (1 - share)) of the voters, shuffled with `seed` (None: as they stand).

    By fact, so that the two sentences of a fact never come apart. Raises EditingError where either part would be empty.
    """
    order = list(voters)
    if seed is not None:
        random.Random(seed).shuffle(order)
    training = int(len(order) * (1 - share))
    if not 0 < training < len(order):
        raise EditingError(
            f"{len(order)} voting facts can't be split into training and validation (share {share:g}): edit more facts together, let "
            'all vote ("voters": "all"), or give the heads'
        )
    return order[:training], order[training:]


def rank(accuracy: Float[Tensor, "layers heads"], number: int) -> list[tuple[int, int]]:
    """The `number` best (layer, head), best first; of equals the lower layer and head first. EditingError if there are fewer heads."""
    layers, heads = accuracy.shape
    if not 0 < number <= layers * heads:
        raise EditingError(f"top_num_heads: {number} of the model's {layers * heads} heads can't be chosen")
    order = torch.argsort(accuracy.flatten(), descending=True, stable=True)[:number]
    return [divmod(int(i), heads) for i in order]
