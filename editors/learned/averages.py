"""Running means of what episodes report, and the decision to stop."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.errors import UserError


@dataclass
class Averages:
    """Means over episodes. `nll/x` is weighted by `n_tokens/x` and gives `perplexity/x` too, `edit/x` by the number of rows, or
    by `n_rows/edit/x` where it is of some of them."""

    sums: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def add(self, stats: Mapping[str, float], rows: int = 1, episodes: int = 1) -> None:
        """An episode, or the means of several and the numbers of their tokens.

        rows: inputs on which success was measured, in all.
        """
        for key, value in stats.items():
            weight = episodes
            if key.startswith("n_rows/") or math.isnan(value) and not key.startswith("loss/"):
                continue  # only weighs another; or there was nothing that it could be measured on
            if key.startswith("nll/"):
                weight = stats.get(f"n_tokens/{key[4:]}", 1)
            elif key.startswith("n_tokens/"):
                value = value / episodes
            elif key.startswith("edit/"):
                weight = stats.get(f"n_rows/{key}", rows)
            if weight:
                self.sums[key] = self.sums.get(key, 0.0) + weight * value
                self.weights[key] = self.weights.get(key, 0.0) + weight

    def means(self, suffix: str = "") -> dict[str, float]:
        """{key with suffix: mean}; empty if nothing was added."""
        means = {key: total / self.weights[key] for key, total in self.sums.items()}
        perplexities = {f"perplexity/{key[4:]}": _exp(mean) for key, mean in means.items() if key.startswith("nll/")}
        return {key + suffix: value for key, value in (means | perplexities).items()}


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


@dataclass
class EarlyStop:
    """Stops once `patience` iterations have passed without a new lowest value; stays stopped."""

    patience: int
    best: float = math.inf
    best_iteration: int | None = None
    stopped: bool = False

    def update(self, iteration: int, value: float) -> bool:
        """Whether `value` is a new best. NaN never is."""
        is_best = value < self.best
        if is_best:
            self.best, self.best_iteration = value, iteration
        self.stopped = self.stopped or iteration - (self.best_iteration or 0) >= self.patience
        return is_best

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, JSON-ready."""
        return {
            "best": None if math.isinf(self.best) else self.best,
            "best_iteration": self.best_iteration,
            "stopped": self.stopped,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave. Raises UserError for anything else."""
        if not {"best", "best_iteration", "stopped"} <= state.keys():
            raise UserError("the checkpoint tells nothing of early stopping")
        self.best = math.inf if state["best"] is None else state["best"]
        self.best_iteration, self.stopped = state["best_iteration"], state["stopped"]
