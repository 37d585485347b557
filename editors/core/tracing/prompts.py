"""Known facts as token rows with the place of the subject."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from common.errors import UserError
from common.orthography import without_space
from editors.core.prompts import target_ids, tokenize


class KnownFact(Protocol):
    """What a model says by itself: ``prompt`` holds ``subject``, and goes on with ``attribute``."""

    known_id: int
    subject: str
    attribute: str
    prompt: str


@dataclass(frozen=True)
class TracePrompt:
    """A fact's prompt, tokenised."""

    fact: KnownFact
    ids: list[int]
    """With the special tokens that the tokenizer puts in front."""
    start: int
    """Position of the subject's first token; 0 <= start < end <= len(ids)."""
    end: int
    """Position behind the subject's last token."""
    expected: int
    """First token of the attribute: what a model that knows the fact says next."""


def trace_prompts(tok, facts: Sequence[KnownFact], positions: int | None) -> list[TracePrompt]:
    """The facts' prompts, tokenised, with the place of the subject. positions: tokens that the model takes (None: any number).

    A token belongs to the subject if it holds one of the characters of its first appearance in the prompt. Raises UserError
    naming the fact for a subject that no token covers, an attribute without tokens, or a prompt that is too long.
    """
    prompts = []
    for fact, (ids, offsets) in zip(facts, tokenize(tok, [without_space(fact.prompt) for fact in facts])):
        name = f"known fact {fact.known_id}"
        start = fact.prompt.index(fact.subject)
        end = start + len(fact.subject)
        subject_tokens = [i for i, (first, last) in enumerate(offsets) if max(first, start) < min(last, end)]
        if not subject_tokens:
            raise UserError(f"{name}: no token of {fact.prompt!r} covers the subject {fact.subject!r}")
        if positions is not None and len(ids) > positions:
            raise UserError(f"{name}: its prompt takes {len(ids)} tokens, but the model has {positions} positions")
        if not fact.attribute.strip():
            raise UserError(f"{name}: its attribute is empty")
        try:
            expected = target_ids(tok, fact.prompt, fact.attribute)[0]
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        prompts.append(TracePrompt(fact, ids, subject_tokens[0], subject_tokens[-1] + 1, expected))
    return prompts
