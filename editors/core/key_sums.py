"""Sums over the keys of a stream of texts: the arithmetic of second moments, without files and caches.

Texts are packed by length into forward passes that stop at the deepest asked layer; each layer's keys are added where they
arise, padding left out, and never kept. The product k k^T is symmetric: only its upper block triangle is computed, which saves
up to 44 % of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from . import ranks
from .decoder import Decoder
from .modules import LeaveForward, first, hooked
from .prompts import pack, pad_batch

WINDOW = 512
"""Texts that are sorted by length together: more waste less padding, and cost more tokenising again after a kill."""
BLOCKS = 8
"""Column blocks of the symmetric product; n of them compute (n + 1) / 2n of the full one."""
SMALLEST_BLOCK = 256


class KeySums:
    """Running sums over keys of width d_in: of k k^T, of k and of |k|.

    dtype: keys are rounded to it and added in it; float16 is added in float32, because its sums would overflow.
    """

    def __init__(self, d_in: int, dtype: torch.dtype, device: torch.device):
        self.dtype, self.sum_dtype = dtype, torch.promote_types(dtype, torch.float32)
        self.mom2 = torch.zeros(d_in, d_in, dtype=self.sum_dtype, device=device)
        self.key_sum = torch.zeros(d_in, dtype=self.sum_dtype, device=device)
        self.norm_sum = torch.zeros((), dtype=self.sum_dtype, device=device)
        width = max(SMALLEST_BLOCK, -(-d_in // BLOCKS))
        self.blocks = [(start, min(start + width, d_in)) for start in range(0, d_in, width)]

    def add(self, keys: Float[Tensor, "tokens d_in"]) -> None:
        """Add these keys to the sums."""
        keys = keys.to(self.dtype).to(self.sum_dtype)
        for start, stop in self.blocks:
            self.mom2[start:stop, start:].addmm_(keys[:, start:stop].T, keys[:, start:])
        self.key_sum += keys.sum(0)
        self.norm_sum += keys.norm(dim=1).sum()

    def add_in_order(self, part: KeySums) -> None:
        """Add the partial sums of each process, in the order of the processes, to those of the first one; `part` is then 0."""
        ranks.add_in_order(*([sums.mom2, sums.key_sum, sums.norm_sum] for sums in (self, part)))
        for total in (part.mom2, part.key_sum, part.norm_sum):
            total.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """The sums, as CPU tensors `mom2`, `key_sum` and `norm_sum`; `mom2` is exactly symmetric."""
        for start, stop in self.blocks:
            corner = self.mom2[start:stop, start:stop]
            corner.copy_(corner.triu() + corner.triu(1).T)
            self.mom2[stop:, start:stop] = self.mom2[start:stop, stop:].T
        return {name: getattr(self, name).to("cpu", copy=True) for name in ("mom2", "key_sum", "norm_sum")}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` returned: the later sums have the same bits as without the break."""
        for name, tensor in tensors.items():
            getattr(self, name).copy_(tensor)


@dataclass(frozen=True)
class PackedTexts:
    """Token rows of one forward pass, and where in the stream they stand."""

    rows: list[list[int]]
    window: int
    """Number of the first text of its window."""
    index: int
    """Number of the batch within the window."""
    tokens_before: int
    """Tokens of all earlier windows."""


def batches(
    tok, texts: Sequence[str], order: Sequence[int], max_length: int, pack_tokens: int,
    max_keys: int | None = None, window: int = 0, tokens_before: int = 0,
) -> Iterator[PackedTexts]:
    """The texts `texts[i] for i in order`, tokenised, cut to `max_length` tokens, sorted by length within windows, and packed.

    max_keys: the stream ends after so many tokens of the texts in their order; the last text is cut. (A causal model's keys
    depend on nothing behind them, so cutting the text cuts the keys.)
    window, tokens_before: where to start, taken from an earlier PackedTexts.
    """
    for start in range(window, len(order), WINDOW):
        if max_keys is not None and tokens_before >= max_keys:
            return
        rows = _tokenise(tok, [texts[i] for i in order[start : start + WINDOW]], max_length)
        if max_keys is not None:
            rows = _cut(rows, max_keys - tokens_before)
        for index, packed in enumerate(pack(rows, pack_tokens)):
            yield PackedTexts(packed, start, index, tokens_before)
        tokens_before += sum(map(len, rows))


def add_batch(decoder: Decoder, sums: Mapping[int, KeySums], rows: Sequence[Sequence[int]]) -> None:
    """Add the keys of every token of `rows` to the sums of each layer; one forward pass, left at the deepest layer."""
    # Padding stands on the right, where causal attention cannot see it: positions need no help.
    batch = pad_batch(rows, 0)
    mask = batch["attention_mask"]
    real_tokens = None if mask.all() else mask.flatten().nonzero().squeeze(1)
    deepest = max(sums)

    def reader(layer: int):
        def hook(module, args, kwargs):
            keys = args[0] if args else next(iter(kwargs.values()))
            keys = keys.reshape(-1, keys.shape[-1])
            sums[layer].add(keys if real_tokens is None else keys.index_select(0, real_tokens.to(keys.device)))
            if layer == deepest:
                raise LeaveForward

        return hook

    handles = [
        partial(decoder.down_proj(layer).register_forward_pre_hook, reader(layer), with_kwargs=True) for layer in sums
    ]
    if real_tokens is not None and decoder.model.dtype not in (torch.float32, torch.bfloat16):
        handles += [partial(decoder.block(layer).register_forward_hook, _blank(mask == 0)) for layer in range(deepest)]
    device = decoder.device
    with hooked(place() for place in handles), torch.no_grad(), decoder.evaluating():
        decoder.stack(input_ids=batch["input_ids"].to(device), attention_mask=mask.to(device), use_cache=False)


def _blank(padding: Bool[Tensor, "rows tokens"]) -> Callable:
    """A hook of blocks that puts 0 at padding: where a sliding window sees nothing but padding, eager attention gives NaN in
    some dtypes, and tokens that do not see it take NaN times 0 from it in the next block."""

    def hook(module, args, output):
        hidden = first(output)
        hidden = hidden.masked_fill(padding[..., None].to(hidden.device), 0)
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

    return hook


def _tokenise(tok, texts: Sequence[str], max_length: int) -> list[list[int]]:
    side, tok.truncation_side = tok.truncation_side, "right"  # the start of each text is read, whatever the user set
    try:
        return tok(list(texts), truncation=True, max_length=max_length, padding=False)["input_ids"]
    finally:
        tok.truncation_side = side


def _cut(rows: Sequence[list[int]], most: int) -> list[list[int]]:
    """The first `most` tokens of all rows."""
    cut_rows = []
    for row in rows:
        cut_rows.append(row[:most])
        most -= len(cut_rows[-1])
    return cut_rows
