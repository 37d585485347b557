"""What down-projections must put out, so that the residual stream becomes what it shall be.

In most decoders a block adds its down-projection's output to the stream as it is, and a change of the stream is written by the
same change of that output. In others a constant, a gate or a norm stands between them (`Sites.arrivals`). Here the outputs are
found by running the blocks at the looked-up tokens with outputs put in by hand, and asking autograd what arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from . import ranks
from .budget import forward_tokens
from .decoder import Decoder
from .modules import LeaveForward, by_row, first, frozen, hooked
from .prompts import Located, Request, locate_all
from .replay import Replay

SWEEPS = 8
"""Times that the layers are gone through, at the most: behind norms they reach only together what none reaches alone."""
STEPS = 12
"""Steps towards one block's output, at the most; behind a constant or a gate the first one arrives."""
ENOUGH = 1e-3
"""Share of the distance at which a search ends."""
PROBES = 4
"""Random directions that the slope of each channel is estimated from."""

_Result = TypeVar("_Result")


def put_through(
    decoder: Decoder, requests: Sequence[Request], layers: Sequence[int], outputs: Float[Tensor, "n layers d_model"],
    fact_token: str,
) -> Float[Tensor, "n d_model"]:
    """The output of the last layer's block at the looked-up tokens of the bare prompts, if the down-projections of `layers` put
    these out."""
    def through(blocks: _Blocks, rows: slice) -> Tensor:
        put_in = {layer: outputs[rows, i].to(blocks.device, blocks.dtype) for i, layer in enumerate(layers)}
        return blocks.run(put_in).states[layers[-1]].detach().cpu()

    return torch.cat(_by_chunk(decoder, requests, layers, fact_token, through))


def slopes(
    decoder: Decoder, requests: Sequence[Request], layers: Sequence[int], fact_token: str
) -> tuple[Float[Tensor, "n layers"], Float[Tensor, " n"]]:
    """(what a small addition to each down-projection's output becomes at its block's output, as a ratio of lengths; the length
    of the last block's output) at the bare prompts."""
    def measured(blocks: _Blocks, rows: slice) -> tuple[Tensor, Tensor]:
        run, ratios = blocks.run({}), []
        for layer in layers:
            output = run.outputs[layer].detach()
            # The same direction for every request, so that none depends on the others.
            added = torch.randn(output.shape[1], generator=torch.Generator().manual_seed(layer)).to(output)
            added = added / added.norm() * 0.1 * output.norm(dim=1, keepdim=True)
            moved = blocks.run({layer: output + added}, layer).states[layer] - run.states[layer]
            ratios.append((moved.norm(dim=1) / added.norm(dim=1)).detach().cpu())
        return torch.stack(ratios, 1), run.states[layers[-1]].detach().norm(dim=1).cpu()

    ratios, lengths = zip(*_by_chunk(decoder, requests, layers, fact_token, measured))
    return torch.cat(ratios), torch.cat(lengths)


def outputs_for(
    decoder: Decoder, requests: Sequence[Request], layers: Sequence[int], goal: Float[Tensor, "n d_model"], fact_token: str,
    start: Float[Tensor, "n layers d_model"] | None = None,
) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, "n d_model"]]:
    """(what the down-projection of the first of `layers` puts out now, what it should put out) at the bare prompts.

    goal: what the output of the last layer's block shall be. All layers take equal parts of the way, as far as they can; the
    first one's is meant. start: outputs of all to begin the search with; by default what they put out now.
    """
    def search(blocks: _Blocks, rows: slice) -> tuple[Tensor, Tensor]:
        current = blocks.run({}).outputs[layers[0]].detach()
        put_in = {} if start is None else {layer: start[rows, i].to(current) for i, layer in enumerate(layers)}
        return current.cpu(), blocks.sought(goal[rows].to(current), put_in)[layers[0]].cpu()

    current, output = zip(*_by_chunk(decoder, requests, layers, fact_token, search))
    return torch.cat(current), torch.cat(output)


