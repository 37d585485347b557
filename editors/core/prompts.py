"""Requests, and which token of a prompt an editor looks at.

Positions come from a fast tokenizer's character offsets over the whole text, so whatever the tokenizer does at the
seams (a prepended BOS, a space merged into the subject, "l'{}", a subject inside a word) is seen as the model sees it.
User text is split and joined, never formatted: braces in a subject are ordinary characters.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from common.errors import UserError

_Row = TypeVar("_Row", bound=Sequence[int])
FACT_TOKENS = ("subject_first", "subject_last", "subject_first_after_last", "last", "subject_last_separate")


@dataclass(frozen=True)
class Request:
    """One fact to change: ``prompt`` about ``subject`` shall be continued by ``target_new``."""

    prompt: str
    """Has exactly one ``{}``, which stands for the subject."""
    subject: str
    target_new: str
    """Starts with a space, as the continuation of the prompt does."""
    case_id: int | str | None = None
    target_true: str | None = None
    true_prompt: str | None = None
    """The prompt that target_true continues, where it has to agree with its object ("{}, la"); None: `prompt`."""
    true_subject: str | None = None
    """The subject as it stands in true_prompt; None: `subject`."""


@dataclass(frozen=True)
class Located:
    """A tokenised text and one of its positions."""

    ids: list[int]
    """Token ids of the whole text, with the special tokens that the tokenizer puts in front."""
    index: int
    """Position (>= 0) of the looked-up token in ``ids``."""


def parse_requests(requests: Sequence[Mapping | Request], tok=None) -> list[Request]:
    """Checked requests. A target gets the leading space that it lacks.

    Accepts the field's mapping {"prompt", "subject", "target_new": {"str"} or str, ["case_id"], ["target_true"]} and
    Request objects. With ``tok`` subjects and targets must also tokenise to something. Raises UserError with one
    line that names the request by its position and case_id.
    """
    if isinstance(requests, (Mapping, Request, str)) or not isinstance(requests, Iterable):
        raise UserError(f"requests must be a list of mappings, not one {type(requests).__name__}")
    return [_parse(request, i, tok) for i, request in enumerate(requests)]


def check_lengths(tok, requests: Sequence[Request], templates: Sequence[str], positions: int | None) -> None:
    """Raises UserError for a request whose prompt and target do not fit into a model's ``positions`` (None: any number).

    templates: contexts with one ``{}`` each, in which the prompt shall fit. The target's last token is never fed to a model.
    """
    if positions is None or not templates:
        return
    for i, request in enumerate(requests):
        target = len(encode_target(tok, request.target_new)) - 1
        texts = [fill(template, fill(request.prompt, request.subject)) for template in templates]
        for template, (ids, _) in zip(templates, tokenize(tok, texts)):
            if len(ids) + target > positions:
                context = "" if template == "{}" else f" in the context {template!r}"
                raise UserError(
                    f"{_name(i, request.case_id)}: the prompt and its target take {len(ids) + target} tokens{context}, but the "
                    f"model has {positions} positions: shorten the prompt"
                )


def locate(tok, template: str, subject: str, fact_token: str) -> Located:
    """Token ids of the prompt (``template`` with ``subject`` at its ``{}``), and the looked-up position.

    fact_token:
    * "subject_last": the last token that holds a character of the subject. Spaces at its ends do not count.
    * "subject_first": the first such token, or the token of the space in front of the subject where that stands alone
      (published: the subject is looked up together with that space).
    * "subject_first_after_last": the token behind subject_last; subject_last itself if the prompt ends with the subject.
    * "last": the prompt's last token.
    * "subject_last_separate": as published, where subject_last would be if the text before the subject and the subject were
      tokenised by themselves. Off by some tokens where they are not ("d'{}").
    Raises UserError for an unknown fact_token, a slow tokenizer, or a subject that no token covers.
    """
    return locate_all(tok, [(template, subject)], fact_token)[0]


def locate_all(tok, prompts: Sequence[tuple[str, str]], fact_token: str) -> list[Located]:
    """``locate`` for many (template, subject), tokenised in one call."""
    if fact_token not in FACT_TOKENS:
        raise UserError(f"unknown fact_token {fact_token!r}; known: {', '.join(FACT_TOKENS)}")
    if not prompts:
        return []
    if fact_token == "subject_last_separate":
        return _located_separately(tok, prompts)
    spans, texts = [], []
    for template, subject in prompts:
        before, after = split_template(template)
        start = len(before) + len(subject) - len(subject.lstrip())
        spans.append((start, start + len(subject.strip())))
        texts.append(before + subject + after)
    located = []
    for (ids, offsets), span, text, (_, subject) in zip(tokenize(tok, texts), spans, texts, prompts):
        index = _position(offsets, span, text, fact_token)
        if index is None:
            raise UserError(f"no token of {text!r} covers the subject {subject!r}")
        located.append(Located(ids, index))
    return located


def _located_separately(tok, prompts: Sequence[tuple[str, str]]) -> list[Located]:
    texts, starts, subjects = [], [], []
    for template, subject in prompts:
        start, end = split_template(template)
        texts.append(start + subject + end)
        starts.append(start.removesuffix(" "))
        subjects.append(" " + subject.strip() if start else subject)
    lengths = [len(ids) for ids, _ in tokenize(tok, starts)]
    subject_lengths = [len(ids) for ids, _ in tokenize(tok, subjects, add_special_tokens=False)]
    return [Located(ids, min(a + b, len(ids)) - 1) for (ids, _), a, b in zip(tokenize(tok, texts), lengths, subject_lengths)]


def continued(tok, text: str, ids: list[int], target: list[int], target_tokens: str) -> list[int]:
    """What a model is fed for a target behind a text: the text's `ids` and all but the last of the target's tokens.

    target_tokens: "ids" appends them; "text" appends what they decode to and tokenises all anew, as published. That differs
    where a token ends within a character.
    """
    if target_tokens == "ids" or len(target) == 1:
        return ids + target[:-1]
    (retokenised, _), = tokenize(tok, [text + tok.decode(target[:-1])])
    return retokenised


def split_template(template: str) -> tuple[str, str]:
    """The texts before and behind the one ``{}`` of a template; UserError if there is not exactly one."""
    if template.count("{}") != 1:
        raise UserError(f"{template!r} has {template.count('{}')} '{{}}' and needs exactly one")
    before, _, after = template.partition("{}")
    return before, after


def fill(template: str, text: str) -> str:
    """``template`` with ``text``, which may hold braces of its own, at its ``{}``."""
    before, after = split_template(template)
    return before + text + after


def pack(rows: Sequence[_Row], budget: int) -> Iterator[list[_Row]]:
    """Rows of like length together, longest first: each batch within ``budget`` tokens, padding included, or of one row.

    Empty rows are dropped.
    """
    rows = sorted(filter(None, rows), key=len, reverse=True)
    while rows:
        count = max(1, budget // len(rows[0]))
        yield rows[:count]
        rows = rows[count:]


def pad_batch(
    rows: Sequence[Sequence[int]], pad_id: int, device=None, side: str = "right", align: Sequence[int] | None = None
) -> dict[str, torch.Tensor]:
    """{"input_ids", "attention_mask", "position_ids"}, each int64 [rows, width], of rows of unequal length.

    side: "right" or "left", where the padding goes. align: one index a row; rows are padded on the left so that these
    tokens share a column, and on the right to equal width (``side`` is then not looked at). position_ids count each
    row's own tokens from 0 and are 0 at padding.
    """
    if align is not None:
        lead = [max(align) - index for index in align]
    elif side in ("left", "right"):
        longest = max(map(len, rows))
        lead = [longest - len(row) if side == "left" else 0 for row in rows]
    else:
        raise ValueError(f"side must be 'left' or 'right', not {side!r}")
    width = max(start + len(row) for start, row in zip(lead, rows))
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask, position_ids = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    for i, (start, row) in enumerate(zip(lead, rows)):
        where = slice(start, start + len(row))
        input_ids[i, where] = torch.tensor(row, dtype=torch.long)
        attention_mask[i, where] = 1
        position_ids[i, where] = torch.arange(len(row))
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def pad_id(tok) -> int:
    """An id to pad with; attention masks make its value irrelevant, but the model must know it.

    So none that was added to the tokenizer: the model's embedding may not have been resized for it.
    """
    return next((i for i in (tok.pad_token_id, tok.eos_token_id) if i is not None and i < tok.vocab_size), 0)


def encode_target(tok, target: str) -> list[int]:
    """Token ids of ``target`` as it continues a text: no BOS, and no lone space piece of SentencePiece tokenizers.

    A leading unknown piece (a space that the vocabulary lacks) is dropped. Raises UserError if nothing is left.
    """
    # Behind other text the target is tokenised as behind a prompt; alone, some tokenizers put a second space before it.
    for anchor in ("a", ".", "0"):
        (ids, offsets), = tokenize(tok, [anchor + target])
        if not any(start < len(anchor) < end for start, end in offsets):
            ids = [i for i, (_, end) in zip(ids, offsets) if end > len(anchor)]
            break
    else:
        (ids, _), = tokenize(tok, [target], add_special_tokens=False)
    while ids and ids[0] in (tok.unk_token_id, tok.bos_token_id):
        ids = ids[1:]
    if not ids:
        raise UserError(f"the target {target!r} tokenises to nothing that the model knows")
    return ids


def tokenize(tok, texts: Sequence[str], add_special_tokens: bool = True) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """(token ids, character offsets) of each text; without the EOS that some tokenizers put behind a text."""
    if not getattr(tok, "is_fast", False):
        raise UserError(f"{type(tok).__name__} gives no character offsets: load a fast tokenizer (use_fast=True)")
    coded = tok(list(texts), return_offsets_mapping=True, add_special_tokens=add_special_tokens, verbose=False)
    rows = []
    for ids, offsets in zip(coded["input_ids"], coded["offset_mapping"]):
        keep = len(ids)
        while keep and offsets[keep - 1][0] == offsets[keep - 1][1]:
            keep -= 1
        rows.append((ids[:keep], offsets[:keep]))
    return rows


def _name(number: int, case_id: int | str | None) -> str:
    """How messages call a request."""
    return f"request {number}" + ("" if case_id is None else f" (case_id {case_id})")


def _parse(request: Mapping | Request, number: int, tok) -> Request:
    if not isinstance(request, Request):
        if not isinstance(request, Mapping):
            raise UserError(f"{_name(number, None)} is a {type(request).__name__}, not a mapping")
        missing = [key for key in ("prompt", "subject", "target_new") if key not in request]
        if missing:
            raise UserError(f"{_name(number, request.get('case_id'))} lacks {', '.join(missing)}")
        request = Request(
            request["prompt"], request["subject"], _target(request["target_new"]), request.get("case_id"),
            _target(request.get("target_true")), request.get("true_prompt"), request.get("true_subject"),
        )
    where = _name(number, request.case_id)
    for name in ("prompt", "subject", "target_new", "target_true", "true_prompt", "true_subject"):
        missing = getattr(request, name) is None and name in ("target_true", "true_prompt", "true_subject")
        if not missing and not isinstance(getattr(request, name), str):
            raise UserError(f"{where}: {name} must be text, not {getattr(request, name)!r}")
    if request.prompt.count("{}") != 1:
        raise UserError(
            f"{where}: the prompt {request.prompt!r} has {request.prompt.count('{}')} '{{}}' and needs exactly one, "
            "where the subject stands"
        )
    if not request.subject.strip():
        raise UserError(f"{where}: the subject is empty")
    if not request.target_new.strip():
        raise UserError(f"{where}: the target is empty")
    target = request.target_new if request.target_new.startswith(" ") else " " + request.target_new
    if tok is not None:
        try:
            encode_target(tok, target)
            locate(tok, request.prompt, request.subject, "subject_last")
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if request.true_prompt is not None and request.true_prompt.count("{}") != 1:
        raise UserError(f"{where}: true_prompt {request.true_prompt!r} needs exactly one '{{}}', where the subject stands")
    return replace(request, target_new=target)


def _target(value):
    return value.get("str") if isinstance(value, Mapping) else value


def _position(offsets: Sequence[tuple[int, int]], span: tuple[int, int], text: str, fact_token: str) -> int | None:
    """Position of the looked-up token, or None if no token covers the subject. Zero-wide tokens (BOS) never count."""
    start, end = span
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and end > start]
    if not inside:
        return None
    if fact_token == "subject_first":
        lone_space = inside[0] > 0 and offsets[inside[0] - 1] == (start - 1, start) and text[start - 1] == " "
        return inside[0] - lone_space
    if fact_token == "subject_last":
        return inside[-1]
    last = len(offsets) - 1
    return last if fact_token == "last" else min(inside[-1] + 1, last)
