"""The memory of edits: texts under ids that stay, one rule for what contradicts itself, and files that tell what they hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from common.errors import UserError
from common.orthography import continuation
from common.tensor_files import read_tensors, write_tensors

KIND, VERSION = "edit memory", 1
HEADER = {"next_id": int, "labelled": bool, "sha256": str, "about": dict}
"""What else a file's header holds."""


@dataclass(frozen=True)
class Entry:
    """One edit: inputs like `input` shall be answered with `label`."""

    id: int
    input: str
    label: str
    joined: bool | None = None
    """Whether the label follows its input without a space; None: see :func:`common.orthography.continuation`."""

    @property
    def text(self) -> str:
        """The input, continued by its label."""
        return "".join(continuation(self.input, self.label, self.joined))


class EditStore:
    """Edits in the order of their first writing.

    The rule for duplicates and conflicts: two edits whose inputs are equal, whatever their case and spacing, are about the same
    thing, and the newer one holds. It takes the older one's place and id; where the labels are equal too, nothing changes.
    Edits that say the same in other words stay side by side; a query is answered by the nearest.
    Ids count up and are never given twice.
    """

    def __init__(self, entries: Iterable[Entry] = (), next_id: int = 0, labelled: bool = True):
        """labelled: whether every edit needs a label (evidence for a fact checker has none)."""
        self._entries = {entry.id: entry for entry in entries}
        self._id_of = {_key(entry.input): entry.id for entry in self._entries.values()}
        self.next_id, self.labelled = next_id, labelled
        # Row of each entry in the matrix of vectors, where it has one; and whose vectors they are.
        self._rows: dict[int, int] = {}
        self._vectors: Tensor | None = None
        self._vectors_of: str | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __getitem__(self, id: int) -> Entry:
        """Raises UserError for an id that no edit has."""
        if id not in self._entries:
            raise UserError(f"the memory has no edit {id}" + (f"; its ids go up to {self.next_id - 1}" if self.next_id else
                            ", it has never had any"))
        return self._entries[id]

    def copy(self) -> EditStore:
        """Another memory with the same edits, ids and vectors."""
        other = EditStore(self, self.next_id, self.labelled)
        other._rows, other._vectors, other._vectors_of = dict(self._rows), self._vectors, self._vectors_of
        return other

    def add(self, input: str, label: str = "", joined: bool | None = None) -> int:
        """Writes an edit by the rule above; returns its id. Raises UserError for an empty input, or a label that lacks."""
        input, label = self._checked(input, label)
        id = self._id_of.get(_key(input))
        if id is None:
            id, self.next_id = self.next_id, self.next_id + 1
        elif self._entries[id] == Entry(id, input, label, joined):
            return id
        self._put(Entry(id, input, label, joined))
        return id

    def remove(self, id: int) -> Entry:
        """Takes an edit out. Raises UserError if there is none of this id."""
        entry = self[id]
        del self._entries[id], self._id_of[_key(entry.input)]
        self._rows.pop(id, None)
        return entry

    def update(self, id: int, input: str | None = None, label: str | None = None) -> Entry:
        """Changes what is given. Raises UserError if there is no such edit, or another one has the new input."""
        previous = self[id]
        input, label = previous.input if input is None else input, previous.label if label is None else label
        entry = Entry(id, *self._checked(input, label), previous.joined)
        owner = self._id_of.get(_key(entry.input), id)
        if owner != id:
            raise UserError(f"edit {owner} has the input {entry.input[:60]!r} already: update or remove that one")
        if entry != previous:
            del self._id_of[_key(previous.input)]
            self._put(entry)
        return entry

    def _checked(self, input: str, label: str) -> tuple[str, str]:
        if not input.strip():
            raise UserError("an edit's input is empty")
        if self.labelled and not label.strip():
            raise UserError(f"the edit of {input[:60]!r} has no label: what shall be answered?")
        return input.strip(), label.strip()

    def _put(self, entry: Entry) -> None:
        self._entries[entry.id] = entry
        self._id_of[_key(entry.input)] = entry.id
        self._rows.pop(entry.id, None)

    # Vectors

    def vectors(self, embed: Callable[[Sequence[Entry]], Float[Tensor, "n width"]], whose: str) -> Float[Tensor, "edits width"]:
        """The vector of each edit, in their order. Only those that are not there yet are computed.

        whose: what tells the encoder behind `embed` from others; vectors of another one are dropped.
        """
        if self._vectors_of != whose:
            self._rows, self._vectors, self._vectors_of = {}, None, whose
        missing = [entry for entry in self if entry.id not in self._rows]
        if missing:
            computed = embed(missing)
            start = 0 if self._vectors is None else len(self._vectors)
            self._vectors = computed if self._vectors is None else torch.cat([self._vectors, computed])
            self._rows |= {entry.id: start + i for i, entry in enumerate(missing)}
        if len(self._vectors) != len(self) or missing:
            order = [self._rows[entry.id] for entry in self]
            if order != list(range(len(self._vectors))):
                self._vectors = self._vectors[torch.tensor(order, device=self._vectors.device)]
                self._rows = {entry.id: i for i, entry in enumerate(self)}
        return self._vectors

    # Files

    def save(self, path: Path, about: Mapping[str, Any] | None = None) -> None:
        """One safetensors file with the edits and, where they are known, their vectors; whole or not at all.

        about: JSON-ready, what else there is to tell.
        """
        rows = [[entry.id, entry.input, entry.label, *([] if entry.joined is None else [entry.joined])] for entry in self]
        texts = json.dumps(rows, ensure_ascii=False).encode()
        tensors = {"edits": torch.frombuffer(bytearray(texts), dtype=torch.uint8)}
        header = {"kind": KIND, "version": VERSION, "edits": len(self), "next_id": self.next_id, "labelled": self.labelled,
                  "sha256": hashlib.sha256(texts).hexdigest(), "about": dict(about or {})}
        if self._vectors is not None and len(self) and all(entry.id in self._rows for entry in self):
            order = torch.tensor([self._rows[entry.id] for entry in self], device=self._vectors.device)
            tensors["vectors"], header["vectors_of"] = self._vectors[order].detach().cpu(), self._vectors_of
            header["vectors_sha256"] = _checksum(tensors["vectors"], self._vectors_of)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, header)

    @staticmethod
    def load(path: Path) -> tuple[EditStore, dict[str, Any]]:
        """(what `save` wrote, its `about`). Raises UserError for a file that is missing, damaged, foreign or of another
        version."""
        if not path.is_file():
            raise UserError(f"{path}: no such memory file")
        header, tensors = read_tensors(path, "memory of edits", "use a copy")
        if header.get("kind") != KIND or "edits" not in tensors:
            raise UserError(f"{path}: not a memory of edits")
        if header.get("version") != VERSION:
            raise UserError(f"{path}: a memory of version {header.get('version')}, this program reads version {VERSION}")
        for key, kind in HEADER.items():
            if not isinstance(header.get(key), kind):
                raise UserError(f"{path}: damaged, its header has no usable {key!r}: use a copy")
        texts, vectors = tensors["edits"].numpy().tobytes(), tensors.get("vectors")
        if hashlib.sha256(texts).hexdigest() != header["sha256"]:
            raise UserError(f"{path}: damaged, its edits are not those that were written: use a copy")
        try:
            entries = [Entry(*entry) for entry in json.loads(texts)]
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: damaged, its edits can't be read ({error}): use a copy") from None
        memory = EditStore(entries, header["next_id"], header["labelled"])
        if vectors is not None and "vectors_sha256" in header:  # without, they are computed again
            if _checksum(vectors, header.get("vectors_of")) != header["vectors_sha256"]:
                raise UserError(f"{path}: damaged, its vectors are not those that were written: use a copy")
            memory._vectors, memory._vectors_of = vectors, header["vectors_of"]
            memory._rows = {entry.id: i for i, entry in enumerate(memory)}
        return memory, header["about"]

    def to(self, device: torch.device) -> EditStore:
        """This memory, with its vectors on that device."""
        if self._vectors is not None:
            self._vectors = self._vectors.to(device)
        return self


def _checksum(vectors: Tensor, whose: str | None) -> str:
    digest = hashlib.sha256(f"{whose} {tuple(vectors.shape)} {vectors.dtype}".encode(errors="backslashreplace"))
    digest.update(vectors.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _key(input: str) -> str:
    """What two inputs are compared by."""
    return " ".join(input.casefold().split())
