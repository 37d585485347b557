"""The typed records that every data set is read into."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.orthography import continuation


@dataclass(frozen=True)
class Target:
    """An answer, and its Wikidata id where the data set has one."""

    str: str
    id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The target as data files write it."""
        return {"str": self.str} if self.id is None else {"str": self.str, "id": self.id}


@dataclass(frozen=True)
class Prompt:
    """A prompt whose expected continuation is its own: zsRE's locality answer, or one token of it."""

    prompt: str
    target: str


@dataclass(frozen=True)
class Record:
    """One edit and the prompts that judge it.

    ``prompt`` holds exactly one ``{}``, the subject's place; all other prompts are complete strings.
    ``neighborhood_prompts`` are strings that expect ``target_true`` (CounterFact), or :class:`Prompt` (zsRE; empty when
    the records were loaded without a tokenizer, see :func:`data.zsre.with_locality`).
    ``joined`` says whether targets stand behind their prompts without a space; None: what stands on both sides decides (see
    :func:`common.orthography.continuation`).
    ``portability`` and ``locality`` are questions with answers of their own (KnowEdit): what follows from the new fact, and
    what has nothing to do with it.
    ``extra`` has every other key of the file as it stands (``loc``, ``answers``, ``two_hop``, ...).
    """

    case_id: int
    subject: str
    prompt: str
    target_new: Target
    target_true: Target | None
    paraphrase_prompts: tuple[str, ...]
    neighborhood_prompts: tuple[str | Prompt, ...]
    attribute_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    relation_id: str | None = None
    schema: str = "counterfact"
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    joined: bool | None = None
    portability: tuple[Prompt, ...] = ()
    locality: tuple[Prompt, ...] = ()

    def requested_rewrite(self) -> dict[str, Any]:
        """The edit as the published case files write it; what a data set does not have is left out."""
        rewrite = {"prompt": self.prompt, "relation_id": self.relation_id, "target_new": self.target_new.to_dict(),
                   "target_true": self.target_true and self.target_true.to_dict(), "subject": self.subject,
                   "joined": self.joined}
        return {key: value for key, value in rewrite.items() if value is not None}

    def request(self) -> dict[str, Any]:
        """What an editor takes: :meth:`requested_rewrite` with the ``case_id``."""
        return {"case_id": self.case_id, **self.requested_rewrite()}

    def worded_for_true(self) -> "Record | Variant":
        """The wording of the prompts that agrees with ``target_true``: the record's own, unless it has two."""
        return self

    def sentences(self) -> tuple[str, str]:
        """(the new fact, the true fact), each as a sentence: prompt, subject and object."""
        true = self.worded_for_true()
        return ("".join(continuation(self.prompt.replace("{}", self.subject), self.target_new.str, self.joined)),
                "".join(continuation(true.prompt.replace("{}", true.subject), self.target_true.str, self.joined)))


@dataclass(frozen=True)
class Variant:
    """The prompts of a record, in the wording that one object asks for."""

    subject: str
    prompt: str
    paraphrase_prompts: tuple[str, ...]
    neighborhood_prompts: tuple[str, ...]
    attribute_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VariantRecord(Record):
    """A record whose prompts agree with ``target_new``, and the same prompts worded for ``target_true``.

    The two have equally many paraphrase and neighborhood prompts; subjects may differ in form.
    """

    true_variant: Variant

    def request(self) -> dict[str, Any]:
        """With the wording for ``target_true`` as ``true_prompt`` and ``true_subject``."""
        return {**super().request(), "true_prompt": self.true_variant.prompt, "true_subject": self.true_variant.subject}

    def worded_for_true(self) -> Variant:
        return self.true_variant


LATER = ("joined", "portability", "locality")
"""Fields that count only where a record has them, so that other records keep their fingerprint."""


def fingerprint(records: Iterable[Record]) -> str:
    """SHA-256 of the records' whole content, to tell one data set (or one selection of it) from another."""
    digest = hashlib.sha256()
    for record in records:
        content = {key: value for key, value in vars(record).items() if key not in LATER or value not in (None, ())}
        digest.update(json.dumps(content, sort_keys=True, default=vars).encode())
    return digest.hexdigest()
