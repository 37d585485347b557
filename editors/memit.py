"""MEMIT: mass-editing memory in a transformer (Meng et al., ICLR 2023)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tqdm import tqdm

from .base import Editor, Task
from .closed_form import covariance_factors, prepare, to_change, trial
from .core import solve
from .core.keys import compute_hidden, compute_keys
from .core.sites import weight_of
from .core.value_cache import cached_optimise
from .edit import LowRank
from .errors import EditingError
from .hparams import ValueHParams


@dataclass(frozen=True, kw_only=True)
class MEMITHParams(ValueHParams):
    mom2_update_weight: float
    """lambda: weight of the second moment; higher preserves other facts more and writes the new ones less fully."""
    update_norm_lambda: float = 0.0
    """mu: S = lambda C + mu I; higher keeps the weight change smaller and makes S regular when few keys were seen."""

    ignored: ClassVar[Mapping[str, str]] = {
        "layer_selection": "the published code reads it nowhere",
        "mom2_adjustment": "MEMIT always uses the second moment",
        "model_name": "the model is given to the program",
        "emmet_lambda": "EMMET's",
        "calculate_objective_value": "bookkeeping that changes no weight",
    }

    def __post_init__(self):
        super().__post_init__()
        if self.mom2_update_weight <= 0:
            raise EditingError(f"mom2_update_weight: {self.mom2_update_weight} must be above 0")


class MEMIT(Editor):
    """Writes all requests at once, spread over a few consecutive layers.

    Target states z are sought at the output of the last listed block. Then, layer by layer on the model edited so far, the
    remaining distance R to the targets, divided by the number of layers left, is written with the least-squares update
    R A^T, A = (lambda C + K K^T)^{-1} K (eq. 14, 20; algorithm 1).
    """

    name = "MEMIT"
    hparams_class = MEMITHParams

    def changes(self, task: Task) -> tuple[dict[str, LowRank], dict[str, Any]]:
        hp, model, tok, requests = self.hparams, task.model, task.tok, task.requests
        started = time.perf_counter()
        prepared = prepare(task, hp, "memit")
        sites = prepared.sites
        factors = covariance_factors(task, hp, sites, ridge=hp.update_norm_lambda / hp.mom2_update_weight)
        seconds = {"prepare": time.perf_counter() - started}

        z_layer = hp.layers[-1]
        started = time.perf_counter()
        targets = cached_optimise(
            model, tok, requests, z_layer, hp, sites, prepared.templates, "block", folder=task.z_cache, progress=task.progress
        ).target
        seconds["values"] = time.perf_counter() - started

        started = time.perf_counter()
        changes = {}
        with trial(model, sites) as change:
            for done, layer in enumerate(tqdm(hp.layers, desc="layers", unit="layer", leave=False, disable=None if task.progress else True)):
                keys = compute_keys(model, tok, requests, [layer], prepared.groups, sites, hp.fact_token)[layer]
                current = compute_hidden(model, tok, requests, z_layer, sites, hp.fact_token)
                residual = (targets.to(current) - current).T / (len(hp.layers) - done)
                adjusted = solve.memit(factors[layer], hp.mom2_update_weight, keys.T)
                name, parameter, in_first = weight_of(model, sites, layer)
                changes[name] = to_change(residual.to(adjusted), adjusted, in_first, parameter.dtype)
                change(layer, changes[name])
        seconds["insert"] = time.perf_counter() - started
        return changes, {"seconds": seconds}
