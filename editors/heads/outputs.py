"""Attention heads: what each puts out, and what a shift of its output does.

A head's output is its attention-weighted value vector, as it enters the attention's output projection: the projection's input,
in slices of the head size, query head by query head (so grouped and multi-query attention look like any other).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers.pytorch_utils import Conv1D

from common.errors import UserError
from editors.core.budget import forward_tokens
from editors.core.decoder import Decoder
from editors.core.modules import by_row, hooked, LeaveForward, text_config
from editors.core.prompts import pack, pad_batch

Head = tuple[int, int]
"""(layer, head in it), both from 0."""


def head_shape(decoder: Decoder) -> tuple[int, int]:
    """(query heads a layer, head size). Raises UserError where the configuration and the projections do not agree, or where
    layers differ."""
    name, heads = type(decoder.model).__name__, getattr(text_config(decoder.model), "num_attention_heads", None)
    widths = {layer: projection(decoder, layer)[1].shape[1] for layer in range(decoder.sites.layers)}
    width = widths[0]
    other = next((layer for layer in widths if widths[layer] != width), None)
    if other is not None:
        raise UserError(f"{name}: its layers have heads of different sizes, {width} inputs of the output projection in layer 0 "
                        f"and {widths[other]} in layer {other}; MEMAT and ITI need heads of one size")
    if not isinstance(heads, int):
        raise UserError(f"{name}: its configuration gives no num_attention_heads")
    if width % heads:
        raise UserError(f"{name}: {heads} attention heads do not divide the output projection's {width} inputs")
    return heads, width // heads


def projection(decoder: Decoder, layer: int) -> tuple[str, Float[Tensor, "d_model inputs"]]:
    """(name of the attention's output projection, its weight as it maps columns). UserError if that is quantised or
    offloaded."""
    name, linear = decoder.sites.name("attn_out", layer), decoder.module("attn_out", layer)
    if hasattr(linear, "base_layer"):
        name, linear = f"{name}.base_layer", linear.base_layer
    weight = linear.weight.detach()
    if not weight.is_floating_point() or weight.is_meta:
        raise UserError(f"{name} is quantised or offloaded and can't take a bias: load the model in 16 or 32 bits into memory")
    return name, weight.T if isinstance(linear, Conv1D) else weight


def check_heads(heads: Sequence[Sequence[int]], decoder: Decoder, where: str = "heads") -> list[Head]:
    """The heads as pairs. Raises UserError for one that the model does not have, or that is named twice."""
    layers, (count, _) = decoder.sites.layers, head_shape(decoder)
    pairs = [tuple(map(int, head)) for head in heads]
    for pair in pairs:
        if len(pair) != 2 or not 0 <= pair[0] < layers or not 0 <= pair[1] < count:
            raise UserError(
                f"{where}: {list(pair)} is no (layer, head) of this model, whose layers are 0 to {layers - 1} with heads "
                f"0 to {count - 1}"
            )
    if len(set(pairs)) < len(pairs):
        raise UserError(f"{where}: names a head twice")
    return pairs


def head_outputs(
    decoder: Decoder, rows: Sequence[Sequence[int]], progress: bool = False
) -> Float[Tensor, "rows layers heads size"]:
    """Output of every head at the last token of each row of token ids; float32 at least, on the CPU. Equal rows run once."""
    count, size = head_shape(decoder)
    places: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(tuple(row), []).append(i)
    dtype = decoder.state_dtype
    outputs = torch.empty(len(rows), decoder.sites.layers, count, size, dtype=dtype)
    bar = tqdm(total=len(places), desc="heads", unit="text", leave=False, disable=None if progress else True)
    with bar, torch.no_grad(), decoder.evaluating():
        for batch in pack(list(places), forward_tokens(decoder)):
            last_outputs = _last_inputs(decoder, batch).to("cpu", dtype).unflatten(-1, (count, size))
            for row, output in zip(batch, last_outputs):
                outputs[places[row]] = output
            bar.update(len(batch))
    return outputs


def _last_inputs(decoder: Decoder, rows: Sequence[Sequence[int]]) -> Float[Tensor, "rows layers inputs"]:
    batch = pad_batch(rows, decoder.pad_id, decoder.device)
    layers = range(decoder.sites.layers)
    last = torch.tensor([len(row) - 1 for row in rows])
    seen: dict[int, Tensor] = {}

    def reader(layer: int):
        def hook(module, args):
            states = by_row(args[0], len(rows))
            seen[layer] = states[torch.arange(len(rows), device=states.device), last.to(states.device)]
            if len(seen) == len(layers):
                raise LeaveForward

        return hook

    with hooked(decoder.module("attn_out", layer).register_forward_pre_hook(reader(layer)) for layer in layers):
        decoder.stack(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return torch.stack([seen[layer].cpu() for layer in layers], 1)


@contextmanager
def shifted(
    decoder: Decoder, heads: Sequence[Head], vectors: Float[Tensor, "heads size"],
    where: Float[Tensor, "rows columns"] | None = None, unshifted: dict[int, Tensor] | None = None,
) -> Iterator[None]:
    """Inside, each head's output has its vector added: everywhere, or `where` that is 1. Out of place, so that fused kernels
    may keep what they put out; differentiable in `vectors`.

    unshifted: filled with the unshifted outputs of the heads' layers, by layer: [rows, columns, heads, size], detached.
    """
    count, size = head_shape(decoder)

    def shift(layer: int):
        of_layer = [k for k, head in enumerate(heads) if head[0] == layer]
        slots = torch.tensor([heads[k][1] for k in of_layer])

        def hook(module, args):
            inputs = args[0]
            rows = len(inputs) if where is None else len(where)
            states = by_row(inputs, rows).unflatten(-1, (count, size))
            if unshifted is not None:
                unshifted[layer] = states.detach()
            placed = vectors.new_zeros(count, size).index_add(0, slots.to(vectors.device), vectors[of_layer]).to(states)
            if where is not None:
                placed = where.to(states)[..., None, None] * placed
            return ((states + placed).reshape(inputs.shape), *args[1:])

        return hook

    with hooked(
        decoder.module("attn_out", layer).register_forward_pre_hook(shift(layer))
        for layer in sorted({layer for layer, _ in heads})
    ):
        yield


def as_biases(
    decoder: Decoder, heads: Sequence[Head], vectors: Float[Tensor, "heads size"], overwrite: bool = False
) -> Mapping[str, Float[Tensor, " d_model"]]:
    """{name of the output projection's bias: what to add to it} so that every head has its vector added at every token.

    b = O (vectors in their heads' slots), summed over the heads of a layer. overwrite: of a layer only the last head in the
    list counts, as in MEMAT's published code.
    """
    count, size = head_shape(decoder)
    slots: dict[int, Tensor] = {}
    for (layer, head), vector in zip(heads, vectors, strict=True):
        if overwrite or layer not in slots:
            slots[layer] = torch.zeros(count, size, dtype=torch.promote_types(vectors.dtype, torch.float32))
        slots[layer][head] += vector.to(slots[layer])
    biases = {}
    for layer, slot in sorted(slots.items()):
        name, weight = projection(decoder, layer)
        # In float64: the last bits of a product of a vector depend on where the weight lies in memory.
        biases[f"{name}.bias"] = (weight.cpu().double() @ slot.double().flatten()).to(slot)
    return biases


def last_tokens(rows: Sequence[Sequence[int]], device) -> Int[Tensor, "rows columns"]:
    """1 at the last token of each row of a batch padded on the right, 0 elsewhere."""
    marks = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long, device=device)
    marks[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])] = 1
    return marks
