"""The order in which a sequence of edits takes a data set's records: as published (regenerated), or from a file."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from data.files import read_json
from data.records import Record

SAMPLES = 10
"""Orders that were published for each data set."""
SEED = 37
MAX_RECORDS = {"counterfact": 20000, "zsre": 10000}
"""Schema -> records of an order, at most."""
_ZSRE_PROMPTS = 62346  # the pool of prompts that the published zsRE loader drew ten of for each record


def edit_order(records: Sequence[Record], sample_num: int) -> list[int]:
    """Edit order `sample_num` (0 to 9) as positions in `records`: of each subject, whatever its case, the first; shuffled.

    One generator, seeded with 37, shuffles the list again for each further order; for zsRE it draws prompts for every record
    before. On all of CounterFact, multi-CounterFact and zsRE these are the published orders (Gupta et al. 2024).
    Raises UserError for another number.
    """
    if not 0 <= sample_num < SAMPLES:
        raise UserError(f"--sample_num {sample_num}: there are orders 0 to {SAMPLES - 1}")
    generator = random.Random(SEED)
    schema = records[0].schema
    if schema == "zsre":
        for _ in records:
            generator.sample(range(_ZSRE_PROMPTS), 10)
    first_of = {}
    for position, record in enumerate(records):
        first_of.setdefault(record.subject.lower(), position)
    order = list(first_of.values())
    for _ in range(sample_num + 1):
        generator.shuffle(order)
    return order[: MAX_RECORDS[schema]]


def read_order(path: str | Path, sample_num: int, records: int) -> list[int]:
    """Edit order `sample_num` of a file in the published format: an object from "0", "1", ... to positions, or one list.

    records: how many the data have. Raises UserError for a file that is something else, or for positions beyond the data.
    """
    content = read_json(path)
    order = content.get(str(sample_num)) if isinstance(content, dict) else content
    if not isinstance(order, list) or not order or not all(isinstance(position, int) for position in order):
        names = ", ".join(map(json.dumps, content)) if isinstance(content, dict) else "no list of whole numbers"
        raise UserError(f'{path}: no order "{sample_num}" of positions; it holds {names[:80]}')
    out_of_range = [position for position in order if not 0 <= position < records]
    if out_of_range:
        raise UserError(f"{path}: position {out_of_range[0]} is beyond the data ({records} records)")
    if len(set(order)) < len(order):
        raise UserError(f"{path}: order {sample_num} names a record twice")
    return order
