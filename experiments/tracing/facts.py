"""Where the facts to trace come from: published known facts, or the true answers of a data set that is edited."""

from collections.abc import Iterable
from pathlib import Path

from common.errors import UserError
from data import KnownFact
import data
from data.files import read_records
from data.records import Record
from editors.core.prompts import fill

PUBLISHED = "known_1000"


def load_facts(name: str, data_dir: str | Path | None = None, limit: int | None = None) -> list[KnownFact]:
    """The first ``limit`` facts of known_1000, of a data set, or of a .json file of known facts or of CounterFact's schema.

    Raises UserError for an unknown name, a damaged file, records without true answers, or two facts of one number.
    """
    if name == PUBLISHED:
        facts = data.known_facts(data_dir=data_dir, limit=limit)
    elif name.endswith(".json") and _holds_known_facts(name):
        facts = data.known_facts(name, limit=limit)
    else:
        facts = facts_of(data.load(name, data_dir, limit), name)
    numbers = set()
    for fact in facts:
        if fact.known_id in numbers:
            raise UserError(f"{name}: there are two facts of the number {fact.known_id}; each needs one of its own")
        numbers.add(fact.known_id)
    return facts


def facts_of(records: Iterable[Record], source: str) -> list[KnownFact]:
    """The true facts of the records, before any edit. Raises UserError for records without a true answer (zsRE's)."""
    facts = []
    for record in records:
        if record.target_true is None or record.schema != "counterfact":
            raise UserError(f"{source}: its records have no true answers to trace; give known_1000, mcf, cf or world")
        prompt = fill(record.prompt, record.subject)
        facts.append(KnownFact(record.case_id, record.subject, record.target_true.str, prompt, record.prompt,
                               relation_id=record.relation_id))
    return facts


def _holds_known_facts(path: str) -> bool:
    first = read_records(path)[0]
    return isinstance(first, dict) and "known_id" in first
