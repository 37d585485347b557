"""What sequential editing does and undoes: current-edit curves, retention, and forgotten facts.

Definitions: Gupta, Rao, Anumanchipalli 2024, "Model editing at scale leads to gradual and catastrophic forgetting", as its
plotting scripts compute them. Edits are counted from 1, in the order in which they were made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.results import summary
from experiments.results.names import GROUPS

BUCKET, WINDOW = 5, 10
"""Edits that a point of a current-edit curve is the mean of, and points that its trailing average takes."""

History = Mapping[int, Mapping[int, Mapping[str, float]]]
"""{edits in the model: {edit: its :func:`measures` then}}."""


def measures(measured: Mapping[str, Any], last_token: bool = False) -> dict[str, float]:
    """``<group>_<measure>`` of one case at one time, see :func:`summary.case_values`, and ``right``: 1 if every token of the
    new target is predicted (teacher-forced), else 0. What the case lacks is left out.

    last_token: as published, only the last token of zsRE's answers counts, but for neighborhood.
    """
    values = {}
    for group in GROUPS:
        counted = measured
        if last_token and group != "neighborhood" and f"{group}_prompts_probs" not in measured:
            key = f"{group}_prompts_correct"
            counted = {key: measured[key][-1:]} if key in measured else {}
        values |= {f"{group}_{name}": value for name, value in summary.group_values(counted, group).items()}
    if "rewrite_acc" in values:
        values["right"] = float(values["rewrite_acc"] == 1)
    return values


def bucket_means(values: Sequence[float | None], size: int = BUCKET) -> tuple[np.ndarray, np.ndarray]:
    """(edits, means): the mean of every ``size`` values, over those that are no None (NaN if all are), and the number of edits
    up to its end. A last bucket that is not full is left out."""
    ends = range(size, len(values) + 1, size)
    return np.array(ends, dtype=int), np.array([_mean(values[end - size:end]) for end in ends])


def moving_average(values: Sequence[float], window: int = WINDOW) -> np.ndarray:
    """Each value's mean with the ``window - 1`` before it; at the beginning with as many as there are. NaN are passed over."""
    return np.array([_mean(values[max(0, end - window):end]) for end in range(1, len(values) + 1)])


def _mean(values: Sequence[float | None]) -> float:
    numbers = [value for value in values if value is not None and not np.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else np.nan


def retention_curve(history: History, key: str) -> list[tuple[int, float, float | None]]:
    """(edits in the model, mean, its standard error) in percent of a measure over the earlier edits, wherever it was taken.

    key: ``<group>_<measure>``, or "score", the harmonic mean of the successes of rewrite, paraphrase and neighborhood.
    """
    curve = []
    for edits, cases in sorted(history.items()):
        lists = summary.collect([{f"retention_{name}": value for name, value in case.items()} for case in cases.values()])
        statistic = summary.statistics(lists).get(f"retention_{key}")
        if statistic is not None:
            curve.append((edits, statistic["mean"], statistic["se"]))
    return curve


@dataclass(frozen=True)
class Forgetting:
    """Facts that were learnt, and when they were first found forgotten; one that comes back later stays forgotten."""

    learnt: np.ndarray
    """Edits that were right just after their own batch, ascending."""
    forgotten: np.ndarray
    """[facts, 2]: edit, and edits in the model when it was first found wrong (``forget_index``), by that."""

    @property
    def lengths(self) -> np.ndarray:
        """``forget_len``: later edits that a forgotten fact withstood, as far as the times of measuring tell."""
        return self.forgotten[:, 1] - self.forgotten[:, 0]

    def share(self, edits: int) -> tuple[float, float]:
        """Facts forgotten up to a number of edits, in percent of these edits, and of those among them that were learnt (0 where
        none was)."""
        forgotten = int((self.forgotten[:, 1] <= edits).sum())
        learnt = int((self.learnt <= edits).sum())
        return 100 * forgotten / edits, 100 * forgotten / learnt if learnt else 0.0


def forgetting(cases: Sequence[Mapping[str, float]], history: History) -> Forgetting:
    """What was learnt, and what of it is forgotten later. cases: the measures of edit 1, 2, ... right after its batch."""
    learnt = [edit for edit, case in enumerate(cases, 1) if case.get("right")]
    forgotten: dict[int, int] = {}
    for edits, measured in sorted(history.items()):
        for edit in learnt:
            if edit not in forgotten and measured.get(edit, {}).get("right") == 0:
                forgotten[edit] = edits
    pairs = sorted(forgotten.items(), key=lambda pair: pair[::-1])
    return Forgetting(np.array(learnt, dtype=int), np.array(pairs, dtype=int).reshape(-1, 2))
