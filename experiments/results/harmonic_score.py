"""The score of the field: the harmonic mean of efficacy, paraphrase and neighbourhood (Meng et al. 2022), and its error."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def harmonic_mean(values: Sequence[float]) -> float:
    """0 if any value is 0, the limit."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def harmonic_score(parts: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """{"mean", "se", "n"}: harmonic mean of the means of parts (rates from 0 to 1 over cases), times 100, and its jackknife
    standard error; that is None for a single case, or where a part lacks cases."""
    n = min(map(len, parts))
    score = 100 * harmonic_mean([np.mean(part) for part in parts])
    if n == 1 or n < max(map(len, parts)):
        return {"mean": score, "se": None, "n": n}
    left_out = np.array([100 * harmonic_mean(means) for means in means_without_one(np.array(parts)).T])
    return {"mean": score, "se": jackknife_error(left_out), "n": n}


def means_without_one(values: Float[np.ndarray, "parts cases"]) -> Float[np.ndarray, "parts cases"]:
    """Each part's mean over all cases but the one in the column."""
    return (values.sum(1, keepdims=True) - values) / (values.shape[1] - 1)


def jackknife_error(left_out: Float[np.ndarray, " cases"]) -> float:
    """Standard error of a statistic, from its values without each of the cases (Tukey)."""
    n = len(left_out)
    return math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
