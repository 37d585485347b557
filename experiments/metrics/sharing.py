"""Rows of tokens that begin alike (few-shot examples, an instruction): the beginning runs once for all of them."""

import os
import sys
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from editors.core.budget import token_budget
from editors.memory.routing import is_routed

from experiments.metrics import incremental
from experiments.metrics.incremental import continues, extend, Prefix

MIN_SHARED = 8
"""Tokens in common from which on an extra pass pays."""


class SharedPrefix:
    """Reads ``rows`` (of one token or more) group by group, as :func:`experiments.metrics.incremental.read` does."""

    def __init__(self, model: PreTrainedModel, rows: Sequence[Sequence[int]], pad_id: int):
        self._model, self._rows, self._pad = model, rows, pad_id
        shared = min(len(os.path.commonprefix(rows)), min(map(len, rows)) - 1)  # at least a row's last token is its own
        worthwhile = len(rows) > 1 and shared >= MIN_SHARED and not is_routed(model) and continues(model)
        self._start = shared if worthwhile else 0
        self._base = incremental.read(model, [rows[0][:self._start]], pad_id)[0] if self._start else None

    def batches(self) -> list[list[int]]:
        """Indices of the rows in groups to :meth:`read`: of like length, and such that their keys and values fit in memory."""
        groups = incremental.batches(self._model, [row[self._start:] for row in self._rows])
        if self._base is None:
            return groups
        most = max(1, token_budget(self._model, most=sys.maxsize) // max(map(len, self._rows)))
        return [group[i:i + most] for group in groups for i in range(0, len(group), most)]

    def read(self, rows: Sequence[Sequence[int]]) -> tuple[Prefix, Float[Tensor, "rows vocabulary"]]:
        """The prefix that these rows leave, and the logits behind each."""
        if self._base is None:
            return incremental.read(self._model, rows, self._pad)
        prefix = self._base.select([0] * len(rows))
        device = prefix.mask.device
        middles = [row[self._start:-1] for row in rows]
        tokens = torch.full((len(rows), max(map(len, middles))), self._pad)
        mask = torch.zeros_like(tokens)
        for i, row in enumerate(middles):
            tokens[i, :len(row)] = torch.tensor(row, dtype=torch.long)
            mask[i, :len(row)] = 1
        if tokens.shape[1]:
            extend(self._model, prefix, tokens.to(device), mask.to(device), logits_to_keep=1)
            prefix = _padded_left(prefix)
        # The last tokens by themselves: they stand in one column now, so that the head runs on that alone.
        last = torch.tensor([[row[-1]] for row in rows], device=device)
        return prefix, extend(self._model, prefix, last)[:, -1]


def _padded_left(prefix: Prefix) -> Prefix:
    """The prefix with each row's padding before its tokens: a row goes on where it ends, also for attention to the nearest
    columns only. Keys know their positions, or the mask tells them, so that columns can move."""
    order = prefix.mask.argsort(dim=1, stable=True)
    cache = DynamicCache()
    for number, layer in enumerate(prefix.cache.layers):
        index = order.to(layer.keys.device)[:, None, :, None]
        cache.update(*(x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3])) for x in (layer.keys, layer.values)), number)
    return Prefix(cache, prefix.mask.gather(1, order), prefix.lengths)
