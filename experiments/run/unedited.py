"""Metrics of the unedited model, kept on disk with ``--use_cache``: runs of other editors and other batch sizes share them."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from common.files import whole_file
from common.json_text import to_json
from data.records import fingerprint, Record
from editors.core import ranks
from editors.core.files import check_writable
from editors.core.fingerprint import tokenizer_fingerprint
from experiments.run.job import RunJob
from experiments.run.measure import measure
from experiments.run.models import identity

BLOCK = 64
"""Records that are measured together, whatever the size of a batch, so that a kept number doesn't depend on it."""

SETTINGS = ("contains_length", "pairing", "seed", "skip_generation_tests", "generation_test_interval")
CODE = (Path(__file__).parent.parent / "metrics", Path(__file__).parent / "measure.py")


def measure_unedited(job: RunJob, start: int, stop: int) -> dict[int, dict[str, Any]]:
    """The metrics of records ``start`` to ``stop`` of the job by case id, taken from the cache where they are there."""
    folder = job.unedited_cache
    if folder is None:
        return measure(job, job.records[start:stop])
    by_case = {}
    for first in range(start - start % BLOCK, stop, BLOCK):
        by_case |= _block(job, folder, job.records[first:first + BLOCK])
    return by_case


def _block(job: RunJob, folder: Path, records: Sequence[Record]) -> dict[int, dict[str, Any]]:
    """The metrics of some records by case id; a file that is damaged is made again."""
    path = folder / f"{_key(job, records)}.json"
    kept = ranks.from_first(lambda: _read(path))
    if kept is None:
        check_writable(folder, "metrics of the unedited model")
        by_case = measure(job, records)
        kept = to_json([by_case[record.case_id] for record in records])
        if ranks.rank() == 0:
            with whole_file(path) as part:
                part.write_text(f"{_sha256(kept)}\n{kept}\n", encoding="utf-8")
    return {record.case_id: metrics for record, metrics in zip(records, json.loads(kept))}


def _read(path: Path) -> str | None:
    """The metrics as they were written, None where they are not there or not whole."""
    try:
        checksum, _, kept = path.read_text(encoding="utf-8").rstrip("\n").partition("\n")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return kept if _sha256(kept) == checksum else None


def _key(job: RunJob, records: Sequence[Record]) -> str:
    """Of everything that the numbers follow from, the code that computes them included."""
    config = {name: getattr(job.config, name) for name in SETTINGS}
    model = [identity(job.model), str(job.model.dtype), job.model.device.type]
    texts = job.texts if job.generate else None
    content = [config, model, tokenizer_fingerprint(job.tok), fingerprint(records), texts, _code()]
    return _sha256(json.dumps(content, sort_keys=True))[:32]


@cache
def _code() -> str:
    files = sorted(path for place in CODE for path in ([place] if place.is_file() else place.glob("*.py")))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
