"""Requests, and which token of a prompt an editor looks at.

Positions come from a fast tokenizer's character offsets over the whole text, so whatever the tokenizer does at the
seams (a prepended BOS, a space merged into the subject, "l'{}", a subject inside a word) is seen as the model sees it.
User text is split and joined, never formatted: braces in a subject are ordinary characters.
"""

from dataclasses import dataclass
from typing import Mapping, Sequence

import torch

from ..errors import EditingError

FACT_TOKENS = ("subject_first", "subject_last", "subject_first_after_last", "last")


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
    Request objects. With ``tok`` subjects and targets must also tokenise to something. Raises EditingError with one
    line that names the request by its position and case_id.
    """
    if isinstance(requests, (Mapping, Request, str)):
        raise EditingError(f"requests must be a list of mappings, not one {type(requests).__name__}")
    return [_parse(request, f"request {i}", tok) for i, request in enumerate(requests)]


def locate(tok, template: str, subject: str, fact_token: str, suffix: str = "") -> Located:
    """Token ids of the prompt (``template`` with ``subject`` at its ``{}``) + ``suffix``, and the looked-up position.

    fact_token:
    * "subject_last": the last token that holds a character of the subject. Spaces at its ends do not count.
    * "subject_first": the first such token, or the token of the space in front of the subject where that stands alone
      (published: the subject is looked up together with that space).
    * "subject_first_after_last": the token behind subject_last; subject_last itself if the prompt ends with the subject.
    * "last": the prompt's last token, whatever ``suffix`` (a target, say) follows.
    Positions depend on the prompt alone, so they agree between a bare prompt and one with a target behind it.
    Raises EditingError for an unknown fact_token, a slow tokenizer, or a subject that no token covers.
    """
    return locate_all(tok, [(template, subject, suffix)], fact_token)[0]


def locate_all(tok, texts: Sequence[tuple[str, str, str]], fact_token: str) -> list[Located]:
    """``locate`` for many (template, subject, suffix), tokenised in one call."""
    if fact_token not in FACT_TOKENS:
        raise EditingError(f"unknown fact_token {fact_token!r}; known: {', '.join(FACT_TOKENS)}")
    if not texts:
        return []
    spans, wholes = [], []
    for template, subject, suffix in texts:
        before, after = split_template(template)
        start = len(before) + len(subject) - len(subject.lstrip())
        prompt = before + subject + after
        spans.append((start, start + len(subject.strip()), len(prompt)))
        wholes.append(prompt + suffix)
    located = []
    for (ids, offsets), span, whole, (_, subject, _) in zip(tokenize(tok, wholes), spans, wholes, texts):
        index = _position(offsets, span, whole, fact_token)
        if index is None:
            raise EditingError(f"no token of {whole!r} covers the subject {subject!r}")
        located.append(Located(ids, index))
    return located


def split_template(template: str) -> tuple[str, str]:
    """The texts before and behind the one ``{}`` of a template; EditingError if there is not exactly one."""
    if template.count("{}") != 1:
        raise EditingError(f"{template!r} has {template.count('{}')} '{{}}' and needs exactly one")
    before, _, after = template.partition("{}")
    return before, after


def fill(template: str, text: str) -> str:
    """``template`` with ``text``, which may hold braces of its own, at its ``{}``."""
    before, after = split_template(template)
    return before + text + after


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
    """An id to pad with; attention masks make its value irrelevant."""
    return next((i for i in (tok.pad_token_id, tok.eos_token_id) if i is not None), 0)


def encode_target(tok, target: str) -> list[int]:
    """Token ids of ``target`` as it continues a text: no BOS, and no lone space piece of SentencePiece tokenizers.

    A leading unknown piece (a space that the vocabulary lacks) is dropped. Raises EditingError if nothing is left.
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
        raise EditingError(f"the target {target!r} tokenises to nothing that the model knows")
    return ids


def tokenize(tok, texts: Sequence[str], add_special_tokens: bool = True) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """(token ids, character offsets) of each text; without the EOS that some tokenizers put behind a text."""
    if not getattr(tok, "is_fast", False):
        raise EditingError(f"{type(tok).__name__} gives no character offsets: load a fast tokenizer (use_fast=True)")
    coded = tok(list(texts), return_offsets_mapping=True, add_special_tokens=add_special_tokens, verbose=False)
    rows = []
    for ids, offsets in zip(coded["input_ids"], coded["offset_mapping"]):
        keep = len(ids)
        while keep and offsets[keep - 1][0] == offsets[keep - 1][1]:
            keep -= 1
        rows.append((ids[:keep], offsets[:keep]))
    return rows


def _parse(request: Mapping | Request, where: str, tok) -> Request:
    if not isinstance(request, Request):
        if not isinstance(request, Mapping):
            raise EditingError(f"{where} is a {type(request).__name__}, not a mapping")
        missing = [key for key in ("prompt", "subject", "target_new") if key not in request]
        if missing:
            raise EditingError(f"{where} (case_id {request.get('case_id')}) lacks {', '.join(missing)}")
        request = Request(
            request["prompt"], request["subject"], _target(request["target_new"]), request.get("case_id"),
            _target(request.get("target_true")),
        )
    if request.case_id is not None:
        where += f" (case_id {request.case_id})"
    for name in ("prompt", "subject", "target_new"):
        if not isinstance(getattr(request, name), str):
            raise EditingError(f"{where}: {name} must be text, not {getattr(request, name)!r}")
    if request.prompt.count("{}") != 1:
        raise EditingError(
            f"{where}: the prompt {request.prompt!r} has {request.prompt.count('{}')} '{{}}' and needs exactly one, "
            "where the subject stands"
        )
    if not request.subject.strip():
        raise EditingError(f"{where}: the subject is empty")
    if not request.target_new.strip():
        raise EditingError(f"{where}: the target is empty")
    target = request.target_new if request.target_new.startswith(" ") else " " + request.target_new
    if tok is not None:
        try:
            encode_target(tok, target)
            locate(tok, request.prompt, request.subject, "subject_last")
        except EditingError as error:
            raise EditingError(f"{where}: {error}") from None
    return Request(request.prompt, request.subject, target, request.case_id, request.target_true)


def _target(value):
    return value.get("str") if isinstance(value, Mapping) else value


def _position(offsets: Sequence[tuple[int, int]], span: tuple[int, int, int], text: str, fact_token: str) -> int | None:
    """Position of the looked-up token, or None if no token covers the subject. Zero-wide tokens (BOS) never count."""
    start, end, prompt_end = span
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and end > start]
    # A token that joins the prompt's trailing space to what follows belongs to what follows.
    prompt = [i for i, (a, b) in enumerate(offsets) if a < b and (b <= prompt_end or text[a:prompt_end].strip())]
    if not inside:
        return None
    if fact_token == "subject_first":
        lone_space = inside[0] > 0 and offsets[inside[0] - 1] == (start - 1, start) and text[start - 1] == " "
        return inside[0] - lone_space
    if fact_token == "subject_last":
        return inside[-1]
    if fact_token == "last":
        return prompt[-1]
    return min(inside[-1] + 1, prompt[-1])
