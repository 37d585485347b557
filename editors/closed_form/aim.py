"""What the residual stream shall become at the looked-up tokens, and what the layers of a spread edit write towards it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editors.core.decoder import Decoder
from editors.core.keys import compute_hidden, compute_keys
from editors.core.prompts import Request
from editors.core.reach import outputs_for, put_through, slopes
from editors.core.values import Site, Through, Values
from editors.hparams import ValueHParams
from .prepared import Prepared


def value_site(decoder: Decoder, requests: Sequence[Request], layers: Sequence[int], fact_token: str) -> Site:
    """Where target states are sought: at the last block's output, as published, wherever any change of it can be written; else
    at the outputs of all edited down-projections, whose norms (Gemma 2 and 3, OLMo 2, GLM 4, EXAONE 4) let only some states
    through, each its part."""
    arrival = decoder.sites.arrivals[layers[-1]]
    if arrival is None or arrival.linear:
        return "block"
    slope, length = slopes(decoder, requests, layers, fact_token)
    # The root makes an equal part in each layer as long, all together, as their sum.
    return Through(layers, 1 / (len(layers) ** 0.5 * slope), length)


@dataclass(frozen=True)
class Aim:
    """Where one set of requests is to arrive."""

    decoder: Decoder
    requests: Sequence[Request]
    contexts: Sequence[Sequence[str]]
    """Groups of templates that keys are averaged over."""
    fact_token: str
    layer: int
    """The last edited one."""
    states: Float[Tensor, "n d_model"]
    """Of its output, as they shall be at the bare prompts."""
    outputs: Mapping[int, Float[Tensor, "n d_model"]]
    """Of the down-projections, with which they were found; none where they were sought at the block's output."""

    @classmethod
    def of(cls, prepared: Prepared, requests: Sequence[Request], hparams: ValueHParams, site: Site, values: Values) -> Aim:
        """From target states sought at the site. Called before a weight changes."""
        decoder, layers, states = prepared.decoder, hparams.layers, values.target
        outputs = {}
        if isinstance(site, Through):
            stacked = states.unflatten(1, (len(layers), -1))
            states = put_through(decoder, requests, layers, stacked, hparams.fact_token)
            outputs = dict(zip(layers, stacked.unbind(1)))
        return cls(decoder, requests, prepared.contexts, hparams.fact_token, layers[-1], states, outputs)

    def keys(self, layers: Sequence[int]) -> dict[int, Float[Tensor, "n d_in"]]:
        """{layer: what enters its down-projection in the model as it is now}."""
        return compute_keys(self.decoder, self.requests, layers, self.contexts, self.fact_token)

    def missing(self) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, " n"]]:
        """What the model, as it is now, lacks, and its lengths."""
        current = compute_hidden(self.decoder, self.requests, self.layer, self.fact_token)
        missing = self.states.to(current) - current
        return missing, missing.norm(dim=1)

    def residual(self, layers: Sequence[int], missing: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """What the first of the layers left shall add to its down-projection's output: an equal part of what is missing where
        all outputs arrive in the residual stream as they are or times a constant, else what lets such a part arrive."""
        if self.decoder.sites.straight(layers):
            return self.decoder.sites.equal_part(layers, missing)
        start = torch.stack([self.outputs[layer] for layer in layers], 1) if self.outputs else None
        current, output = outputs_for(self.decoder, self.requests, layers, self.states, self.fact_token, start)
        return (output - current).to(missing)


@dataclass(frozen=True)
class JointAim:
    """Where the same facts are to arrive in several languages, of which one change shall do for all: the means of theirs."""

    aims: Sequence[Aim]

    def keys(self, layers: Sequence[int]) -> dict[int, Float[Tensor, "n d_in"]]:
        """As `Aim.keys`."""
        by_language = [aim.keys(layers) for aim in self.aims]
        return {layer: torch.stack([keys[layer] for keys in by_language]).mean(0) for layer in layers}

    def missing(self) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, " n"]]:
        """As `Aim.missing`; the lengths are the means of the languages', which do not cancel as their vectors may."""
        vectors, lengths = zip(*(aim.missing() for aim in self.aims))
        return torch.stack(vectors).mean(0), torch.stack(lengths).mean(0)

    def residual(self, layers: Sequence[int], missing: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """As `Aim.residual`."""
        sites = self.aims[0].decoder.sites
        if sites.straight(layers):
            return sites.equal_part(layers, missing)
        return torch.stack([aim.residual(layers, missing) for aim in self.aims]).mean(0)
