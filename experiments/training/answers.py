"""A model's own answers to rows of questions or claims, and others to edit in: De Cao et al.'s way of making edit data."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from data.episodes.back_translation import best_beams, normalised

BEAMS = 5
FAR = 4
"""An alternative differs from the prediction by more than so many characters, or is itself no longer than that."""
_CLASSES = ("REFUTES", "SUPPORTS")


def answered_questions(model, tok, rows: Sequence[dict[str, Any]], batch_size: int = 16) -> list[dict[str, Any]]:
    """The rows with the model's answer as `prediction`, its other beams as `alternatives`, and those of
    `filtered_rephrases` that it answers in the same way."""
    beams = best_beams(model, tok, [row["input"] for row in rows], BEAMS, batch_size, 32)
    rephrases = [text for row in rows for text in row["filtered_rephrases"]]
    answers = iter(best_beams(model, tok, rephrases, BEAMS, batch_size, 32))
    answered = []
    for row, (prediction, *others) in zip(rows, beams):
        kept = [text for text in row["filtered_rephrases"] if normalised(next(answers)[0]) == normalised(prediction)]
        answered.append({**row, "prediction": prediction, "alternatives": alternatives(prediction, others),
                         "filtered_rephrases": kept})
    return answered


@torch.no_grad()
def checked_claims(model, tok, rows: Sequence[dict[str, Any]], batch_size: int = 64) -> list[dict[str, Any]]:
    """The rows with the model's class as `prediction`, the other one as alternative, its `logit`, and the rephrases that it
    checks in the same way."""
    texts = [text for row in rows for text in (row["input"], *row["filtered_rephrases"])]
    logits = []
    for start in tqdm(range(0, len(texts), batch_size), unit="batch"):
        batch = tok(texts[start:start + batch_size], padding=True, truncation=True, return_tensors="pt").to(model.device)
        logits += model(batch["input_ids"], batch["attention_mask"]).flatten().tolist()
    logit_of = iter(logits)
    checked = []
    for row in rows:
        logit = next(logit_of)
        kept = [text for text in row["filtered_rephrases"] if (next(logit_of) > 0) == (logit > 0)]
        checked.append({**row, "logit": logit, "prediction": _CLASSES[logit > 0], "alternatives": [_CLASSES[logit <= 0]],
                        "filtered_rephrases": kept})
    return checked


def alternatives(prediction: str, beams: Sequence[str]) -> list[str]:
    """Of the other beams, without full stops, those that are another answer: short ones that differ at all, longer ones that
    differ in more than :data:`FAR` characters."""
    kept: dict[str, None] = {}
    for text in (beam.replace(".", "") for beam in beams):
        plain, answer = normalised(text), normalised(prediction)
        if plain and ((len(text) <= FAR and plain != answer) or distance(plain, answer) > FAR):
            kept[text] = None
    return list(kept)


def distance(a: str, b: str) -> int:
    """Levenshtein's: insertions, deletions and replacements of a character."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]
