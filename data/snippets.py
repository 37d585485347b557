"""Attribute snippets: texts on entities that share an attribute, the reference of CounterFact's generation scores."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.fields import Fields
from data.files import checksum, read_json, write_json
from data.jsonstream import iterate

Pair = tuple[str, str]


@dataclass(frozen=True)
class Snippet:
    """A text about ``name``."""

    name: str
    text: str


class Snippets:
    """Snippets by (relation id, target id). Made by :func:`open_file` or :func:`from_records`.

    source: where they come from. sha256: of their file, ``None`` when they have none. places: where the record of each pair is.
    read: gives the record at a place.
    """

    def __init__(self, source: str, sha256: str | None, places: dict[Pair, Any], read: Callable[[Any], Any]):
        self.source, self.sha256 = source, sha256
        self._places, self._read = places, read

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, pair: Pair) -> bool:
        return pair in self._places

    def __iter__(self) -> Iterator[Pair]:
        return iter(self._places)

    def samples(self, relation_id: str, target_id: str) -> tuple[Snippet, ...]:
        """All snippets on entities whose ``relation_id`` is ``target_id``. Raises ``UserError`` when there are none."""
        pair = (relation_id, target_id)
        if pair not in self._places:
            raise UserError(f"{self.source}: no attribute snippets for relation {relation_id!r} and target {target_id!r}; "
                            "--skip_generation_tests does without them")
        return _samples(Fields(self._read(self._places[pair]), f"{self.source}, {relation_id} {target_id}"))


def from_records(records: Iterable[Any], source: str) -> Snippets:
    """Snippets of records of the published schema that are in memory."""
    places = {_pair(Fields(raw, f"{source}, record {number}")): raw for number, raw in enumerate(records)}
    return Snippets(source, None, places, lambda raw: raw)


def open_file(path: str | Path, cache_dir: Path) -> Snippets:
    """Snippets of a JSON file, of which no more than one record is ever in memory (the published file has 926 MB).

    The file is read through once; where its records begin is kept in ``cache_dir`` under the file's checksum. As published,
    the last record of a pair counts. Raises ``UserError`` when the file is missing, cut off or has another schema.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    sha256 = checksum(path, cache_dir)
    index = cache_dir / f"snippets-{sha256[:16]}.json"
    if not index.exists():
        write_json(index, [[*_pair(Fields(raw, f"{path.name}, record {number}")), start, length]
                           for number, (raw, start, length) in enumerate(iterate(path))])
    places = {(relation, target): (start, length) for relation, target, start, length in read_json(index)}

    def read(place: tuple[int, int]) -> Any:
        with open(path, "rb") as file:
            file.seek(place[0])
            return json.loads(file.read(place[1]))

    return Snippets(path.name, sha256, places, read)


def _pair(fields: Fields) -> Pair:
    """The key of a record, all of which is checked."""
    _samples(fields)
    return fields.text("relation_id"), fields.text("target_id")


def _samples(fields: Fields) -> tuple[Snippet, ...]:
    return tuple(Snippet(sample.string("name"), sample.string("text")) for sample in fields.objects("samples"))
