"""What MEMIT, EMMET and AlphaEdit share: all requests at once, spread over a few layers."""

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from editors.base import Task, WeightEditor
from editors.changes import Dense, LowRank
from editors.core.decoder import Decoder
from editors.core.keys import compute_hidden, compute_keys
from editors.core.moment import Moment
from editors.core.value_cache import cached_optimise
from editors.hparams import UNIFIED_FIXED, UNIFIED_IGNORED, ValueHParams
from .objective import Goal, objective_distances
from .prepared import begun_with, prepare, Prepared, to_change, trial
from .statistics import second_moments


@dataclass(frozen=True, kw_only=True)
class SpreadHParams(ValueHParams):
    """Keys of every editor that spreads the residual over several layers."""

    calculate_objective_value: bool = False
    """Keep with each edit also how far it moves the keys that are to be preserved."""

    ignored: ClassVar[Mapping[str, str]] = UNIFIED_IGNORED | {"model_name": "the model is given to the program"}
    fixed: ClassVar[Mapping[str, tuple[Any, str]]] = ValueHParams.fixed | UNIFIED_FIXED


@dataclass(frozen=True)
class Solver:
    """An editor's closed form, for this task."""

    moments: Mapping[int, Moment]
    """{layer: second moment of the keys}."""
    adjust: Callable[[int, Float[Tensor, "d_in n"]], Float[Tensor, "d_in n"]]
    """A of a layer from its keys K."""
    remember: Callable[[int, Float[Tensor, "d_in n"]], Float[Tensor, "d_in n"]] | None = None
    """What the memory of a sequence keeps of the edited model's keys at a layer; None: the editor has no use for it."""
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the Edit's info tells of the moments, by layer."""


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
    decoder: Decoder, layers: Sequence[int], keys: Callable[[int], Float[Tensor, "n d_in"]],
    missing: Callable[[], Float[Tensor, "n d_model"]],
    adjust: Callable[[int, Float[Tensor, "d_in n"]], Float[Tensor, "d_in n"]],
    change: Callable[[int, LowRank | Dense], None] | None, progress: bool,
) -> dict[int, Step]:
    """{layer: its update R A^T and what led there}: A from its keys, R what is missing divided by the number of layers left.

    change: puts an update into the model, so that the next layer's keys and what is missing then are measured with it; None:
    they are those of the model as it is.
    """
    steps = {}
    bar = tqdm(layers, desc="layers", unit="layer", leave=False, disable=None if progress else True)
    for layers_done, layer in enumerate(bar):
        layer_keys, distance = keys(layer).T, missing()
        adjusted, residual = adjust(layer, layer_keys), distance.T / (len(layers) - layers_done)
        update = to_change(decoder.weight(layer), residual.to(adjusted), adjusted)
        steps[layer] = Step(update, layer_keys, distance, residual, adjusted)
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
    def solver(self, task: Task, decoder: Decoder) -> Solver:
        """What gives A for a layer and its keys. Called before the first weight changes."""

    def written(self, change: LowRank, weight: Tensor) -> LowRank | Dense:
        """What of a layer's update is written, once all layers' are known; weight: the layer's."""
        return change

    def contexts(self, task: Task) -> Prepared:
        """Sites, and the contexts that keys and target states are averaged over."""
        return prepare(task, self.hparams, "memit")

    def prepare(self, task: Task) -> dict[str, Any]:
        prepared = self.contexts(task)
        fixed = not self.hparams.dynamic
        return begun_with(prepared, second_moments(prepared.decoder, self.hparams, task.progress) if fixed else {})

    def changes(self, task: Task) -> tuple[dict[str, LowRank | Dense], dict[str, Any]]:
        hp, requests = self.hparams, task.requests
        started = time.perf_counter()
        prepared = self.contexts(task)
        decoder = prepared.decoder
        solver = self.solver(task, decoder)
        seconds = {"prepare": time.perf_counter() - started}

        z_layer = hp.layers[-1]
        started = time.perf_counter()
        targets = cached_optimise(
            decoder, requests, z_layer, hp, prepared.templates, "block", folder=task.z_cache, progress=task.progress
        ).target
        seconds["values"] = time.perf_counter() - started

        def keys_of(layers: list[int]) -> dict[int, Float[Tensor, "n d_in"]]:
            return compute_keys(decoder, requests, layers, prepared.contexts, hp.fact_token)

        def missing() -> Float[Tensor, "n d_model"]:
            current = compute_hidden(decoder, requests, z_layer, hp.fact_token)
            return targets.to(current) - current

        started = time.perf_counter()
        with trial(decoder) as change:
            steps = spread(
                decoder, hp.layers, lambda layer: keys_of([layer])[layer], missing, solver.adjust,
                change if self.refreshes else None, task.progress,
            )
            if task.memory is not None and solver.remember:  # the keys that the edited model has, as published
                task.memory.stage({layer: solver.remember(layer, keys.T) for layer, keys in keys_of(hp.layers).items()})
        changes: dict[str, LowRank | Dense] = {}
        distances = {}
        for layer, step in steps.items():
            name, parameter, in_first = decoder.weight(layer)
            changes[name] = self.written(step.update, parameter.detach())
            goal = Goal.of(step.keys, step.residual, step.adjusted, targets, targets.to(step.missing) - step.missing)
            preserved = solver.moments[layer].matrix if hp.calculate_objective_value else None
            distances[str(layer)] = objective_distances(goal, changes[name], parameter, in_first, preserved)
        seconds["insert"] = time.perf_counter() - started
        return changes, {"seconds": seconds, "statistics": solver.statistics, "objective_distances": distances}
