"""Episodes: an edit, inputs that should answer alike, and unrelated inputs, as the tensors that a model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from common.errors import UserError
from editors.core.prompts import encode_target, pad_id, prompt_ids, tokenize
from .losses import IGNORED
from .model_kind import ModelKind

Batch = dict[str, Tensor]
"""input_ids, attention_mask and labels, and of sequence-to-sequence models decoder_input_ids and decoder_attention_mask."""


class Example(Protocol):
    """A text and what a model should make of it."""

    input: str
    target: str | None
    """What follows, or the answer."""
    label: int | None
    """1 true, 0 false (classifiers)."""
    scored: int | None
    """Without a target: how many of the input's last tokens are scored; None: all."""


class Item(Protocol):
    """One edit, and inputs for which it should hold, too."""

    edit: Example
    outer: Sequence[Example]
    condition: str | None
    drop: float | None
    """In [0, 1): how much of the beginning of `outer` is left out, as a share of what may be."""


@dataclass(frozen=True)
class Episode:
    """One draw: what `edit` is given, where its success and its side effects are measured."""

    edit_inner: Batch
    edit_outer: Batch | None
    """None where no equivalent input is known."""
    loc: Batch
    cond: Batch
    """Text that conditions KE's hyper-network; one row an edit."""
    pos_pairs: Int[Tensor, "outer 2"]
    """(row of edit_outer, the edit that it belongs to)."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """What particular experiments add: sentiments, the texts themselves."""
    segments: int = 1
    """So many episodes joined, each with its share of the rows of every batch."""

    def to(self, device: torch.device) -> Episode:
        """The episode with its tensors there."""
        def moved(batch: Batch | None) -> Batch | None:
            return None if batch is None else {name: tensor.to(device) for name, tensor in batch.items()}

        return replace(
            self,
            edit_inner=moved(self.edit_inner),
            edit_outer=moved(self.edit_outer),
            loc=moved(self.loc),
            cond=moved(self.cond),
            pos_pairs=self.pos_pairs.to(device),
        )


def joined(episodes: Sequence[Episode]) -> Episode | None:
    """These episodes as one of as many segments; None if their batches have different sizes, or the edits are of opinions."""
    if len(episodes) == 1:
        return episodes[0]
    if any(getattr(item, "sentiment", None) is not None for e in episodes for item in e.extras.get("items", ())):
        return None
    counts = {
        tuple(0 if b is None else len(b["input_ids"]) for b in (e.edit_inner, e.edit_outer, e.loc, e.cond)) for e in episodes
    }
    if len(counts) > 1 or 0 in (count := next(iter(counts))):
        return None
    offsets = torch.arange(len(episodes)).repeat_interleave(len(episodes[0].pos_pairs))[:, None] * torch.tensor(
        [count[1], count[0]]
    )
    extras = {key: tuple(x for e in episodes for x in e.extras[key]) for key in episodes[0].extras}
    parts = (joined_batches([getattr(e, name) for e in episodes]) for name in ("edit_inner", "edit_outer", "loc", "cond"))
    return Episode(*parts, torch.cat([e.pos_pairs for e in episodes]) + offsets, extras, len(episodes))


def joined_batches(batches: Sequence[Batch]) -> Batch:
    """One batch of all rows, padded on the right; what is padded is neither seen nor scored."""

    def stacked(name: str) -> Tensor:
        width = max(batch[name].shape[1] for batch in batches)
        fill = IGNORED if name == "labels" else 0
        return torch.cat([torch.nn.functional.pad(b[name], (0, width - b[name].shape[1]), value=fill) for b in batches])

    return {name: stacked(name) for name in batches[0]}


@dataclass(frozen=True)
class Collator:
    """Makes episodes of texts, in the form that a kind of model reads. Pads on the right; changes no tokenizer."""

    tok: Any
    kind: ModelKind
    max_length: int | None = None
    """Longer texts lose their end, but of a decoder's their beginning, where the target is at the end."""
    n_outer_max: int | None = None
    """At most so many equivalents."""
    ended: bool = False
    """A decoder's edits end with the end of text, so that who learns to answer learns to stop (SERAC)."""
    unshifted_decoder: bool = False
    """Blenderbot's decoder reads the very tokens that it is scored on, as in SERAC's published data."""

    def __call__(self, items: Sequence[Item], local: Sequence[Example]) -> Episode:
        """The episode of these edits, made at once, and unrelated inputs. Raises UserError for an empty or malformed one."""
        if not items or not local:
            raise UserError("an episode needs at least one edit and one unrelated input")
        outer = [(example, i) for i, item in enumerate(items) for example in item.outer][: self.n_outer_max]
        edit_outer = self.batch([example for example, _ in outer], ended=self.ended) if outer else None
        if edit_outer is not None and items[0].drop is not None:
            edit_outer = _without_beginning(edit_outer, items[0].drop)
        pairs = torch.tensor([[row, edit] for row, (_, edit) in enumerate(outer)], dtype=torch.long).reshape(-1, 2)
        conditions = [
            item.condition if item.condition is not None else item.edit.input + (item.edit.target or "") for item in items
        ]
        return Episode(
            self.batch([item.edit for item in items], ended=self.ended),
            edit_outer,
            self.batch(local, labelled=False),
            self.texts(conditions),
            pairs,
            {"items": tuple(items), "local": tuple(local)},
        )

    def batch(self, examples: Sequence[Example], labelled: bool = True, ended: bool = False) -> Batch:
        """One batch of these examples.

        labelled: a classifier's must have a label; one without is not scored. ended: a decoder's targets have the end of text
        behind them.
        """
        for example in examples:
            if not example.input.strip():
                raise UserError("an example's input is empty")
        if self.kind is ModelKind.CLASSIFIER:
            if any(example.label not in (0, 1) and (labelled or example.label is not None) for example in examples):
                raise UserError("a classifier's examples need a label, 1 (true) or 0 (false)")
            labels = torch.tensor([[IGNORED if example.label is None else example.label] for example in examples])
            return self._padded(self._ids([example.input for example in examples])) | {"labels": labels}
        if self.kind is ModelKind.DECODER:
            return self._decoder(examples, [self.tok.eos_token_id] if ended and self.tok.eos_token_id is not None else [])
        return self._seq2seq(examples)

    def texts(self, texts: Sequence[str]) -> Batch:
        """The tokens of texts alone."""
        return self._padded(self._ids(texts))

    def _decoder(self, examples: Sequence[Example], end: list[int]) -> Batch:
        rows, labels = [], []
        for example, (ids, offsets) in zip(examples, tokenize(self.tok, [e.input + (e.target or "") for e in examples])):
            n = self._target_length(example, offsets)
            seam = len(example.input)
            if example.target and not example.input[-1].isspace() and any(a < seam < b for a, b in offsets):
                target = encode_target(self.tok, example.target, example.input)
                n, ids = len(target), [*prompt_ids(self.tok, example.input), *target]
            if n is not None and end:
                n, ids = n + 1, ids + end
            if self.max_length is not None and len(ids) > self.max_length:
                ids = ids[-self.max_length :] if n is not None else ids[: self.max_length]
            rows.append(ids)
            labels.append(ids if n is None else [IGNORED] * (len(ids) - n) + ids[len(ids) - n :])
        width = max(map(len, rows))
        return self._padded(rows) | {"labels": _stack(labels, IGNORED, width)}

    def _target_length(self, example: Example, offsets: Sequence[tuple[int, int]]) -> int | None:
        """How many of the last tokens are the target, from the tokens' places in the text; None: all of them are scored."""
        if not offsets:
            raise UserError(f"{example.input!r} has no tokens")
        if example.target is None and example.scored is None:
            return None
        n = example.scored
        if example.target is not None:
            n = sum(end > len(example.input) for _, end in offsets)
        # The first token of a text is predicted from nothing, so it can't be scored.
        if not 1 <= n < len(offsets) or (self.max_length is not None and n >= self.max_length):
            raise UserError(
                f"the target of {example.input[:60]!r} has {n} tokens of a text of {len(offsets)}: "
                "it must have at least one, and fewer than the text and the longest input"
            )
        return n

    def _seq2seq(self, examples: Sequence[Example]) -> Batch:
        if any(not example.target for example in examples):
            raise UserError("a sequence-to-sequence model's examples need a target")
        targets = [self._framed(ids) for ids in self._ids([example.target for example in examples])]
        batch = self._padded(self._ids([example.input for example in examples]))
        decoder = self._padded(targets)
        labels = decoder["input_ids"].masked_fill(decoder["attention_mask"] == 0, IGNORED)
        batch |= {"labels": labels, "decoder_attention_mask": decoder["attention_mask"]}
        if self.kind is ModelKind.BART:
            ids = decoder["input_ids"].clone()
            ids[:, 0] = self.tok.eos_token_id
            batch["decoder_input_ids"] = ids
        elif self.kind is ModelKind.BLENDERBOT and self.unshifted_decoder:
            batch["decoder_input_ids"] = decoder["input_ids"]
        return batch

    def _framed(self, ids: list[int]) -> list[int]:
        """A target with the end of sentence behind it, and for BART one token in front, which is never scored."""
        if self.tok.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token, which a sequence-to-sequence model needs")
        if ids[-1:] != [self.tok.eos_token_id]:
            ids = [*ids, self.tok.eos_token_id]
        if self.kind is ModelKind.BART:
            start = self.tok.eos_token_id if self.tok.bos_token_id is None else self.tok.bos_token_id
            if ids[0] != start or start == self.tok.eos_token_id:
                ids = [start, *ids]
        return ids

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        rows = self.tok(list(texts), truncation=self.max_length is not None, max_length=self.max_length).input_ids
        if not all(rows):
            raise UserError(f"{texts[[len(row) for row in rows].index(0)]!r} has no tokens")
        return rows

    def _padded(self, rows: Sequence[Sequence[int]]) -> Batch:
        width = max(map(len, rows))
        return {
            "input_ids": _stack(rows, pad_id(self.tok), width),
            "attention_mask": _stack([[1] * len(r) for r in rows], 0, width),
        }


def _stack(rows: Sequence[Sequence[int]], fill: int, width: int) -> Int[Tensor, "rows width"]:
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def _without_beginning(batch: Batch, share: float) -> Batch:
    """The batch without its first columns: `share` of half of what the shortest row has before its target."""
    lengths, scored = batch["attention_mask"].sum(1), (batch["labels"] != IGNORED).sum(1)
    drop = int(share * (int((lengths - scored).min()) // 2 + 1))
    return {name: tensor[:, drop:] for name, tensor in batch.items()}
