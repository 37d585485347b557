"""From the cases of a run to its summary: the published figures, and each metric's mean, standard error and number of cases."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.results.harmonic_score import harmonic_mean, harmonic_score
from experiments.results.names import GENERATION, GROUPS, IN_A_ROW, LABELS, OF_EDITS, PREFIXES, SCORED, UNSCALED
from experiments.results.tables import Cell, Table

Statistics = dict[str, dict[str, float | None]]
"""{key: {"mean", "se", "n"}}, what :func:`statistics` returns."""


def case_values(case: Mapping[str, Any]) -> dict[str, float]:
    """One number a metric for one case (rates from 0 to 1), from the content of its file. For each of :data:`names.PREFIXES`:

    * ``<p>_<group>_success``: share of prompts where the wanted target (new; for neighborhood the true one) is likelier than
      the other; ``_diff``: mean of its probability minus the other's, each the geometric mean over the target's tokens.
    * ``<p>_<group>_acc``: share of prompts (zsRE: of tokens) where the teacher-forced prediction is the wanted target.
    * ``<p>_<group>_generated`` (``_generated_starts``): share of prompts whose greedy continuation is the wanted target and
      stops (starts with it). ``_gap``: ``_acc`` minus ``_generated``, what teacher forcing promises and generation breaks.
      ``_generated_contains`` (--contains_length, and old folders): the target is anywhere in a long greedy continuation.
    * ``<p>_ngram_entropy`` (bits), ``_reference_score``, ``_essence_score``.

    ``time``: seconds that the edit of the case's whole batch took. ``rounding``: share of the weights' change that rounding to
    16 bits took. What a case lacks is left out.
    """
    values = {key: case[key] for key in ("time", "rounding") if key in case}
    for prefix in PREFIXES:
        measured = case.get(prefix, {})
        for group in GROUPS:
            for name, value in group_values(measured, group).items():
                values[f"{prefix}_{group}_{name}"] = value
        values |= {f"{prefix}_{name}": measured[name] for name in GENERATION if name in measured}
    return values


def group_values(measured: Mapping[str, Any], group: str) -> dict[str, float]:
    """What :func:`case_values` gives for one group at one time, without prefix and group in the names."""
    values = {}
    probs = measured.get(f"{group}_prompts_probs")
    if probs:
        new, true = (np.array([p[target] for p in probs]) for target in ("target_new", "target_true"))
        right, other = (true, new) if group == "neighborhood" else (new, true)
        values["success"] = float(np.mean(right < other))
        values["diff"] = float(np.mean(np.exp(-right) - np.exp(-other)))
    for name, key in (("acc", "correct"), ("generated", "generated_exact"), ("generated_starts", "generated_starts"),
                      ("generated_contains", "generated_contains")):
        flags = measured.get(f"{group}_prompts_{key}")
        if flags:
            values[name] = float(np.mean(flags))
    if "acc" in values and "generated" in values:
        values["gap"] = values["acc"] - values["generated"]
    return values


def collect(cases: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """From the :func:`case_values` of cases, each metric's values over the cases that have it."""
    lists: dict[str, list[float]] = {}
    for case in cases:
        for key, value in case.items():
            lists.setdefault(key, []).append(value)
    return lists


def published(lists: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """MEMIT's summary: {key: (mean, population standard deviation)}, times 100 and rounded to 2 decimals apart from ``time``
    and ``essence_score`` (the entropy, too, is times 100). ``<p>_score`` is the harmonic mean of the three rounded success
    means, with NaN. Only the published keys, and the same for retention."""
    names = [f"{p}_{g}_{m}" for p in PREFIXES for g in SCORED for m in ("success", "diff", "acc")]
    names += [f"{p}_{name}" for p in PREFIXES for name in GENERATION]
    summary = {}
    for key in ["time", *names]:
        if key in lists:
            mean, std = float(np.mean(lists[key])), float(np.std(lists[key]))
            summary[key] = (mean, std) if key.endswith(UNSCALED) else (round(100 * mean, 2), round(100 * std, 2))
    for prefix in PREFIXES:
        successes = [summary.get(f"{prefix}_{group}_success") for group in SCORED]
        if all(successes):
            summary[f"{prefix}_score"] = (harmonic_mean([mean for mean, _ in successes]), math.nan)
    return summary


def statistics(lists: Mapping[str, Sequence[float]]) -> Statistics:
    """Mean, standard error and number of cases of every metric, in the units of :func:`published`, not rounded.

    se: standard error of the mean over cases (None for one case). Cases of one batch share their edit, so for large batches
    it speaks of other cases under the same edit, not of other edits. ``<p>_score`` is the harmonic mean of the three success
    means, and ``<p>_score_acc`` that of the three accuracies (zsRE's score); their errors are jackknife estimates.
    """
    result = {}
    for key, values in lists.items():
        scale = 1 if key.endswith(UNSCALED) else 100
        n = len(values)
        result[key] = {"mean": scale * float(np.mean(values)),
                       "se": scale * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None, "n": n}
    for prefix in PREFIXES:
        for name, measure in (("score", "success"), ("score_acc", "acc")):
            parts = [lists.get(f"{prefix}_{group}_{measure}") for group in SCORED]
            if all(parts):
                result[f"{prefix}_{name}"] = harmonic_score(parts)
    return result


def comparison(runs: Sequence[Statistics], keys: Sequence[str] = tuple(LABELS)) -> Table:
    """Runs side by side: a metric a row, with mean and standard error of each run before the edit, after it, and later.

    keys: of these metrics alone.
    """
    columns = [(number, prefix, statistics) for number, statistics in enumerate(runs, 1) for prefix in PREFIXES]
    rows: list[list[Cell | str | None]] = [["cases"] + [str(_cases(prefix, run) or "") for _, prefix, run in columns]]
    for key, label in LABELS.items():
        if key not in keys:
            continue
        rows.append([label, *(Cell.of(run.get(f"{prefix}_{key}")) for _, prefix, run in columns)])
    for key, label in OF_EDITS.items():
        rows.append([label, *(Cell.of(run.get(key)) if prefix == _edited(run) else None for _, prefix, run in columns)])
    rows = [row for row in rows if any(row[1:]) or row[0] in ("cases", OF_EDITS["time"])]
    head = ["in %", *(f"[{number}] {prefix}" for number, prefix, _ in columns)]
    # Folders of the original code have nothing from before the edit.
    filled = [place for place in range(len(head)) if any(row[place] for row in rows)]
    return Table([head[place] for place in filled], [[row[place] for place in filled] for row in rows])


def in_rows(runs: Sequence[Statistics]) -> Table:
    """A run a row: what it ends with, after the edit or at the end of a sequence."""
    rows = []
    for number, run in enumerate(runs, 1):
        prefix = next(prefix for prefix in reversed(PREFIXES) if _cases(prefix, run) or prefix == PREFIXES[0])
        rows.append([f"[{number}] {prefix}", str(_cases(prefix, run)),
                     *(Cell.of(run.get(f"{prefix}_{key}")) for key in IN_A_ROW.values())])
    head = ["in %", "cases", *IN_A_ROW]
    filled = [place for place in range(len(head)) if any(row[place] for row in rows)]
    return Table([head[place] for place in filled], [[row[place] for place in filled] for row in rows])


def _cases(prefix: str, statistics: Statistics) -> int:
    """How many were measured at this time."""
    return max((value["n"] for key, value in statistics.items() if key.startswith(f"{prefix}_rewrite")), default=0)


def _edited(statistics: Statistics) -> str:
    """When edited models were first measured."""
    return "post" if _cases("post", statistics) else "retention"
