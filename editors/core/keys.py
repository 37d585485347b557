"""Keys: what enters the edited projection at the looked-up token of a prompt.

A causal model's state at a token depends on nothing behind it, so prompts are cut behind the looked-up token, equal ones
run once, and a pass ends as soon as the deepest asked module has run. Only the looked-up rows are kept.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from . import ranks
from .budget import forward_tokens
from .decoder import Decoder
from .modules import LeaveForward, by_row, first, hooked
from .prompts import Located, Request, fill, locate_all, pack, pad_batch

# (site, layer, whether its input or its output is read)
_Place = tuple[str, int, str]


def compute_keys(
    decoder: Decoder, requests: Sequence[Request], layers: Sequence[int], contexts: Sequence[Sequence[str]],
    fact_token: str = "subject_last", batch_tokens: int | None = None,
) -> dict[int, Float[Tensor, "requests d_in"]]:
    """{layer: keys}: input of the down-projection at the looked-up token, averaged over contexts.

    contexts: groups of templates, each with one "{}"; the mean is taken within each group, then over the groups (as published:
    half of a key is the bare prompt's, half the mean of five sampled contexts'). All layers come from one pass.
    batch_tokens: tokens a batch, padding included; chosen from the memory when None.
    Keys are float32 at least and on their projection's device. Raises UserError for a subject that cannot be located.
    """
    weights = [1 / (len(contexts) * len(group)) for group in contexts for _ in group]
    texts, shares = [], []
    for i, request in enumerate(requests):
        for template, weight in zip((template for group in contexts for template in group), weights):
            texts.append((fill(template, request.prompt), request.subject))
            shares.append((i, weight))
    places = [("down_proj", layer, "in") for layer in dict.fromkeys(layers)]
    states = _read(decoder, locate_all(decoder.tok, texts, fact_token), shares, places, batch_tokens)
    return {layer: states["down_proj", layer, "in"] for layer in layers}


def compute_hidden(
    decoder: Decoder, requests: Sequence[Request], layer: int, fact_token: str = "subject_last"
) -> Float[Tensor, "requests d_model"]:
    """Output of block ``layer`` at the looked-up token of each bare prompt, float32 at least."""
    texts = [(request.prompt, request.subject) for request in requests]
    shares = [(i, 1.0) for i in range(len(texts))]
    place = ("block", layer, "out")
    return _read(decoder, locate_all(decoder.tok, texts, fact_token), shares, [place])[place]


def layer_io(
    decoder: Decoder, request: Request, layer: int, contexts: Sequence[Sequence[str]], fact_token: str
) -> tuple[Float[Tensor, "contexts d_in"], Float[Tensor, "contexts d_model"]]:
    """Input and output of the down-projection at the looked-up token, a row for each context, float32 at least."""
    texts = [(fill(template, request.prompt), request.subject) for group in contexts for template in group]
    shares = [(i, 1.0) for i in range(len(texts))]
    places = [("down_proj", layer, "in"), ("down_proj", layer, "out")]
    states = _read(decoder, locate_all(decoder.tok, texts, fact_token), shares, places)
    return states[places[0]], states[places[1]]


def _read(
    decoder: Decoder, located: Sequence[Located], shares: Sequence[tuple[int, float]], places: Sequence[_Place],
    batch_tokens: int | None = None,
) -> dict[_Place, Tensor]:
    """{place: [results, width]}: result i is the sum of weight * row over the located tokens whose share is (i, weight)."""
    uses: dict[tuple[int, ...], list[tuple[int, float]]] = defaultdict(list)
    for token, share in zip(located, shares):
        uses[tuple(token.ids[: token.index + 1])].append(share)
    most_tokens = batch_tokens or forward_tokens(decoder)
    results = max((i for i, _ in shares), default=-1) + 1
    sums: dict[_Place, Tensor] = {}

    def mixed(rows: list[tuple[int, ...]]) -> tuple[list[int], dict[_Place, Tensor]]:
        # Which results the rows of this batch enter, and with what weight: a product adds them in a fixed order.
        entries = [(i, row, weight) for row, ids in enumerate(rows) for i, weight in uses[ids]]
        touched = sorted({i for i, _, _ in entries})
        place_of = {i: n for n, i in enumerate(touched)}
        mixing = torch.zeros(len(touched), len(rows), dtype=torch.float64)
        for i, row, weight in entries:
            mixing[place_of[i], row] += weight
        states = _forward(decoder, rows, places)
        return touched, {place: mixing.to(state) @ state for place, state in states.items()}

    with torch.no_grad(), decoder.evaluating():
        for touched, states in ranks.each(mixed, list(pack(list(uses), most_tokens))):
            for place, state in states.items():
                if place not in sums:
                    sums[place] = state.new_zeros(results, state.shape[-1])
                sums[place][torch.tensor(touched, device=state.device)] += state
    if ranks.world_size() == 1:
        return sums
    return {place: total.to(decoder.device_of(*place[:2])) for place, total in sums.items()}


def _forward(
    decoder: Decoder, rows: Sequence[tuple[int, ...]], places: Sequence[_Place]
) -> dict[_Place, Tensor]:
    """{place: [rows, width]}: the states at each row's last token, float32 at least."""
    batch = pad_batch(rows, decoder.pad_id, decoder.device)
    last = torch.tensor([len(row) - 1 for row in rows])
    seen: dict[_Place, Tensor] = {}

    def reader(place: _Place):
        def hook(module, args, kwargs, output):
            tensor = first(output) if place[2] == "out" else (args[0] if args else next(iter(kwargs.values())))
            states = by_row(tensor, len(rows))[torch.arange(len(rows), device=tensor.device), last.to(tensor.device)]
            seen[place] = states.to(torch.promote_types(states.dtype, torch.float32))
            if len(seen) == len(places):
                raise LeaveForward

        return hook

    with hooked(
        decoder.module(*place[:2]).register_forward_hook(reader(place), with_kwargs=True) for place in places
    ):
        # Padding stands on the right, where causal attention cannot see it: positions need no help.
        decoder.stack(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return seen
