"""zsRE question answering (Levy et al. 2017) in MEND's schema, as MEMIT's evaluation reads it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from common.orthography import continuation, is_whole_word
from data.fields import Fields
from data.records import Prompt, Record, Target

if TYPE_CHECKING:  # only named here, and slow to import
    from transformers import PreTrainedTokenizerBase

NO_TRUE_TARGET = Target("<|endoftext|>")
"""The field's stand-in for "no true answer is given"."""
_LOCALITY_MARK = "nq question: "

log = logging.getLogger(__name__)


def parse(raw: Sequence[Any], source: str, limit: int | None = None) -> list[Record]:
    """The first ``limit`` records (all by default) of MEND's zsRE schema; ``case_id`` is the position in the file.

    As published: ``prompt`` is ``src`` with the subject replaced by ``{}``, ``target_new`` the first answer,
    ``target_true`` ``<|endoftext|>``, the one paraphrase ``rephrase``; the limit counts transformed records. Where the
    subject stands in ``src`` more than once, one occurrence is replaced (see :func:`template_of`); the published code
    replaces all and then fails on the prompt. Where it does not stand there at all, or ``src`` has braces, there is no
    prompt to edit: the record is left out, and one warning gives the count.

    The locality question and answer stay in ``extra`` as ``loc`` and ``loc_ans``; :func:`with_locality` makes prompts of
    them. ``rephrase``, and ``loc`` with ``loc_ans``, may be missing. Raises ``UserError`` at the first record with another key
    missing or wrong.
    """
    records, left_out = [], []
    for number, item in enumerate(raw):
        if len(records) == limit:
            break
        record = _record(Fields(item, f"{source}, record {number}"), number)
        if record is None:
            left_out.append(number)
        else:
            records.append(record)
    if left_out:
        log.warning("%s: left out %d records whose question does not contain the subject, or has braces (the first is "
                    "record %d)", source, len(left_out), left_out[0])
    return records


def template_of(question: str, subject: str) -> str | None:
    """The question with ``{}`` in place of the subject; ``None`` if that makes no valid prompt.

    Of several occurrences the first that is a whole word is taken ("Ma" in "Is Mali the home of Ma?"), else the first;
    so the filled-in prompt is always the question itself.
    """
    if "{" in question or "}" in question or subject not in question:
        return None
    places = [match.start() for match in re.finditer(f"(?={re.escape(subject)})", question)]
    start = next((place for place in places if is_whole_word(question, place, place + len(subject))), places[0])
    return question[:start] + "{}" + question[start + len(subject):]


def with_locality(records: Iterable[Record], tok: PreTrainedTokenizerBase) -> list[Record]:
    """The records with their ``neighborhood_prompts`` filled in for this tokenizer; other schemas pass unchanged."""
    return [replace(record, neighborhood_prompts=locality_prompts(record, tok)) if record.schema == "zsre" else record
            for record in records]


def locality(record: Record) -> tuple[Prompt, ...]:
    """The locality question with its whole answer; the ``neighborhood_prompts`` of a record that has none of its own."""
    if "loc" not in record.extra:
        return tuple(record.neighborhood_prompts)
    return (Prompt(record.extra["loc"] + "?", record.extra["loc_ans"]),)


def locality_prompts(record: Record, tok: PreTrainedTokenizerBase) -> tuple[Prompt, ...]:
    """As published, one prompt for each token of " " + ``loc_ans``: ``loc``, "?" and the answer's tokens before it, decoded.

    The target is that one token, decoded alone; half of a character decodes to U+FFFD. The one prompt is :func:`locality` where
    that can't be done: a tokenizer does not give back the text it was given, or treats its beginning differently
    (SentencePiece's), or the answer follows without a space.
    """
    if not locality(record):
        return ()
    whole, = locality(record)
    _, answer = continuation(whole.prompt, whole.target, record.joined)
    ids, behind = tok([answer, "a" + answer], add_special_tokens=False, verbose=False)["input_ids"]
    if not answer.startswith(" ") or _decode(tok, ids) != answer or behind[-len(ids):] != ids:
        return (whole,)
    return tuple(Prompt(whole.prompt + _decode(tok, ids[:i]), _decode(tok, ids[i:i + 1])) for i in range(len(ids)))


def _decode(tok: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    # Tokenizers differ in whether they tidy spaces before punctuation; the text must be what the tokens say.
    return tok.decode(ids, clean_up_tokenization_spaces=False)


def _record(fields: Fields, number: int) -> Record | None:
    subject, question, rephrase = fields.text("subject"), fields.text("src"), fields.optional_text("rephrase")
    answers = fields.texts("answers", blanks=True)
    if not answers or not answers[0].strip():
        raise fields.error("'answers' has no first answer")
    joined, loc = fields.optional_flag("joined"), {}
    if fields.has("loc") or fields.has("loc_ans"):
        loc = {"loc": fields.text("loc"), "loc_ans": fields.text("loc_ans")}
        if _LOCALITY_MARK not in loc["loc"]:
            raise fields.error(f"'loc' should contain {_LOCALITY_MARK!r}, found {loc['loc']!r}")
    prompt = template_of(question, subject)
    if prompt is None:
        return None
    return Record(case_id=number, subject=subject, prompt=prompt, target_new=Target(answers[0]), target_true=NO_TRUE_TARGET,
                  paraphrase_prompts=(rephrase,) if rephrase else (), neighborhood_prompts=(), schema="zsre", joined=joined,
                  extra={**fields.rest(), "answers": list(answers), **loc})