def _by_chunk(
    decoder: Decoder, requests: Sequence[Request], layers: Sequence[int], fact_token: str,
    work: Callable[[_Blocks, slice], _Result],
) -> list[_Result]:
    """`work` of the blocks from the first to the last layer at consecutive requests, as many together as the memory allows."""
    located = locate_all(decoder.tok, [(request.prompt, request.subject) for request in requests], fact_token)
    size = max(1, forward_tokens(decoder) // max(place.index + 1 for place in located))
    chunks = [slice(start, start + size) for start in range(0, len(located), size)]

    def run(rows: slice):
        return work(_Blocks(decoder, located[rows], layers), rows)

    with frozen(decoder.model), decoder.evaluating(), torch.enable_grad():
        return ranks.each(run, chunks)


class _Run:
    def __init__(self):
        self.outputs: dict[int, Float[Tensor, "n d_model"]] = {}
        """Of the down-projections, as they are or as they were put in."""
        self.states: dict[int, Float[Tensor, "n d_model"]] = {}
        """Outputs of the blocks."""


class _Blocks:
    """The blocks of some layers and those between them, at the looked-up tokens, as the model is now."""

    def __init__(self, decoder: Decoder, located: Sequence[Located], layers: Sequence[int]):
        self.decoder, self.layers, self.rows = decoder, list(layers), len(located)
        lookups = [place.index for place in located]
        rows = [place.ids[: place.index + 1] for place in located]
        self.replay = Replay(decoder, rows, lookups, layers[0])
        self.device = decoder.device_of("down_proj", layers[0])
        self.dtype = decoder.state_dtype

    def run(self, put_in: Mapping[int, Float[Tensor, "n d_model"]], last: int | None = None) -> _Run:
        """Up to block `last`, by default the last of the layers, with these outputs in place of the down-projections' own."""
        run, last = _Run(), self.layers[-1] if last is None else last

        def exchange(layer: int):
            def hook(module, args, output):
                rows = by_row(first(output), self.rows)[:, -1]
                run.outputs[layer] = put_in[layer] if layer in put_in else rows.to(self.dtype)
                if layer in put_in:
                    return put_in[layer].to(rows).reshape(output.shape)

            return hook

        def note(layer: int):
            def hook(module, args, output):
                run.states[layer] = first(output)[:, -1].to(self.dtype)
                if layer == last:
                    raise LeaveForward

            return hook

        below = [layer for layer in self.layers if layer <= last]
        handles = [self.decoder.down_proj(layer).register_forward_hook(exchange(layer)) for layer in below]
        with hooked([*handles, *(self.decoder.block(layer).register_forward_hook(note(layer)) for layer in below)]):
            self.replay()
        return run

    def sought(
        self, goal: Float[Tensor, "n d_model"], put_in: Mapping[int, Float[Tensor, "n d_model"]]
    ) -> dict[int, Float[Tensor, "n d_model"]]:
        """{layer: output} with which the last block's output comes as near to the goal as is found, beginning with these."""
        end = self.layers[-1]
        run = self.run({})
        best = {layer: output.detach() for layer, output in run.outputs.items()}
        at_first = nearest = (goal - run.states[end]).detach().norm(dim=1)
        put_in = dict(put_in)
        for sweep in range(SWEEPS + 1):
            if sweep or put_in:
                left = (goal - self.run(put_in).states[end]).detach().norm(dim=1)
                better = (left < nearest)[:, None]
                best = {layer: torch.where(better, put_in[layer], output) for layer, output in best.items()}
                nearest = torch.minimum(left, nearest)
            if (nearest <= ENOUGH * at_first).all() or sweep == SWEEPS or (sweep and len(self.layers) == 1):
                break
            for layers_done, layer in enumerate(self.layers):
                run = self.run(put_in)
                missing = goal - run.states[end]
                nearer = run.states[layer] + missing / (len(self.layers) - layers_done)
                put_in[layer] = self._towards(layer, put_in, run.outputs[layer], nearer.detach())
        return best

    def _towards(
        self, layer: int, put_in: Mapping[int, Tensor], start: Float[Tensor, "n d_model"], goal: Float[Tensor, "n d_model"]
    ) -> Float[Tensor, "n d_model"]:
        """The output of a layer's down-projection with which its block puts out what is sought, or comes nearest to it.

        Each step divides what is missing by the slope of each channel, which for a constant or a gate is all there is, and for
        a norm all but one direction.
        """
        generator = torch.Generator().manual_seed(0)
        of_norm = self.decoder.sites.arrivals[layer].kind == "norm"
        length = start.detach().norm(dim=1, keepdim=True)
        output = best = start.detach()
        nearest = None
        for step in range(STEPS + 1):
            output.requires_grad_(True)
            state = self.run({**put_in, layer: output}, layer).states[layer]
            missing = (goal - state).detach()
            left = missing.norm(dim=1)
            if nearest is None:
                nearest = at_first = left
            best = torch.where((left < nearest)[:, None], output.detach(), best)
            nearest = torch.minimum(left, nearest)
            if step == STEPS or (nearest <= ENOUGH * at_first).all():
                break
            slope = torch.zeros_like(missing)
            for _ in range(PROBES):
                signs = (torch.randint(0, 2, missing.shape[1:], generator=generator) * 2 - 1).to(missing)
                (gradient,) = torch.autograd.grad((state * signs).sum(), output, retain_graph=True)
                slope += signs * gradient / PROBES
            typical = slope.abs().median(dim=1, keepdim=True).values.clamp_min(torch.finfo(slope.dtype).tiny)
            slope = torch.where(slope.abs() < typical / 10, typical.copysign(slope), slope)
            output = output.detach() + missing / slope
            if of_norm:  # which looks at directions alone
                output = output * (length / output.norm(dim=1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny))
        return best
