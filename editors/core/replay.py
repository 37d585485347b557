"""Replay: run the blocks above an edit again and again without paying twice for what cannot change.

Rows are laid out so that every row's looked-up token stands in one column. What stands before that column enters once, as a
KV cache; the blocks below the edit run once; a replay runs the blocks from `start` on, over the looked-up token and what
follows it. The model's own forward does the work (masks, rotary angles and norms stay its own): the blocks below `start` are
only told to hand through.
"""

import copy
import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from .decoder import Decoder
from .modules import by_row, first, hooked, LeaveForward
from .prompts import pad_batch


class Replay:
    """Rows of token ids, ready to be run from block `start` and from the looked-up column on.

    rows: token ids without padding; lookups: for each row the position of the token that comes first in a replay.
    hidden: what enters block `start` at the replayed columns; None when start is 0 (the embedding is run anew).
    """

    hidden: Float[Tensor, "rows columns d_model"] | None

    def __init__(self, decoder: Decoder, rows: Sequence[list[int]], lookups: Sequence[int], start: int):
        self.decoder, self.start = decoder, start
        self.blocks = [decoder.block(layer) for layer in range(decoder.sites.layers)]
        self._takes_positions = "position_ids" in inspect.signature(decoder.stack.forward).parameters
        batch = pad_batch(list(rows), decoder.pad_id, decoder.device, align=list(lookups))
        self.ids, self.mask, self.positions = batch["input_ids"], batch["attention_mask"], batch["position_ids"]
        self.lookup = max(lookups)
        self.mask[:, self.lookup :] = 1  # nothing sees right padding, but where it saw nothing itself it could turn to NaN
        self.cache: DynamicCache | None = None
        self.hidden, self._companions = None, None
        with torch.no_grad():
            if self.lookup:
                self.cache = self._run_prefix([row[:lookup] for row, lookup in zip(rows, lookups)])
            if start:
                self.hidden = self._run_below()
        self._forget_below()

    def __call__(
        self, hidden: Float[Tensor, "rows columns d_model"] | None = None
    ) -> Float[Tensor, "rows columns d_model"]:
        """The decoder's output (after the final norm) at the replayed columns, with `hidden` entering block `start`."""
        with self._handing_through(self.hidden if hidden is None else hidden):
            return self._run_columns()

    @property
    def columns(self) -> int:
        """Of a replay."""
        return self.ids.shape[1] - self.lookup

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drop all other rows."""
        self.ids, self.mask, self.positions = (x[rows.to(x.device)] for x in (self.ids, self.mask, self.positions))
        if self.hidden is not None:
            self.hidden = self.hidden[rows.to(self.hidden.device)]
        if self.cache is not None:
            for layer in self.cache.layers:
                layer.keys, layer.values = (x[rows.to(x.device)] for x in (layer.keys, layer.values))
            self._forget_below()

    def _run_prefix(self, prefixes: Sequence[list[int]]) -> DynamicCache:
        """The cache of everything before the looked-up column. Beginnings that rows share (contexts) run once."""
        # Without the configuration's windows every layer keeps all tokens, and they are left to the masks: Moshi has windows
        # for its caches that its masks know nothing of.
        cache, device = DynamicCache(), self.ids.device
        stems = [tuple(row[:length]) for row, length in zip(prefixes, shared_beginnings(prefixes))]
        unique = sorted(set(stems))
        saved = sum(map(len, stems)) - sum(map(len, unique))
        if saved < len(prefixes):
            end = self.lookup
            self._fill(cache, self.ids[:, :end], self.mask[:, :end], self.positions[:, :end])
            return cache

        rests = [row[len(stem) :] for row, stem in zip(prefixes, stems)]
        batch = pad_batch(unique, self.decoder.pad_id, device, side="left")
        self._fill(cache, batch["input_ids"], batch["attention_mask"], batch["position_ids"])
        stem_of = torch.tensor([unique.index(stem) for stem in stems], device=device)
        for layer in cache.layers:
            layer.keys, layer.values = (x[stem_of.to(x.device)] for x in (layer.keys, layer.values))
        rest = pad_batch(rests, self.decoder.pad_id, device)
        positions = rest["position_ids"] + torch.tensor([[len(stem)] for stem in stems], device=device)
        mask = torch.cat([batch["attention_mask"][stem_of], rest["attention_mask"]], 1)
        if mask.shape[1] > cache.get_seq_length():  # some row has a token of its own before the looked-up one
            self._fill(cache, rest["input_ids"], mask, positions)
        # [padding, beginning, rest, padding] of each row moves to the right, so that what follows it stands in one column.
        width = mask.shape[1]
        ends = torch.tensor([[max(map(len, rests)) - len(rest)] for rest in rests], device=device)
        source = (torch.arange(width - self.lookup, width, device=device) - ends).clamp_min(0)[:, None, :, None]
        for layer in cache.layers:
            layer.keys, layer.values = (
                x.take_along_dim(source.to(x.device), 2) for x in (layer.keys, layer.values)
            )
        return cache

    def _fill(self, cache: DynamicCache, ids: Tensor, mask: Tensor, positions: Tensor) -> None:
        """Run these columns behind those in the cache."""
        padding = mask[:, -ids.shape[1] :, None] == 0

        def blank(module, args, output):
            # A padding position sees nothing, which eager attention turns to NaN in some dtypes; and NaN times 0 is NaN.
            hidden = first(output)
            hidden = hidden.masked_fill(padding.to(hidden.device), 0)
            return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

        with hooked(block.register_forward_hook(blank) for block in self.blocks):
            self._decode(ids, mask, positions, cache)

    def _run_columns(self) -> Float[Tensor, "rows columns d_model"]:
        cache = None
        if self.cache is not None:  # layers replace their tensors when they grow, so a copy of the holders protects the prefix
            cache = copy.copy(self.cache)
            cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return self._decode(self.ids[:, self.lookup :], self.mask, self.positions[:, self.lookup :], cache)

    def _run_below(self) -> Float[Tensor, "rows columns d_model"]:
        caught = []

        def catch(module, args, output):
            caught.append(output)
            raise LeaveForward

        with hooked([self.blocks[self.start - 1].register_forward_hook(catch)]):
            self._run_columns()
        if isinstance(caught[0], tuple):
            self._companions = (None,) * (len(caught[0]) - 1)
        return first(caught[0])

    def _forget_below(self) -> None:
        """The cache of the blocks below `start` is never read again, but its shape still tells masks how long the prefix is."""
        for layer in self.cache.layers[: self.start] if self.cache is not None else ():
            layer.keys, layer.values = (x.new_zeros(()).expand(x.shape) for x in (layer.keys, layer.values))

    def _decode(self, ids, mask, positions, cache) -> Tensor:
        extra = {"position_ids": positions} if self._takes_positions else {}
        return self.decoder.stack(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=cache is not None, **extra
        ).last_hidden_state

    @contextmanager
    def _handing_through(self, hidden: Tensor | None) -> Iterator[None]:
        """Inside, blocks below `start` cost nothing and the last of them puts out `hidden`."""

        def hand_out(*args, **kwargs):
            return hidden if self._companions is None else (hidden, *self._companions)

        below = self.blocks[: self.start]
        saved = [block.__dict__.get("forward") for block in below]  # Accelerate keeps its own forward there
        for block in below:
            block.forward = hand_out
        try:
            yield
        finally:
            for block, forward in zip(below, saved):
                del block.forward
                if forward is not None:
                    block.forward = forward


@contextmanager
def only_at(module: nn.Module, places: Int[Tensor, " places"]) -> Iterator[None]:
    """Inside, `module`, which treats each position by itself, runs at these of the flattened rows; elsewhere it puts out 0."""
    shapes = []

    def gather(module, args):
        shapes.append(args[0].shape)
        return tuple(x.reshape(1, -1, x.shape[-1])[:, places.to(x.device)] for x in args)

    def scatter(module, args, output):
        shape, states = shapes.pop(), by_row(first(output), 1)[0]  # Llama 4's experts give their router's logits besides
        full = states.new_zeros(shape[:-1].numel(), states.shape[-1])
        full = full.index_copy(0, places.to(states.device), states).reshape(*shape[:-1], -1)
        return full if isinstance(output, Tensor) else (full, *output[1:])

    with hooked([module.register_forward_pre_hook(gather), module.register_forward_hook(scatter)]):
        yield


def shared_beginnings(rows: Sequence[Sequence[int]]) -> list[int]:
    """For each row how many of its first tokens it shares with the row most like it."""
    order = sorted(range(len(rows)), key=rows.__getitem__)
    lengths = [0] * len(rows)
    for row, next_row in zip(order, order[1:]):
        common = len(os.path.commonprefix([rows[row], rows[next_row]]))
        lengths[row], lengths[next_row] = max(lengths[row], common), max(lengths[next_row], common)
    return lengths
