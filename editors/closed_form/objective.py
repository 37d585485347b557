"""What an update does to the two terms of its objective, kept with each edit as the unified-editing code keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editors.changes import Dense, LowRank
from editors.core.solve import double


@dataclass(frozen=True)
class Goal:
    """What one layer is to write."""

    keys: Float[Tensor, "d_in n"]
    residual: Float[Tensor, "d_out n"]
    """R, what is to be added to W K."""
    inside_norms: dict[str, float]
    """Mean column norms of what led there, by published name."""

    @classmethod
    def of(
        cls, keys: Float[Tensor, "d_in n"], residual: Float[Tensor, "d_out n"], adjusted: Float[Tensor, "d_in n"],
        targets: Float[Tensor, "n d_out"], current: Float[Tensor, "n d_out"],
    ) -> Goal:
        """adjusted: A of the update R A^T; targets, current: z, and the hidden states that it shall replace."""
        columns = {"zs": targets.T, "cur_zs": current.T, "layer_ks": keys, "residual": residual, "adj": adjusted}
        return cls(keys, residual, {f"{name}_norm": _mean_length(matrix) for name, matrix in columns.items()})


def objective_distances(
    goal: Goal, change: LowRank | Dense, weight: Tensor, in_first: bool, moment: Float[Tensor, "d_in d_in"] | None = None
) -> dict[str, Any]:
    """JSON-ready, with the published names; vectors' lengths are Euclidean, matrices' norms Frobenius.

    new_edit_distance, old_edit_distance: mean over the requests of |W' k - (W k + r)| for the new weight W' and for W itself,
    the `weight`. (The published code compares these outputs of the MLP with states of the residual stream, which they never
    come near.)
    preservation_distance: root mean square of |(W' - W) k| over all keys of the statistics, from their second moment; null
    without. (Published: the mean over a sample of them.)
    delta_norm, new_weights_norm, original_weights_norm: |W' - W|, |W'|, |W|. inside_norms: of the targets, the states they
    replace, the keys, R and A.
    """
    old, delta = weight.detach(), change.dense(weight.device)
    keys, residual = goal.keys.to(delta), goal.residual.to(delta)
    written = (delta.T if in_first else delta) @ keys
    return {
        "preservation_distance": None if moment is None else _preservation(change, in_first, double(moment)),
        "new_edit_distance": _mean_length(written - residual),
        "old_edit_distance": _mean_length(residual),
        "delta_norm": float(delta.norm()),
        "new_weights_norm": float((old + delta).norm()),
        "original_weights_norm": float(old.to(delta).norm()),
        "inside_norms": goal.inside_norms,
    }


def _preservation(change: LowRank | Dense, in_first: bool, moment: Float[Tensor, "d_in d_in"]) -> float:
    """The square root of mean |D k|^2 = tr(D C D^T), C = mean k k^T."""
    if isinstance(change, Dense):
        delta = change.delta.to(moment)
        delta = delta.T if in_first else delta
        total = ((delta @ moment) * delta).sum()
    else:  # D = out in^T, of few columns
        outer, inner = (x.to(moment) for x in ((change.right, change.left) if in_first else (change.left, change.right)))
        total = ((outer.T @ outer) * (inner.T @ moment @ inner)).sum()
    return float(total.clamp_min(0).sqrt())


def _mean_length(columns: Float[Tensor, "d n"]) -> float:
    return float(torch.linalg.vector_norm(columns, dim=0).mean())
