"""A ledger: facts that a model shall hold, as a state and not a history. Any of them can be taken back.

    ledger = Ledger.create(folder, "gpt2-xl", "MEMIT", hparams)          # or Ledger.read(folder)
    ids = ledger.add(model, tok, requests)                     # seeks the target states of these alone
    ledger.remove([3])
    edit = ledger.edit(model, tok)                             # the edit of what is in it now, solved anew from what is kept

What takes long, the target states, is kept for each fact; keys and the solution follow from the facts that are there. So the
edit after a removal is that of the other facts from the start. The folder holds ledger.json, with a checksum of its content and
of each file of states, and targets/. It is locked while it is changed; a reader sees the state before or after.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from common.errors import UserError
from common.files import whole_file
from editors.core.files import check_writable
from editors.core.fingerprint import model_fingerprint, tokenizer_fingerprint
from editors.core.prompts import fill, parse_requests, Request
from editors.edit import Edit
from editors.registry import editor_class
from .spread import SpreadEditor

FORMAT = 1
Build = Callable[[str, Mapping[str, Any]], Any]
STATES, CONTENT, LOCK = "targets", "ledger.json", ".lock"
KEPT = ("model_name", "editor", "hparams", "basis", "facts", "next_id", "states")


def load(name: str, hparams: Mapping[str, Any]) -> Any:
    """The editor of a name and hyper-parameters, as they are."""
    cls = editor_class(name)
    return cls(cls.hparams_class.of(hparams))


@dataclass(frozen=True)
class Fact:
    """A fact in a ledger, under an id that stays and is never given twice."""

    id: int
    prompt: str
    """With "{}" for the subject."""
    subject: str
    target_new: str
    joined: bool | None = None

    @property
    def text(self) -> str:
        """The prompt with its subject."""
        return fill(self.prompt, self.subject)

    @property
    def request(self) -> dict[str, Any]:
        """As editors take it."""
        named = {"prompt": self.prompt, "subject": self.subject, "target_new": self.target_new, "case_id": self.id}
        return named if self.joined is None else named | {"joined": self.joined}


@dataclass
class Ledger:
    """See the module."""

    folder: Path
    model_name: str
    """What it is called where it is loaded from."""
    editor: str
    hparams: dict[str, Any]
    basis: dict[str, Any] | None
    """What the edits stand on: fingerprints of model and tokenizer, contexts, statistics; None before the first fact."""
    facts: dict[int, Fact]
    next_id: int
    states: dict[str, str]
    """Name of each file of target states -> its SHA-256."""
    build: Build
    """Gives the editor of a name and hyper-parameters."""

    @classmethod
    def create(
        cls, folder: str | Path, model_name: str, editor: str, hparams: Mapping[str, Any], build: Build = load
    ) -> Ledger:
        """An empty ledger, in a folder that is made. Raises UserError if there is one, or for an editor that can't keep one."""
        folder = Path(folder)
        if (folder / CONTENT).exists():
            raise UserError(f"{folder}: is a ledger already")
        ledger = cls(folder, model_name, editor, dict(hparams), None, {}, 0, {}, build)
        ledger._editor()
        check_writable(folder / STATES, "a ledger")
        ledger.save()
        return ledger

    @classmethod
    def read(cls, folder: str | Path, build: Build = load) -> Ledger:
        """Raises UserError for a folder without a ledger, and one that was damaged or changed by hand."""
        path = Path(folder) / CONTENT
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            checksum, content = stored["sha256"], stored["content"]
            if _sha256_of(content) != checksum:
                raise UserError(f"{path}: its checksum does not fit, so it was damaged or changed by hand: restore a copy")
            if content["format"] != FORMAT:
                raise UserError(f"{path}: a ledger of format {content['format']}, and this version reads {FORMAT}")
            facts = {int(fact["id"]): Fact(**fact) for fact in content["facts"]}
            return cls(Path(folder), **{name: content[name] for name in KEPT} | {"facts": facts, "build": build})
        except FileNotFoundError:
            raise UserError(f"{folder}: holds no ledger") from None
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: not a ledger, or damaged ({type(error).__name__}); restore it from a copy") from None

    def save(self) -> None:
        """Writes the ledger: the whole of it or nothing."""
        content = {name: getattr(self, name) for name in KEPT} | {
            "format": FORMAT, "facts": [vars(fact) for fact in self.facts.values()]}
        with whole_file(self.folder / CONTENT) as part:
            signed = {"sha256": _sha256_of(content), "content": content}
            part.write_text(json.dumps(signed, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def add(self, model: nn.Module, tok, requests: Sequence[Mapping | Request], replacing: bool = False) -> list[int]:
        """Adds facts, seeks their target states together, and saves. Returns their ids.

        A fact is known by its prompt and subject. One that is there with the same target stays as it is; with another target it
        is refused, or, ``replacing``, its target is replaced under its id. Raises UserError for the former, for malformed
        requests, and for another model than the ledger's.
        """
        facts = dict(self.facts)
        by_text = {(fact.prompt, fact.subject): fact for fact in facts.values()}
        ids, next_id = [], self.next_id
        for request in parse_requests(requests, tok):
            place = request.prompt, request.subject
            target = request.target_new.strip()
            known = by_text.get(place)
            if known and known.target_new != target and not replacing:
                raise UserError(f"{known.text!r} is fact {known.id}, with the target {known.target_new!r}, against {target!r}: "
                                "remove that one first, or replace it")
            fact = replace(known, target_new=target) if known else Fact(next_id, *place, target, request.joined)
            next_id += not known
            facts[fact.id] = by_text[place] = fact
            ids.append(fact.id)
        new = [fact.request for id, fact in facts.items() if self.facts.get(id) != fact]
        editor = self._on(model, tok)
        if new:
            editor.seek(model, tok, new, self.folder / STATES)
        self.facts, self.next_id = facts, next_id
        self.states = {path.name: _sha256(path) for path in sorted((self.folder / STATES).glob("*.safetensors"))}
        self.save()
        return ids

    def remove(self, ids: Sequence[int]) -> list[Fact]:
        """Takes facts out, and saves. Raises UserError for an id that no fact has."""
        missing = [id for id in ids if id not in self.facts]
        if missing:
            there = ", ".join(map(str, list(self.facts)[:20])) + (", ..." if len(self.facts) > 20 else "")
            raise UserError(f"{self.folder}: has no fact {missing[0]}; " + (f"it has {there}" if there else "it is empty"))
        removed = [self.facts[id] for id in dict.fromkeys(ids)]
        self.facts = {id: fact for id, fact in self.facts.items() if id not in set(ids)}
        self.save()
        return removed

    def edit(self, model: nn.Module, tok) -> Edit:
        """The edit of all facts that are in the ledger; the model is unchanged.

        Raises UserError for an empty ledger, another model, other statistics or contexts, and states that are damaged.
        """
        if not self.facts:
            raise UserError(f"{self.folder}: the ledger is empty, so there is nothing to edit")
        for name, checksum in self.states.items():
            path = self.folder / STATES / name
            if not path.is_file() or _sha256(path) != checksum:
                raise UserError(f"{path}: missing, damaged or changed by hand; restore the ledger from a copy, or delete the "
                                "file and add its facts anew in another ledger")
        editor = self._on(model, tok)
        return editor.edit(model, tok, [fact.request for fact in self.facts.values()], z_cache=self.folder / STATES)

    def _on(self, model: nn.Module, tok) -> SpreadEditor:
        """The ledger's editor, begun on a model. Raises UserError if the ledger stands on something else."""
        editor = self._editor()
        names = {"model": model_fingerprint(model), "tokenizer": tokenizer_fingerprint(tok)}
        for name, fingerprint in names.items():
            if self.basis and self.basis[name] != fingerprint:
                raise UserError(f"{self.folder}: a ledger of another {name} ({self.basis[name]}, this one is {fingerprint}); "
                                "an edited model is another one, too: give the unedited one")
        basis = json.loads(json.dumps(names | editor.begin(model, tok)))
        if self.basis is None:
            self.basis = basis
        other = [name for name in basis if self.basis.get(name) != basis[name]]
        if other:
            raise UserError(f"{self.folder}: a ledger of other {other[0]}: give the folder of statistics that it was made with")
        return editor

    def _editor(self) -> SpreadEditor:
        if not issubclass(editor_class(self.editor), SpreadEditor):
            raise UserError(f"--alg_name {self.editor}: a ledger solves all facts at once, as MEMIT, EMMET and AlphaEdit do")
        return self.build(self.editor, self.hparams)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Inside, no other process changes the ledger. Raises UserError if one does so now."""
    folder = Path(folder)
    check_writable(folder, "a ledger")
    with open(folder / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is changing this ledger; try again when it is done") from None
        yield


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sha256_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
