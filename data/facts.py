"""A person's own facts from a file: what an editor needs of each, whatever format it stands in.

Formats (docs/facts.md): CSV with the columns prompt, subject and target; JSON (a list) or JSONL (an object a line) of

    {"prompt": "{} plays the", "subject": "Astrid Skezurd", "target": "drum"}    # target_new is another name of target
    {"prompt": "Astrid Skezurd plays the", "subject": "Astrid Skezurd", "target_new": "drum"}           # EasyEdit, KnowEdit
    {"requested_rewrite": {"prompt": ..., "subject": ..., "target_new": {"str": ...}}}                  # CounterFact
    {"subject": ..., "src": "What does Astrid Skezurd play?", "alt": "drum"}                            # zsRE
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.files import read_json

REQUEST = {"prompt": ("prompt", "src"), "subject": ("subject",), "target_new": ("target", "target_new", "alt")}
"""Part of a request -> the keys under which formats have it."""


def read_facts(path: str | Path) -> list[dict[str, Any]]:
    """The requests of a file as editors take them: {"prompt" with one "{}", "subject", "target_new"}, and "joined" if given.

    Raises UserError, with the line or the number of the record, for a file of no such format, a record that lacks a part, and
    for facts that are there twice or contradict each other.
    """
    path = Path(path)
    requests = []
    first_of: dict[tuple[str, str], tuple[str, str]] = {}
    for where, record in _records(path):
        request = _request(record, f"{path}, {where}")
        fact = request["prompt"].strip(), request["subject"].strip()
        if fact in first_of:
            before, target = first_of[fact]
            says = "says the same again as" if target == request["target_new"] else f"says {request['target_new']!r}, against"
            raise UserError(f"{path}, {where}: {fact[0].replace('{}', fact[1])!r} {says} {before}: keep one of the two")
        first_of[fact] = where, request["target_new"]
        requests.append(request)
    if not requests:
        raise UserError(f"{path}: holds no facts")
    return requests


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, its content) of every record of a file."""
    if path.suffix == ".json":
        content = read_json(path)
        if not isinstance(content, list):
            raise UserError(f"{path}: should hold a list of facts, found a JSON {type(content).__name__}")
        yield from ((f"record {number}", record) for number, record in enumerate(content, 1))
        return
    if path.suffix not in (".jsonl", ".csv"):
        raise UserError(f"{path}: facts are read from files whose names end in .json, .jsonl or .csv")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from None
    yield from _csv(path, text) if path.suffix == ".csv" else _lines(path, text)


def _lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: not valid JSON ({error})") from None


def _csv(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(text.splitlines(), strict=True)
    missing = [keys[0] for keys in REQUEST.values() if not set(keys) & set(reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: its first line should name the columns prompt, subject and target; {missing[0]} is not there")
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}, line {reader.line_num}: has not as many cells as the first line has names")
            yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num + 1}: not valid CSV ({error})") from None


def _request(record: Any, where: str) -> dict[str, Any]:
    if isinstance(record, Mapping) and isinstance(record.get("requested_rewrite"), Mapping):
        record = record["requested_rewrite"]
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: should be a JSON object, found {type(record).__name__}")
    request = {part: _text(record, keys, where) for part, keys in REQUEST.items()}
    request["prompt"] = _template(request["prompt"], request["subject"], where)
    joined = record.get("joined")
    if joined is not None:
        if not isinstance(joined, bool):
            raise UserError(f"{where}: joined should be true or false, found {joined!r}")
        request["joined"] = joined
    return request


def _text(record: Mapping[str, Any], keys: Sequence[str], where: str) -> str:
    key = next((key for key in keys if key in record), None)
    if key is None:
        raise UserError(f"{where}: lacks {keys[0]!r}; it has {', '.join(map(repr, record)) or 'nothing'}")
    value = record[key]
    text = value.get("str") if isinstance(value, Mapping) else value
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: {key} should be a text that is not empty, found {value!r}")
    return text


def _template(prompt: str, subject: str, where: str) -> str:
    """The prompt with "{}" for its subject."""
    blanks = prompt.count("{}")
    if blanks == 1:
        return prompt
    if blanks > 1:
        raise UserError(f"{where}: the prompt has {blanks} places {{}} for the subject, and should have one")
    if subject not in prompt:
        raise UserError(f"{where}: the prompt {prompt[:60]!r} has no {{}} and does not name its subject {subject!r}")
    before, _, after = prompt.partition(subject)
    return f"{before}{{}}{after}"
