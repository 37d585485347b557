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
    """|A & B| / |A | B| of the sets of token ids of two texts, without special tokens; 1 for two empty texts."""
    left, right = (set(tok(text, add_special_tokens=False)["input_ids"]) for text in (a, b))
    return len(left & right) / len(left | right) if left | right else 1.0


def parts(record: Record) -> dict[str, str]:
    """What is compared: the subject, the relation (the prompt without the subject's place), the new object."""
    return {"subject": record.subject, "relation": record.prompt.replace("{}", ""), "target": record.target_new.str}


def similarities(
    tok: PreTrainedTokenizerBase, records: Sequence[Record], others: Sequence[Record]
) -> dict[str, list[float]]:
    """{part: similarity of each record's with that of the aligned other record} for :data:`PARTS`."""
    pairs = [(parts(record), parts(other)) for record, other in zip(records, others, strict=True)]
    return {part: [jaccard(tok, a[part], b[part]) for a, b in pairs] for part in PARTS}


def by_subject(
    tok: PreTrainedTokenizerBase, records: Sequence[Record], others: Sequence[Record]
) -> dict[str, list[int]]:
    """Positions of the aligned records whose subject has "different" tokens (similarity below :data:`DIFFERENT`), or the
    "same" (1)."""
    found = [jaccard(tok, a.subject, b.subject) for a, b in zip(records, others, strict=True)]
    return {"different": [i for i, value in enumerate(found) if value < DIFFERENT],
            "same": [i for i, value in enumerate(found) if value == 1]}
