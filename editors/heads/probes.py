"""Linear probes: for every attention head, does its output tell the new fact from the old one?

One logistic regression a head, as scikit-learn fits it with its defaults (C = 1, the intercept without penalty, no scaling):

    minimise  sum_i log(1 + exp(-y_i (w x_i + b))) + |w|^2 / 2

but all heads at once, by Newton's method in float64 to the minimum itself.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.errors import UserError

STEPS = 100
GRADIENT = 1e-6
"""Largest entry of a gradient, relative to the number of examples, at which a probe is done."""
SHRINK = 0.1
"""Of a gradient, by a step: more, and the next step has a Hessian of its own."""
CHUNK_FLOATS = 2**20


@dataclass(frozen=True)
class Probes:
    """Weights and intercepts of logistic regressions, one a probe."""

    weight: Float[Tensor, "probes d"]
    intercept: Float[Tensor, " probes"]

    def predict(self, x: Float[Tensor, "n probes d"]) -> Bool[Tensor, "n probes"]:
        """Class 1 where w x + b > 0."""
        return torch.einsum("npd,pd->np", x.to(self.weight), self.weight) + self.intercept > 0


def fit(x: Float[Tensor, "n probes d"], label: Bool[Tensor, " n"]) -> Probes:
    """The probes of all columns p of x, float64 on x's device. Raises UserError if only one class is there, or x is
    not finite."""
    if label.all() or not label.any():
        raise UserError("probes need examples of both classes")
    if not torch.isfinite(x).all():
        raise UserError("head outputs are not finite: load the model in a wider dtype")
    n, probes, d = x.shape
    step = max(1, CHUNK_FLOATS // ((d + 1) * (n + d + 1)))
    parts = [_newton(x[:, start : start + step].transpose(0, 1), label) for start in range(0, probes, step)]
    solution = torch.cat(parts)
    return Probes(solution[:, :d], solution[:, d])


def _newton(x: Float[Tensor, "probes n d"], label: Bool[Tensor, " n"]) -> Float[Tensor, "probes d_and_1"]:
    """Newton's method with a backtracking line search; the objective is strictly convex where both classes are there.

    Gradients are float64. Hessians, most of the work, are float32 (but for those that float32 can't factorise: large or nearly
    collinear features) and stay for as long as the steps with them shrink the gradient: that changes the way to the minimum,
    not the minimum.
    """
    probes, n, d = x.shape
    rough = torch.cat([x.float(), x.new_ones(probes, n, 1, dtype=torch.float32)], 2)
    x = torch.cat([x.double(), x.new_ones(probes, n, 1, dtype=torch.float64)], 2)
    sign = (2.0 * label.to(x) - 1)[None]
    penalty = x.new_ones(d + 1)
    penalty[d] = 0
    theta, lower = x.new_zeros(probes, d + 1), x.new_empty(probes, d + 1, d + 1)
    last, fresh = x.new_zeros(probes), torch.zeros(probes, dtype=torch.bool, device=x.device)

    def margins(theta: Tensor) -> Float[Tensor, "probes n"]:
        return sign * torch.bmm(x, theta[..., None])[..., 0]

    def loss_of(theta: Tensor, margin: Tensor) -> Float[Tensor, " probes"]:
        return -torch.nn.functional.logsigmoid(margin).sum(1) + (penalty * theta**2).sum(1) / 2

    def factor(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Cholesky factors of the Hessians of these probes, in x's dtype, and which of them there is none of."""
        curvature = (miss * (1 - miss))[which].to(x)
        hessian = torch.bmm((x[which] * curvature[..., None]).transpose(1, 2), x[which]) + torch.diag(penalty.to(x))
        # The intercept has no penalty: where all margins are large its curvature vanishes to below rounding.
        hessian[:, d, d] += 1e-6
        factors, failed = torch.linalg.cholesky_ex(hessian)
        return factors, failed != 0

    margin = margins(theta)
    loss = loss_of(theta, margin)
    for _ in range(STEPS):
        miss = torch.sigmoid(-margin)
        gradient = penalty * theta - torch.bmm((sign * miss)[:, None], x)[:, 0]
        size = gradient.abs().amax(1)
        active = size > GRADIENT * n
        stale = (active & (size > SHRINK * last)).nonzero()[:, 0]
        if not active.any():
            break
        fresh.zero_()
        if len(stale):
            factors, failed = factor(rough, stale)
            lower[stale], fresh[stale] = factors.double(), True
            if failed.any():
                lower[stale[failed]] = factor(x, stale[failed])[0]
        direction = torch.cholesky_solve(gradient[..., None], lower)[..., 0]
        descent, step = (gradient * direction).sum(1), x.new_ones(probes)
        for _ in range(40):
            tried = theta - step[:, None] * direction
            tried_margin = margins(tried)
            tried_loss = loss_of(tried, tried_margin)
            worse = active & (tried_loss > loss - 1e-4 * step * descent + 1e-12 * loss.abs())
            if not worse.any():
                break
            step = torch.where(worse, step / 2, step)
        better = active & ~worse
        if not (better | (active & ~fresh)).any():
            break
        theta, loss = torch.where(better[:, None], tried, theta), torch.where(better, tried_loss, loss)
        margin = torch.where(better[:, None], tried_margin, margin)
        last = torch.where(better, size, 0.0)  # no step: another Hessian
    return theta


def enough(voters: int, share: float) -> bool:
    """Whether `split` leaves facts in both parts."""
    return 0 < int(voters * (1 - share)) < voters


def split(voters: Sequence[int], share: float, seed: int | None) -> tuple[list[int], list[int]]:
    """(training facts, validation facts): the first int(n (1 - share)) of the voters, shuffled with `seed` (None: as they
    stand).

    By fact, so that the two sentences of a fact never come apart. Raises UserError where either part would be empty.
    """
    order = list(voters)
    if seed is not None:
        random.Random(seed).shuffle(order)
    training = int(len(order) * (1 - share))
    if not enough(len(order), share):
        raise UserError(
            f"{len(order)} voting facts can't be split into training and validation (share {share:g}): edit more facts "
            'together, let all vote ("voters": "all"), or give the heads'
        )
    return order[:training], order[training:]


def rank(accuracy: Float[Tensor, "layers heads"], number: int) -> list[tuple[int, int]]:
    """The `number` best (layer, head), best first; of equals the lower layer and head first. UserError if there are fewer
    heads."""
    layers, heads = accuracy.shape
    if not 0 < number <= layers * heads:
        raise UserError(f"top_num_heads: {number} of the model's {layers * heads} heads can't be chosen")
    order = torch.argsort(accuracy.flatten(), descending=True, stable=True)[:number]
    return [divmod(int(i), heads) for i in order]
