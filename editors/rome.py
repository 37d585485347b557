"""ROME: rank-one model editing (Meng et al., NeurIPS 2022)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from .closed_form import Prepared, covariance_factors, prepare, to_change, trial
from .core import solve
from .core.keys import layer_io
from .core.prompts import Request
from .core.sites import get_module, weight_of
from .core.value_cache import cached_optimise
from .edit import Edit, LowRank
from .errors import EditingError
from .hparams import ValueHParams


@dataclass(frozen=True, kw_only=True)
class ROMEHParams(ValueHParams):
    mom2_adjustment: bool
    """Whiten the key with the second moment; false uses the key itself (ROME's ablation, and AlphaEdit's Llama-3 file)."""
    context_template_length_params: list[list[int]]
    """[[length in tokens, number of contexts], ...] of the sampled contexts."""
    key: Literal["legacy", "consistent"] = "legacy"
    """Which key the edited weight maps onto the value.

    legacy: as published, u comes from the key averaged over contexts, but the residual and the denominator from the bare
    prompt's key, so that W' maps the bare prompt's key exactly onto v. consistent: the averaged key throughout (eq. 2 of the
    paper as it is written; the mismatch is known to make some single edits collapse a model).
    """
    bias_update: bool = False
    dynamic: bool = False

    ignored: ClassVar[Mapping[str, str]] = {
        "model_name": "the model is given to the program",
        "dynamic_multiplier": "read only when dynamic is true",
    }

    def __post_init__(self):
        super().__post_init__()
        for name in ("bias_update", "dynamic"):
            if getattr(self, name):
                raise EditingError(f"{name}: true is not supported by this editor; set it to false")
        if any(len(pair) != 2 or min(pair) < 1 for pair in self.context_template_length_params):
            raise EditingError("context_template_length_params: expected pairs [length, number], both at least 1")


class ROME:
    """Writes one fact as a rank-one change of one layer's down-projection; several requests one after another.

    W' = W + (v - W k) u^T / (u^T k), u = C^{-1} k / |C^{-1} k| (eq. 2). With several layers, each is edited in ascending order
    on the model already changed below.
    """

    name = "ROME"
    hparams_class = ROMEHParams

    def __init__(self, hparams: ROMEHParams):
        self.hparams = hparams

    def edit(
        self,
        model: nn.Module,
        tok,
        requests: Sequence[Mapping | Request],
        context_templates: Sequence | None = None,
        z_cache: str | os.PathLike | None = None,
        progress: bool = True,
    ) -> Edit:
        """The edit that makes `model` state every request's new target; the model itself is bit-identical afterwards.

        context_templates: a flat list or groups, all weighed alike. z_cache: folder of target states (its key holds the
        model's weights, so later requests of a sequence meet only their own).
        Raises EditingError for requests, hparams or statistics that do not fit.
        """
        hp, started = self.hparams, time.perf_counter()
        prepared = prepare(
            model, tok, requests, hp, context_templates, "rome", length_params=hp.context_template_length_params
        )
        layers = sorted(hp.layers)
        factors = covariance_factors(model, tok, layers, hp, prepared.sites) if hp.mom2_adjustment else dict.fromkeys(layers)
        changes: dict[str, LowRank] = {}
        with trial(model, prepared.sites) as change:
            for request in prepared.requests:
                for layer in layers:
                    name, update = self._rank_one(model, tok, request, layer, prepared, factors[layer], z_cache, progress)
                    change(layer, update)
                    changes[name] = changes[name].plus(update) if name in changes else update
        seconds = {"edit": time.perf_counter() - started}
        return Edit(
            changes, {"editor": self.name, "hparams": asdict(hp), "requests": len(prepared.requests), "seconds": seconds}
        )

    def _rank_one(
        self, model: nn.Module, tok, request: Request, layer: int, prepared: Prepared, factor, z_cache, progress
    ) -> tuple[str, LowRank]:
        hp, sites = self.hparams, prepared.sites
        values = cached_optimise(
            model, tok, [request], layer, hp, sites, prepared.templates, "down_proj", folder=z_cache, progress=progress
        )
        inputs, outputs = layer_io(model, tok, request, layer, sites, hp.fact_token, prepared.groups)
        key = inputs.mean(0)
        u = solve.rome_direction(factor, key)
        if hp.key == "legacy":
            key, mapped = inputs[0], outputs[0]
        else:
            projection = get_module(model, sites.name("down_proj", layer))
            with torch.no_grad():
                mapped = projection(key.to(model.dtype)[None])[0]
        right = (values.target[0].to(u) - mapped.to(u)) / (key.to(u) @ u)
        name, parameter, in_first = weight_of(model, sites, layer)
        return name, to_change(right[:, None], u[:, None], in_first, parameter.dtype)
