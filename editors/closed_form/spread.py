"""What MEMIT, EMMET and AlphaEdit share: all requests at once, spread over a few layers."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from editors.base import Task, WeightEditor
from editors.changes import Dense, LowRank
from editors.core.keys import compute_hidden, compute_keys
from editors.core.moment_store import Moment
from editors.core.sites import Sites, weight_of
from editors.core.value_cache import cached_optimise
from editors.hparams import UNIFIED_FIXED, UNIFIED_IGNORED, ValueHParams
from .objective import Asked, objective_distances
from .statistics import begun_with, prepare, Prepared, second_moments, to_change, trial


@dataclass(frozen=True, kw_only=True)
class SpreadHParams(ValueHParams):
    calculate_objective_value: bool = False
    """Keep with each edit also how far it moves the keys that are to be preserved."""

    ignored: ClassVar[Mapping[str, str]] = UNIFIED_IGNORED | {"model_name": "the model is given to the program"}
    fixed: ClassVar[Mapping[str, tuple[Any, str]]] = UNIFIED_FIXED


@dataclass(frozen=True)
class Solver:
    """An editor's closed form, for this task."""

    moments: Mapping[int, Moment]
    """{layer: second moment of the keys}."""
    adjust: Callable[[int, Float[Tensor, "d_in n"]], Float[Tensor, "d_in n"]]
    """A of a layer from its keys K."""
    remember: Callable[[int, Float[Tensor, "d_in n"]], Float[Tensor, "d_in n"]] | None = None
    """What the memory of a sequence keeps of the edited model's keys at a layer; None: the editor has no use for it."""


@dataclass(frozen=True)
class Step:
    """One layer's part of a spread edit."""

    update: LowRank
    """R A^T."""
    keys: Float[Tensor, "d_in n"]
    missing: Float[Tensor, "n d_model"]
    """What the target states still lacked."""
    residual: Float[Tensor, "d_model n"]
    """R, the layer's share of it."""
    adjusted: Float[Tensor, "d_in n"]
    """A."""


def spread(
    model: nn.Module, sites: Sites, layers: Sequence[int], keys: Callable[[int], Float[Tensor, "n d_in"]],
    missing: Callable[[], Float[Tensor, "n d_model"]], adjust: Callable[[int, Float[Tensor, "d_in n"]], Float[Tensor, "d_in n"]],
    change: Callable[[int, LowRank | Dense], None] | None, progress: bool,
) -> dict[int, Step]:
    """{layer: its update R A^T and what led there}: A from its keys, R what is missing divided by the number of layers left.

    change: puts an update into the model, so that the next layer's keys and what is missing then are measured with it; None: they
    are those of the model as it is.
    """
    steps = {}
    for done, layer in enumerate(tqdm(layers, desc="layers", unit="layer", leave=False, disable=None if progress else True)):
        found, lacking = keys(layer).T, missing()
        adjusted, residual = adjust(layer, found), lacking.T / (len(layers) - done)
        _, parameter, in_first = weight_of(model, sites, layer)
        update = to_change(residual.to(adjusted), adjusted, in_first, parameter.dtype)
        steps[layer] = Step(update, found, lacking, residual, adjusted)
        if change is not None:
            change(layer, update)
    return steps


class SpreadEditor(WeightEditor):
    """Writes all requests at once, spread over a few consecutive layers (MEMIT, algorithm 1).

    Target states z are sought at the output of the last listed block. Then, layer by layer on the model edited so far, the
    remaining distance R to the targets, divided by the number of layers left, is written as the update R A^T. A subclass
    says what A is.
    """

    hparams_class: ClassVar[type[SpreadHParams]]
    hparams: SpreadHParams

    @property
    def refreshes(self) -> bool:
        """Whether a layer's keys and remaining distance are those of the model with the layers before it edited."""
        return True

    @abstractmethod
    def solver(self, task: Task, sites: Sites, info: dict[str, Any]) -> Solver:
        """What gives A for a layer and its keys; may add to the Edit's `info`. Called before the first weight changes."""

    def written(self, change: LowRank, weight: Tensor) -> LowRank | Dense:
        """What of a layer's update is written, once all layers' are known; weight: the layer's."""
        return change

    def contexts(self, task: Task) -> Prepared:
        """Sites, and the contexts that keys and target states are averaged over."""
        return prepare(task, self.hparams, "memit")

    def prepare(self, task: Task) -> dict[str, Any]:
        prepared = self.contexts(task)
        return begun_with(prepared, {} if self.hparams.dynamic else second_moments(task, self.hparams, prepared.sites, {}))

    def changes(self, task: Task) -> tuple[dict[str, LowRank | Dense], dict[str, Any]]:
        hp, model, tok, requests = self.hparams, task.model, task.tok, task.requests
        info: dict[str, Any] = {}
        started = time.perf_counter()
        prepared = self.contexts(task)
        sites = prepared.sites
        solver = self.solver(task, sites, info)
        seconds = {"prepare": time.perf_counter() - started}

        z_layer = hp.layers[-1]
        started = time.perf_counter()
        targets = cached_optimise(
            model, tok, requests, z_layer, hp, sites, prepared.templates, "block", folder=task.z_cache, progress=task.progress
        ).target
        seconds["values"] = time.perf_counter() - started

        def keys_of(layers: list[int]) -> dict[int, Float[Tensor, "n d_in"]]:
            return compute_keys(model, tok, requests, layers, prepared.groups, sites, hp.fact_token)

        def missing() -> Float[Tensor, "n d_model"]:
            current = compute_hidden(model, tok, requests, z_layer, sites, hp.fact_token)
            return targets.to(current) - current

        started = time.perf_counter()
        with trial(model, sites) as change:
            steps = spread(
                model, sites, hp.layers, lambda layer: keys_of([layer])[layer], missing, solver.adjust,
                change if self.refreshes else None, task.progress,
            )
            if task.memory is not None and solver.remember:  # the keys that the edited model has, as published
                task.memory.stage({layer: solver.remember(layer, keys.T) for layer, keys in keys_of(hp.layers).items()})
        changes: dict[str, LowRank | Dense] = {}
        info["objective_distances"] = {}
        for layer, step in steps.items():
            name, parameter, in_first = weight_of(model, sites, layer)
            changes[name] = self.written(step.update, parameter.detach())
            asked = Asked.of(step.keys, step.residual, step.adjusted, targets, targets.to(step.missing) - step.missing)
            preserved = solver.moments[layer].matrix if hp.calculate_objective_value else None
            info["objective_distances"][str(layer)] = objective_distances(asked, changes[name], parameter, in_first, preserved)
        seconds["insert"] = time.perf_counter() - started
        return changes, {"seconds": seconds, **info}
