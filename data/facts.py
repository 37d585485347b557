"""A person's own facts from a file: what an editor needs of each, whatever format it stands in, or all that judges an edit.

Formats (docs/facts.md): CSV with the columns prompt, subject and target; JSON (a list) or JSONL (an object a line) of

    {"prompt": "{} plays the", "subject": "Astrid Skezurd", "target": "drum"}    # target_new is another name of target
    {"prompt": "Astrid Skezurd plays the", "subject": "Astrid Skezurd", "target_new": "drum"}           # EasyEdit, KnowEdit
    {"requested_rewrite": {"prompt": ..., "subject": ..., "target_new": {"str": ...}}}                  # CounterFact
    {"subject": ..., "src": "What does Astrid Skezurd play?", "alt": "drum"}                            # zsRE
"""

import csv
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.files import read_json
from data.records import Prompt, Record, Target
from data.zsre import template_of

REQUEST = {"prompt": ("prompt", "src"), "subject": ("subject",), "target_new": ("target", "target_new", "alt")}
"""Part of a request -> the keys under which formats have it."""
GROUPS = ("portability", "locality")
"""Of questions with answers of their own, in EasyEdit's and KnowEdit's records."""


def read_facts(path: str | Path) -> list[dict[str, Any]]:
    """The requests of a file as editors take them: {"prompt" with one "{}", "subject", "target_new"}, and "joined" if given.

    Raises UserError, with the line or the number of the record, for a file of no such format, a record that lacks a part, and
    for facts that are there twice or contradict each other.
    """
    return [request for _, _, request in _facts(Path(path))]


def read_own(path: str | Path, limit: int | None = None) -> list[Record]:
    """The first ``limit`` facts of a file (all by default) as records, numbered from 0. Of EasyEdit's and KnowEdit's keys
    ``rephrase_prompt``, ``ground_truth``, ``portability`` and ``locality`` count.

    Raises UserError as :func:`read_facts`, and for a record of CounterFact's or zsRE's form among others.
    """
    records = []
    for where, raw, request in itertools.islice(_facts(Path(path)), limit):
        if "requested_rewrite" in raw or "src" in raw:
            raise UserError(f"{path}, {where}: is of another format than the first record (keys {', '.join(raw)}); "
                            "keep one format a file")
        place = f"{path}, {where}"
        true = _answer(raw.get("ground_truth"), f"{place}: ground_truth")
        rephrased = [text for key in ("rephrase_prompt", "rephrase") for text in _list(raw.get(key))]
        for text in rephrased:
            _check_text(text, f"{place}: rephrase_prompt")
        records.append(Record(
            case_id=len(records), subject=request["subject"], prompt=request["prompt"],
            target_new=Target(request["target_new"]), target_true=None if true is None else Target(true),
            paraphrase_prompts=tuple(rephrased), neighborhood_prompts=(), joined=request.get("joined"),
            **{group: _questions(raw.get(group), f"{place}: {group}") for group in GROUPS}))
    return records


def _questions(content: Any, where: str) -> tuple[Prompt, ...]:
    """Prompts and answers of KnowEdit's {group: [{"prompt", "ground_truth"}]}, or EasyEdit's {group: {"prompt": texts,
    "ground_truth": texts}}; what has no answer is left out."""
    if not content:
        return ()
    if not isinstance(content, Mapping):
        raise UserError(f"{where} should be an object of groups of prompts, found {type(content).__name__}")
    questions = []
    for name, group in content.items():
        entries = _list(group)
        if isinstance(group, Mapping):
            prompts, answers = _list(group.get("prompt")), _list(group.get("ground_truth"))
            if len(prompts) != len(answers):
                raise UserError(f"{where}: {name} has {len(prompts)} prompts and {len(answers)} answers")
            entries = [{"prompt": prompt, "ground_truth": answer} for prompt, answer in zip(prompts, answers)]
        for entry in entries:
            if not isinstance(entry, Mapping):
                raise UserError(f"{where}: {name} should hold objects with prompt and ground_truth, found {entry!r}"[:200])
            answer = _answer(entry.get("ground_truth"), f"{where}: {name}: ground_truth")
            if answer is not None:
                _check_text(entry.get("prompt"), f"{where}: {name}: prompt")
                questions.append(Prompt(entry["prompt"], answer))
    return tuple(questions)


def _answer(content: Any, where: str) -> str | None:
    """The first answer of a text, a list of them, or a list of lists of aliases; None where there is none."""
    while isinstance(content, list):
        content = content[0] if content else None
    if content is None or content == "":
        return None
    _check_text(content, where)
    return content


def _check_text(content: Any, where: str) -> None:
    if not isinstance(content, str) or not content.strip():
        raise UserError(f"{where} should be a text that is not empty, found {content!r}")


def _list(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [] if content in (None, "") else [content]


def _facts(path: Path) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Any]]]:
    """(where it stands, its record, its request) for each fact of a file. Raises UserError as :func:`read_facts`."""
    first_of: dict[tuple[str, str], tuple[str, str]] = {}
    for where, record in _records(path):
        request = _request(record, f"{path}, {where}")
        fact = request["prompt"].strip(), request["subject"].strip()
        if fact in first_of:
            before, target = first_of[fact]
            says = "says the same again as" if target == request["target_new"] else f"says {request['target_new']!r}, against"
            raise UserError(f"{path}, {where}: {fact[0].replace('{}', fact[1])!r} {says} {before}: keep one of the two")
        first_of[fact] = where, request["target_new"]
        yield where, record, request
    if not first_of:
        raise UserError(f"{path}: holds no facts")


def first_record(path: Path) -> Any:
    """The first record of a file of facts, to tell its format by. Raises UserError for a file that is none, or empty."""
    for _, record in _records(path):
        return record
    raise UserError(f"{path}: holds no facts")


def raw_records(path: Path) -> list[Any]:
    """The records of a file as they stand."""
    return [record for _, record in _records(path)]


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
    template = template_of(prompt, subject)
    if template is None:
        raise UserError(f"{where}: the prompt {prompt[:60]!r} has a brace, and no {{}} for its subject")
    return template
