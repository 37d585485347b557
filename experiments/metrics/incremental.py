"""Prompts run once through the model, and whatever is asked behind them continues from their key/value cache.

A model that reads padding into its states, or keeps no such cache, reads every row anew instead, in groups of one length:
slower, and right (see editors.core.batching).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from common.errors import UserError
from editors.core.batching import batching, run
from editors.core.budget import logit_rows, token_budget
from editors.core.prompts import pad_batch
from editors.core.modules import input_device, longest_context
from editors.memory.routing import is_routed


@dataclass
class Prefix:
    """Left-padded rows of tokens that the model has read."""

    cache: DynamicCache | None
    """None: the rows are read anew, from `ids`."""
    mask: Int[Tensor, "rows width"]
    """1 at real tokens."""
    lengths: Int[Tensor, " rows"]
    """Real tokens of each row."""
    ids: list[list[int]] = field(default_factory=list)
    """Of each row, without a cache."""

    def select(self, rows: Sequence[int]) -> Prefix:
        """These rows (repeats allowed) as a prefix of their own; this one stays as it is."""
        index = torch.tensor(rows, device=self.mask.device)
        if self.cache is None:
            return Prefix(None, self.mask[index], self.lengths[index], [list(self.ids[row]) for row in rows])
        cache = DynamicCache()
        for number, layer in enumerate(self.cache.layers):
            layer_index = index.to(layer.keys.device)
            cache.update(layer.keys[layer_index], layer.values[layer_index], number)
        return Prefix(cache, self.mask[index], self.lengths[index])


def read(model: PreTrainedModel, rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Prefix, Float[Tensor, "rows vocabulary"]]:
    """Run token rows of unequal length in one pass: the prefix, and the logits behind each row (the head runs only there)."""
    batch = pad_batch(rows, pad_id, input_device(model), side="left")
    if not continues(model):
        prefix = Prefix(None, batch["attention_mask"], batch["attention_mask"].sum(1), [list(row) for row in rows])
        return prefix, _anew(model, prefix.ids, [1] * len(rows))[:, -1]
    # Without the configuration's layer types every layer keeps all its tokens. Sliding windows are then left to the masks;
    # a cache that drops old columns would count padding as tokens.
    cache, mask = DynamicCache(), batch["attention_mask"]
    logits = _forward(model, batch["input_ids"], mask, batch["position_ids"], cache, logits_to_keep=1)
    return Prefix(cache, mask, mask.sum(1)), logits[:, -1]


def extend(
    model: PreTrainedModel, prefix: Prefix, tokens: Int[Tensor, "rows columns"],
    mask: Int[Tensor, "rows columns"] | None = None, logits_to_keep: int = 0,
) -> Float[Tensor, "rows columns vocabulary"]:
    """Logits behind each of the tokens, read behind the prefix, which grows by them.

    mask: 0 where a row has fewer tokens than others (on the right); default all 1. logits_to_keep: the head runs on so many
    last columns only; 0 for all.
    """
    mask = torch.ones_like(tokens) if mask is None else mask
    if prefix.cache is None:
        return _extend_anew(model, prefix, tokens, mask)
    positions = (prefix.lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)) * mask
    prefix.mask = torch.cat([prefix.mask, mask], 1)
    prefix.lengths = prefix.lengths + mask.sum(1)
    return _forward(model, tokens, prefix.mask, positions, prefix.cache, logits_to_keep=logits_to_keep)


def continues(model: PreTrainedModel) -> bool:
    """Whether rows of the model can be padded on the left and continued from a cache. Under edits that go by the prompt that
    is taken for granted, since a prompt that is read anew with what follows it would be another."""
    return is_routed(model) or batching(model).continues


def continue_rows(
    model: PreTrainedModel,
    prefix: Prefix,
    logits: Float[Tensor, "rows vocabulary"],
    choose: Callable[[Float[Tensor, "alive vocabulary"], list[int], int], Int[Tensor, " alive"]],
    finished: Callable[[int, list[int]], bool],
) -> list[list[int]]:
    """The new tokens of each row, token by token from the cache; the prefix is used up.

    logits: behind the prefix. choose: (logits, numbers of the rows still running, step) -> a token for each of them.
    finished: (row, its new tokens) -> whether the row ends there.
    """
    alive = list(range(len(logits)))
    new_tokens: list[list[int]] = [[] for _ in alive]
    step = 0
    while True:
        chosen = choose(logits, alive, step)
        for row, token in zip(alive, chosen.tolist()):
            new_tokens[row].append(token)
        running = [i for i, row in enumerate(alive) if not finished(row, new_tokens[row])]
        if not running:
            return new_tokens
        if len(running) < len(alive):
            prefix, chosen = prefix.select(running), chosen[torch.tensor(running, device=chosen.device)]
            alive = [alive[i] for i in running]
        logits = extend(model, prefix, chosen[:, None].to(prefix.mask.device))[:, -1]
        step += 1


def batches(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of the rows, longest first, in batches that fit :func:`token_budget` and :func:`logit_rows`.

    Padding is held to an eighth of a batch, or to as many tokens as a pass costs by itself, whatever is in it.
    """
    budget, most = token_budget(model), logit_rows(model)
    pass_cost = 64 if input_device(model).type == "cpu" else 4096
    groups: list[list[int]] = []
    width = padding = 0
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        size = width * (len(groups[-1]) + 1) if groups else 0
        padding += width - len(rows[i])
        if not groups or size > budget or len(groups[-1]) == most or padding > max(pass_cost, size // 8):
            groups.append([])
            width, padding = len(rows[i]), 0
        groups[-1].append(i)
    return groups


def shortened(text: str) -> str:
    """``text`` as a message quotes it: on one line, and never a whole page."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def check_length(model: PreTrainedModel, row: Sequence[int], what: str) -> None:
    """Raises UserError for a row that is empty or longer than the model's positions."""
    limit = longest_context(model)
    if not row:
        raise UserError(f"{what} tokenises to nothing; remove it from the data")
    if limit and len(row) > limit:
        raise UserError(f"{what} has {len(row)} tokens, more than the model's {limit} positions; shorten it in the data")


def _extend_anew(
    model: PreTrainedModel, prefix: Prefix, tokens: Int[Tensor, "rows columns"], mask: Int[Tensor, "rows columns"]
) -> Float[Tensor, "rows columns vocabulary"]:
    """:func:`extend` without a cache: the whole rows once more. Columns of logits where the mask is 0 mean nothing."""
    counts = mask.sum(1).tolist()
    prefix.ids = [row + new[:count] for row, new, count in zip(prefix.ids, tokens.tolist(), counts)]
    prefix.mask = torch.cat([prefix.mask, mask], 1)
    prefix.lengths = prefix.lengths + mask.sum(1)
    logits = _anew(model, prefix.ids, counts)
    return torch.cat([logits, logits.new_zeros(len(logits), tokens.shape[1] - logits.shape[1], logits.shape[2])], 1)


def _anew(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], counts: Sequence[int]
) -> Float[Tensor, "rows columns vocabulary"]:
    """Logits behind the last so many tokens of each row, in the first columns; rows of one length run together, unpadded."""
    device, columns, placed = input_device(model), max(counts), {}
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(i)
    for length, all_of_length in by_length.items():
        size = max(1, min(token_budget(model) // length, logit_rows(model) // length))
        for start in range(0, len(all_of_length), size):
            group = all_of_length[start : start + size]
            most = max(counts[i] for i in group)
            logits = run(model, torch.tensor([rows[i] for i in group], device=device), logits_to_keep=max(1, most))
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            for i, of_row in zip(group, logits):
                placed[i] = of_row[len(of_row) - counts[i] :]
    out = next(iter(placed.values())).new_zeros(len(rows), columns, next(iter(placed.values())).shape[-1])
    for i, of_row in placed.items():
        out[i, : len(of_row)] = of_row
    return out


def _forward(model, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache, **options) -> Tensor:
    if "position_ids" in inspect.signature(model.forward).parameters:
        options["position_ids"] = positions
    with torch.no_grad():  # not inference_mode: buffers that a model renews as it runs must stay usable for gradients
        logits = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
