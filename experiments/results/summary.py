"""From the cases of a run to its summary: the published figures, and each metric's mean, standard error and number of cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PREFIXES = ("pre", "post", "retention")
"""Before the edit, right after it, and after later edits went into the same model."""
GROUPS = ("rewrite", "paraphrase", "neighborhood", "attribute")
SCORED = GROUPS[:3]
"""Groups that the harmonic score is made of."""
GENERATION = ("ngram_entropy", "reference_score", "essence_score")
UNSCALED = ("time", "essence_score", "perplexity")
"""Metrics that are not given times 100."""


def case_values(case: Mapping[str, Any]) -> dict[str, float]:
    """One number a metric for one case (rates from 0 to 1), from the content of its file. For each of :data:`PREFIXES`:

    * ``<p>_<group>_success``: share of prompts where the wanted target (new; for neighborhood the true one) is likelier than
      the other; ``_diff``: mean of its probability minus the other's, each the geometric mean over the target's tokens.
    * ``<p>_<group>_acc``: share of prompts (zsRE: of tokens) where the teacher-forced prediction is the wanted target.
    * ``<p>_<group>_generated`` (``_generated_starts``): share of prompts whose greedy continuation is the wanted target and
      stops (starts with it). ``_gap``: ``_acc`` minus ``_generated``, what teacher forcing promises and generation breaks.
      ``_generated_contains`` (--contains_length, and old folders): the target is anywhere in a long greedy continuation.
    * ``<p>_ngram_entropy`` (bits), ``_reference_score``, ``_essence_score``.

    ``time``: seconds that the edit of the case's whole batch took. ``rounding``: share of the weights' change that rounding to 16
    bits took. What a case lacks is left out.
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
        wanted, other = (true, new) if group == "neighborhood" else (new, true)
        values["success"] = float(np.mean(wanted < other))
        values["diff"] = float(np.mean(np.exp(-wanted) - np.exp(-other)))
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
            summary[f"{prefix}_score"] = (_harmonic([mean for mean, _ in successes]), math.nan)
    return summary


def statistics(lists: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float | None]]:
    """{key: {"mean", "se", "n"}} of every metric, in the units of :func:`published`, not rounded.

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
                result[f"{prefix}_{name}"] = _score(parts)
    return result


def _score(parts: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Harmonic mean of the parts' means, times 100, and its jackknife standard error (None where a part lacks cases)."""
    n = min(map(len, parts))
    score = 100 * _harmonic([np.mean(part) for part in parts])
    if n == 1 or n < max(map(len, parts)):
        return {"mean": score, "se": None, "n": n}
    values = np.array(parts)
    left_out = np.array([100 * _harmonic(means) for means in ((values.sum(1, keepdims=True) - values) / (n - 1)).T])
    return {"mean": score, "se": float(math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())), "n": n}


def _harmonic(values: Sequence[float]) -> float:
    """0 if any value is 0, the limit."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)
