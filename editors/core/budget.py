"""Sizes of batches from the memory of a device: the one place that says what part of it each kind of work may fill.

Not what is free now: batches, and with them the last digits of results, must not depend on what else runs.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import nn

from .decoder import Decoder
from .modules import input_device

PARTS = {"forward": 16, "statistics": 8, "moments": 4, "values": 8, "corrections": 8, "cache": 8, "trace": 16, "restored": 32}
"""{kind of work: one part in so many of the memory}."""
STATISTICS_TOKENS, STATISTICS_TOKENS_CPU = 16384, 512
"""Largest forward pass that collects keys. On a CPU smaller ones are faster, because activations stay in its cache."""

ENCODER_TOKENS = 16384
"""Padded tokens that go through an encoder of SERAC together."""
TRACE_TOKENS, TRACE_TOKENS_CPU = 32768, 2048
"""Tokens in a pass of causal tracing, about."""
LOGITS = 2**26
"""Numbers in the logits of rows that run together: a quarter of a gigabyte of float32."""

_Item = TypeVar("_Item")


def total_bytes(device: torch.device) -> int:
    """Bytes of memory of `device`."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def allowance(device: torch.device, work: str) -> int:
    """Bytes of `device` that a kind of work (see `PARTS`) may fill."""
    return total_bytes(device) // PARTS[work]


def forward_tokens(decoder: Decoder) -> int:
    """Tokens of a batch without gradients, at some 32 activations as wide as d_model alive for each."""
    size = decoder.model.get_input_embeddings().weight.element_size()
    return min(16384, max(512, allowance(decoder.device, "forward") // (32 * decoder.sites.d_model * size)))


def statistics_tokens(decoder: Decoder, d_in: int, max_length: int) -> int:
    """Padded tokens of a forward pass that collects keys of width d_in from texts of up to max_length tokens, 256 at least."""
    device, config = decoder.device, decoder.model.config.get_text_config()
    size = torch.finfo(decoder.model.dtype).bits // 8
    # What one block holds at a time: a few tensors of each width, and attention scores where they are written out.
    per_token = size * (4 * d_in + 16 * decoder.sites.d_model) + 8 * d_in
    if getattr(config, "_attn_implementation", "eager") == "eager":
        per_token += 3 * 4 * getattr(config, "num_attention_heads", 0) * max_length
    most = STATISTICS_TOKENS_CPU if device.type == "cpu" else STATISTICS_TOKENS
    return min(most, max(256, allowance(device, "statistics") // per_token))


def token_budget(model: nn.Module, most: int | None = None) -> int:
    """Tokens to hold at once with their key/value cache: what fits, and at most `most` (default: what helps speed)."""
    config, device = model.config.get_text_config(), input_device(model)
    # Keys and values of every block, and the widest activations of one.
    numbers_a_token = (2 * config.num_hidden_layers + 16) * config.hidden_size
    most = most or (2048 if device.type == "cpu" else 16384)
    return max(128, min(most, allowance(device, "cache") // (numbers_a_token * model.dtype.itemsize)))


def logit_rows(model: nn.Module) -> int:
    """Rows of logits to hold at once."""
    return max(1, LOGITS // model.config.get_text_config().vocab_size)


def consecutive(
    items: Sequence[_Item], cost: Callable[[list[_Item]], float], limit: float, most: int | None = None
) -> Iterator[list[_Item]]:
    """The items in groups of neighbours: each costs at most `limit` and has at most `most` items, or it has one item."""
    group: list[_Item] = []
    for item in items:
        if group and (len(group) == most or cost([*group, item]) > limit):
            yield group
            group = []
        group.append(item)
    if group:
        yield group
