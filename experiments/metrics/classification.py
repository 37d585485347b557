"""Figures of a classification with abstentions, from its confusion matrix, with 95 % intervals.

A confusion matrix counts [..., true class, predicted class]; leading axes are separate matrices (bootstrap samples).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

SAMPLES = 2000
"""Bootstrap samples of an interval."""
_Z = 1.959963984540054  # 97.5 % of a normal distribution lie below


def confusion(true: Sequence[int], predicted: Sequence[int], classes: int) -> np.ndarray:
    """The confusion matrix, [classes + 1, classes + 1] counts; class -1 (no answer) has the last row and column."""
    counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    np.add.at(counts, (list(true), list(predicted)), 1)
    return counts


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 of each class, weighted by how often it is true (scikit-learn's f1_score with average="weighted")."""
    counts = counts.astype(float)
    true, predicted = counts.sum(-1), counts.sum(-2)
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    per_class = np.divide(2 * hits, true + predicted, out=np.zeros_like(hits), where=true + predicted > 0)
    return (true * per_class).sum(-1) / true.sum(-1)


def mcc(counts: np.ndarray) -> np.ndarray:
    """Matthews' correlation coefficient of several classes (Gorodkin 2004); 0 where all truths or all answers are alike."""
    counts = counts.astype(float)
    true, predicted = counts.sum(-1), counts.sum(-2)
    total = true.sum(-1)
    covariance = np.trace(counts, axis1=-2, axis2=-1) * total - (true * predicted).sum(-1)
    scale = np.sqrt((total**2 - (predicted**2).sum(-1)) * (total**2 - (true**2).sum(-1)))
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)


def wilson(hits: int, total: int) -> list[float]:
    """Wilson's 95 % interval of a share: [low, high]."""
    share, weight = hits / total, _Z**2 / total
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def bootstrap(figure: Callable[[np.ndarray], np.ndarray], counts: np.ndarray) -> list[float]:
    """Percentile-bootstrap 95 % interval of ``figure`` over :data:`SAMPLES` resamplings of the examples: [low, high]."""
    total = counts.sum()
    drawn = np.random.default_rng(0).multinomial(total, counts.ravel() / total, SAMPLES).reshape(-1, *counts.shape)
    return np.quantile(figure(drawn), [0.025, 0.975]).tolist()


def figures(true: Sequence[int], predicted: Sequence[int], classes: int) -> dict[str, float | list[float]]:
    """The figures of a classification: accuracy and f1 (shares of 1), mcc (from -1 to 1), each with its interval ``<name>_ci``.

    Intervals are Wilson's for the accuracy, bootstrap ones for the others. An example without an answer (-1) is wrong, and a
    class of its own to f1 and mcc.
    """
    counts = confusion(true, predicted, classes)
    hits, total = int(np.trace(counts)), int(counts.sum())
    result: dict[str, float | list[float]] = {"accuracy": hits / total, "accuracy_ci": wilson(hits, total)}
    for figure in (f1, mcc):
        result |= {figure.__name__: float(figure(counts)), f"{figure.__name__}_ci": bootstrap(figure, counts)}
    return result
