"""Questions to a memory of edits: who answers, with what, and how sure the scope is."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import UserError
from editors.core.modules import input_device
from editors.core.prompts import pad_batch, pad_id
from editors.learned.model_kind import ModelKind
from .answerers import SeracAnswerer
from .routed import RoutedEdit
from .serac import SERAC
from .store import EditStore, Entry
from .tokens import encode, window, without_end


@dataclass(frozen=True)
class Answer:
    """The answer to a query, and the nearest edit that it was judged by."""

    text: str
    value: float
    """Of the nearest edit: the probability that the query is in its scope, or the distance from it."""
    measure: str
    """Which of the two."""
    edit: Entry
    """The nearest edit."""
    inside: bool
    """Whether the query is in its scope."""


def with_memory(alg: SERAC, memory: EditStore) -> SERAC:
    """A copy of a trained SERAC that goes by this memory. Raises UserError for edits that are not of its kind, or none."""
    if not len(memory):
        raise UserError("the memory is empty: there is no edit that a query could fall under")
    if memory.labelled != alg.memory.labelled:
        kind = "need labels" if alg.memory.labelled else "are statements without labels (create --statements)"
        raise UserError(f"the memory is not of this run's kind: edits of a {alg.kind.value} model {kind}")
    edited = alg.remember([])
    edited.memory = memory.copy().to(next(alg.net.classifier.parameters()).device)
    return edited


def ask(alg: SERAC, queries: Sequence[str], tokens: int = 20) -> list[Answer]:
    """What a trained SERAC answers; of a classifier "true" or "false". tokens: at most so many are generated.

    Raises UserError for an empty memory or query.
    """
    _check(queries)
    alg.eval()
    route, entries = alg.route(queries), list(alg.memory)
    answers = []
    for query, value, place, inside in zip(queries, route.score.tolist(), route.edit.tolist(), route.inside.tolist()):
        model = alg.net.replacement if inside and not alg.options.freeze_cntr else alg.model
        longest = _room(model, alg.tok, tokens) if alg.kind is ModelKind.DECODER else window(model, alg.tok)
        row, = encode(alg.tok, [query], longest, [alg.form.prefix(entries[place])] if inside else None)
        answers.append(Answer(_said(alg, model, row, tokens), value, SeracAnswerer.measure, entries[place], inside))
    return answers


@torch.no_grad()
def _said(alg: SERAC, model: nn.Module, row: list[int], tokens: int) -> str:
    row = without_end(alg.tok, row) if alg.kind is ModelKind.DECODER else row
    batch = _batch([row], alg.tok, model)
    if alg.kind is ModelKind.CLASSIFIER:
        return "true" if model(**batch)[0, 0] > 0 else "false"
    return _generated(model, alg.tok, batch, tokens, len(row) if alg.kind is ModelKind.DECODER else 1)[0]


def ask_edit(edit: RoutedEdit, model: nn.Module, tok, prompts: Sequence[str], tokens: int = 20) -> list[Answer]:
    """What a decoder says behind prompts under an edit. Raises UserError as `RoutedEdit.apply` does."""
    _check(prompts)
    rows = [without_end(tok, row) for row in encode(tok, prompts, _room(model, tok, tokens))]
    with edit.applied(model):
        answerer = edit.answering(model)
        batch = _batch(rows, tok, model)
        texts = _generated(model, tok, batch, tokens, batch["input_ids"].shape[1])
        nearest = answerer.find(rows)
    entries = list(edit.memory)
    return [Answer(text, value, answerer.measure, entries[place], answerer.is_inside(value))
            for text, (value, place) in zip(texts, nearest)]


def _room(model: nn.Module, tok, tokens: int) -> int:
    """Tokens that a prompt may have before so many are generated."""
    room = window(model, tok) - tokens
    if room < 1:
        raise UserError(f"{tokens} tokens to generate leave no room for a prompt: the model reads {window(model, tok)} in all")
    return room


def _check(queries: Sequence[str]) -> None:
    if not all(query.strip() for query in queries):
        raise UserError("a query is empty")


def _batch(rows: Sequence[Sequence[int]], tok, model: nn.Module) -> dict[str, Tensor]:
    batch = pad_batch(rows, pad_id(tok), input_device(model), side="left")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def _generated(model: nn.Module, tok, batch: dict[str, Tensor], tokens: int, start: int) -> list[str]:
    """The likeliest tokens, one after the other, from column `start` up to the end of the text."""
    ids = model.generate(**batch, max_new_tokens=tokens, do_sample=False, num_beams=1, pad_token_id=pad_id(tok))
    rows = [row[start:] for row in ids.tolist()]
    rows = [row[:row.index(tok.eos_token_id)] if tok.eos_token_id in row else row for row in rows]
    return [tok.decode(row, skip_special_tokens=True).strip() for row in rows]
