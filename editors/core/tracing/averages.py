"""Average indirect effects, and the layers to edit that follow from them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from common.errors import UserError

from editors.core.tracing.scores import KINDS, SEVERED

CLASSES = ("first subject token", "middle subject tokens", "last subject token", "first subsequent token", "further tokens",
           "last token")
"""Each token from the subject on is of one; where two fit, the later counts, but tokens of the subject stay the subject's."""
LAST_SUBJECT = CLASSES.index("last subject token")
CONFIDENCE = 1.96
"""Standard errors on either side of a mean: 95 %."""
MAX_LAYERS = 5
"""Blocks of a proposed range, at most."""
SHARE = 0.5
"""Of the peak's effect: what a block must reach to be edited together with it."""


@dataclass(frozen=True)
class FactScores:
    """The scores of a known fact as they are averaged."""

    subject: tuple[int, int]
    """First token, and the one behind the last."""
    high: float
    low: float
    scores: Mapping[str, Float[np.ndarray, "tokens layers"]]


def token_classes(subject: tuple[int, int], tokens: int) -> list[list[int]]:
    """The positions of each of CLASSES; some may be empty.

    subject: its first token and the one behind its last. tokens: of the prompt.
    """
    start, end = subject
    after = list(range(end, tokens))
    first = [start] if end - start > 1 else []
    return [first, list(range(start + 1, end - 1)), [end - 1], after[:1] if len(after) > 1 else [], after[1:-1], after[-1:]]


def averages(facts: Sequence[FactScores]) -> dict[str, Any]:
    """The total effect (high - low) and the indirect effects (score - low) in the average over facts, with their 95 % bands.

    {"facts", "high", "low", "total_effect": {"mean", "band"}, "classes", "facts_of_class", "indirect_effect": {kind: {"mean",
    "band"}}}, the last two classes x layers, with None for a class that has no token. A class's effect in a fact is the mean
    over its tokens. Raises UserError without facts.
    """
    if not facts:
        raise UserError("the model knows none of the facts, so there is nothing to average: trace facts that it knows")
    total = np.array([fact.high - fact.low for fact in facts])[:, None]
    result: dict[str, Any] = {
        "facts": len(facts), "high": float(np.mean([fact.high for fact in facts])),
        "low": float(np.mean([fact.low for fact in facts])),
        "total_effect": {part: value and value[0] for part, value in _mean(total).items()},
        "classes": list(CLASSES), "facts_of_class": [], "indirect_effect": {}}
    for kind in (kind for kind in (*KINDS, *SEVERED) if kind in facts[0].scores):
        by_class: list[list[np.ndarray]] = [[] for _ in CLASSES]
        for fact in facts:
            scores = fact.scores[kind]
            for effects, positions in zip(by_class, token_classes(fact.subject, len(scores))):
                if positions and not np.isnan(scores[positions]).any():
                    effects.append((scores[positions] - fact.low).mean(0))
        result["facts_of_class"] = result["facts_of_class"] or [len(effects) for effects in by_class]
        means = [_mean(np.array(effects)) if effects else {"mean": None, "band": None} for effects in by_class]
        result["indirect_effect"][kind] = {part: [mean[part] for mean in means] for part in ("mean", "band")}
    return result


def proposal(average: Mapping[str, Any]) -> dict[str, Any]:
    """The layers to edit: {"peak": block, "range": blocks}.

    peak: the block whose MLP has the largest average indirect effect at the subject's last token. range: the peak and up to
    four consecutive neighbours, the stronger side first, that reach half of its effect: where MEMIT spreads its change.
    Raises UserError where MLPs have no effect to go by.
    """
    curve = average["indirect_effect"].get("mlp", {"mean": [None] * len(CLASSES)})["mean"][LAST_SUBJECT]
    if curve is None:
        raise UserError("no MLPs were traced, so no layers to edit can be proposed")
    peak = int(np.argmax(curve))
    if not curve[peak] > 0:
        raise UserError("restoring the MLP at the subject's last token brings no fact back in any layer: "
                        "name the layers to edit in a hyper-parameter file")
    first = last = peak
    while last - first + 1 < MAX_LAYERS:
        neighbours = [layer for layer in (first - 1, last + 1) if 0 <= layer < len(curve)]
        best = max(neighbours, key=lambda layer: curve[layer], default=None)
        if best is None or curve[best] < SHARE * curve[peak]:
            break
        first, last = min(first, best), max(last, best)
    return {"peak": peak, "range": list(range(first, last + 1))}


def _mean(values: Float[np.ndarray, "n layers"]) -> dict[str, list[float] | None]:
    n = len(values)
    band = CONFIDENCE * values.std(0, ddof=1) / math.sqrt(n) if n > 1 else np.full(values.shape[1], np.nan)
    return {"mean": values.mean(0).tolist(), "band": band.tolist() if n > 1 else None}
