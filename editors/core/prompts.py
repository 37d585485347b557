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
from common.orthography import continuation, without_space

Ids = tuple[int, ...]
_Row = TypeVar("_Row", bound=Sequence[int])
FACT_TOKENS = ("subject_first", "subject_last", "subject_first_after_last", "last", "subject_last_separate")


@dataclass(frozen=True)
class Request:
    """One fact to change: ``prompt`` about ``subject`` shall be continued by ``target_new``."""

    prompt: str
    """Has exactly one ``{}``, which stands for the subject."""
    subject: str
    target_new: str
    """As it continues the prompt: with a space in front, or without ("l'" + "Alguer")."""
    case_id: int | str | None = None
    target_true: str | None = None
    true_prompt: str | None = None
    """The prompt that target_true continues, where it has to agree with its object ("{}, la"); None: `prompt`."""
    true_subject: str | None = None
    """The subject as it stands in true_prompt; None: `subject`."""
    joined: bool | None = None
    """Whether targets stand behind their prompt without a space; None: see :func:`common.orthography.continuation`."""

    @property
    def text(self) -> str:
        """The prompt with its subject."""
        return fill(self.prompt, self.subject)

    @property
    def true_text(self) -> str:
        """What stands before target_true."""
        return without_space(fill(self.true_prompt or self.prompt, self.true_subject or self.subject))

    def target_ids(self, tok, end_of_text: bool = False) -> list[int]:
        """Token ids of target_new behind the prompt; with the tokenizer's end-of-text token behind them, if asked for.

        Raises UserError for a tokenizer without one.
        """
        ids = encode_target(tok, self.target_new, self.text)
        return [*ids, end_id(tok)] if end_of_text else ids


@dataclass(frozen=True)
class Located:
    """A tokenised text and one of its positions."""

    ids: list[int]
    """Token ids of the whole text, with the special tokens that the tokenizer puts in front."""
    index: int
    """Position (>= 0) of the looked-up token in ``ids``."""


def parse_requests(requests: Sequence[Mapping | Request], tok=None) -> list[Request]:
    """Checked requests. Prompts lose spaces at their end, and targets are as they continue them.

    Accepts the field's mapping {"prompt", "subject", "target_new": {"str"} or str, ["case_id"], ["target_true"], ["joined"]}
    and Request objects. With ``tok`` subjects and targets must also tokenise to something. Raises UserError with one
    line that names the request by its position and case_id.
    """
    if isinstance(requests, (Mapping, Request, str)) or not isinstance(requests, Iterable):
        raise UserError(f"requests must be a list of mappings, not one {type(requests).__name__}")
    return [_parse(request, i, tok) for i, request in enumerate(requests)]


def check_lengths(
    tok, requests: Sequence[Request], templates: Sequence[str], positions: int | None, end_of_text: bool = False
) -> None:
    """Raises UserError for a request whose prompt and target do not fit into a model's ``positions`` (None: any number).

    templates: contexts with one ``{}`` each, in which the prompt shall fit. The target's last token, which with end_of_text is
    the end, is never fed to a model.
    """
    if positions is None or not templates:
        return
    for i, request in enumerate(requests):
        target = len(request.target_ids(tok, end_of_text)) - 1
        texts = [fill(template, request.text) for template in templates]
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


def end_id(tok) -> int:
    """The id of the end-of-text token. Raises UserError for a tokenizer without one."""
    if tok.eos_token_id is None:
        raise UserError("end_of_text: the tokenizer has no end-of-text token; leave it false, or set eos_token in its files")
    return tok.eos_token_id


def prompt_ids(tok, text: str) -> Ids:
    """Token ids of a text to be continued: with the special tokens that a tokenizer puts in front, without an EOS behind it."""
    (ids, _), = tokenize(tok, [text])
    return tuple(ids)


def target_ids(tok, prompt: str, target: str, joined: bool | None = None) -> list[int]:
    """Token ids of ``target`` as it continues ``prompt``; spaces at the prompt's end and around the target do not count.

    joined: whether it follows without a space; None: see :func:`common.orthography.continuation`. The ids are to be put behind
    those of the prompt, so no token holds characters of both. Behind a space they are the same for all prompts. Left out are a
    BOS, the space that SentencePiece puts before a text, and an unknown piece that stands for a space alone. Raises UserError
    if nothing that the model knows is left.
    """
    prompt, text = continuation(prompt, target, joined)
    return encode_target(tok, text, prompt)


def encode_target(tok, target: str, prompt: str = "") -> list[int]:
    """:func:`target_ids` of a target that begins as it continues the prompt, with a space or without."""
    # Behind other text the target is tokenised as behind a prompt; alone, some tokenizers put a space before it. The other text
    # must not merge with it. Joined, what stands right before matters: the prompt itself, if it does not merge.
    anchors = ("a", ".", "0", "\n") if not prompt or target.startswith(" ") else (prompt, prompt[-1], "\n", "a", ".", "0")
    for anchor in anchors:
        (ids, offsets), = tokenize(tok, [anchor + target])
        if not any(start < len(anchor) < end for start, end in offsets):
            first = next((i for i, (_, end) in enumerate(offsets) if end > len(anchor)), len(ids))
            ids, spans = ids[first:], [(start - len(anchor), end - len(anchor)) for start, end in offsets[first:]]
            break
    else:
        (ids, spans), = tokenize(tok, [target], add_special_tokens=False)
    while ids and ids[0] in (tok.unk_token_id, tok.bos_token_id) and not target[: spans[0][1]].strip():
        ids, spans = ids[1:], spans[1:]
    if all(token == tok.unk_token_id for token in ids):
        raise UserError(f"the target {target!r} tokenises to nothing that the model knows")
    return ids


def tokenize(tok, texts: Sequence[str], add_special_tokens: bool = True) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """(token ids, character offsets) of each text; without the EOS that some tokenizers put behind a text."""
    if not getattr(tok, "is_fast", False):
        raise UserError(f"{type(tok).__name__} gives no character offsets: load a fast tokenizer (use_fast=True)")
    coded = tok(list(texts), return_offsets_mapping=True, add_special_tokens=add_special_tokens, verbose=False)
    special = set(tok.all_special_ids)
    rows = []
    for text, ids, offsets in zip(texts, coded["input_ids"], coded["offset_mapping"]):
        keep = len(ids)
        while keep and text and offsets[keep - 1][0] == offsets[keep - 1][1] and ids[keep - 1] in special:
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
            _target(request.get("target_true")), request.get("true_prompt"), request.get("true_subject"), request.get("joined"),
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
    if request.true_prompt is not None and request.true_prompt.count("{}") != 1:
        raise UserError(f"{where}: true_prompt {request.true_prompt!r} needs exactly one '{{}}', where the subject stands")
    if not isinstance(request.joined, bool | None):
        raise UserError(f"{where}: joined must be true or false, not {request.joined!r}")
    request = _normalised(request)
    if tok is not None:
        try:
            request.target_ids(tok)
            locate(tok, request.prompt, request.subject, "subject_last")
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return request


def _normalised(request: Request) -> Request:
    """With prompts without spaces at their end, and the new target as it continues its own."""
    prompt, subject = without_space(request.prompt), request.subject
    if prompt.endswith("{}"):
        subject = without_space(subject)
    true_prompt = request.true_prompt and without_space(request.true_prompt)
    _, target = continuation(fill(prompt, subject), request.target_new, request.joined)
    return replace(request, prompt=prompt, subject=subject, target_new=target, true_prompt=true_prompt)


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
