"""How alike the same fact is tokenised in two languages (MEMAT, Tamayo et al. 2024): edits cross languages by shared tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.records import Record

if TYPE_CHECKING:  # only named here, and slow to import
    from transformers import PreTrainedTokenizerBase

DIFFERENT = 0.5
"""Subjects below this similarity count as differently tokenised, those at 1 as equally."""
PARTS = ("subject", "relation", "target")


def jaccard(tok: PreTrainedTokenizerBase, a: str, b: str) -> float:
    """Jaccard similarity of two texts: |A & B| / |A | B| of their sets of token ids (no special ones); 1 if both are empty."""
    ids_a, ids_b = (set(tok(text, add_special_tokens=False)["input_ids"]) for text in (a, b))
    return len(ids_a & ids_b) / len(ids_a | ids_b) if ids_a | ids_b else 1.0


def parts(record: Record) -> dict[str, str]:
    """The texts of a record that are compared: subject, relation (the prompt without the subject's place), new object."""
    return {"subject": record.subject, "relation": record.prompt.replace("{}", ""), "target": record.target_new.str}


def similarities(
    tok: PreTrainedTokenizerBase, records: Sequence[Record], others: Sequence[Record]
) -> dict[str, list[float]]:
    """{part: the :func:`jaccard` similarity of each record with its counterpart in ``others``} for each of :data:`PARTS`."""
    pairs = [(parts(record), parts(other)) for record, other in zip(records, others, strict=True)]
    return {part: [jaccard(tok, a[part], b[part]) for a, b in pairs] for part in PARTS}


def by_subject(
    tok: PreTrainedTokenizerBase, records: Sequence[Record], others: Sequence[Record]
) -> dict[str, list[int]]:
    """{"different": positions of the aligned records whose subjects are less alike than :data:`DIFFERENT`, "same": those whose
    subjects have the same tokens (similarity 1)}."""
    similarity = [jaccard(tok, a.subject, b.subject) for a, b in zip(records, others, strict=True)]
    return {"different": [i for i, value in enumerate(similarity) if value < DIFFERENT],
            "same": [i for i, value in enumerate(similarity) if value == 1]}
