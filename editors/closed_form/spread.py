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
from editors.core.moment import Moment
from editors.core.value_cache import cached_optimise
from editors.core.values import Site, Values
from editors.hparams import UNIFIED_FIXED, UNIFIED_IGNORED, ValueHParams
from .aim import Aim, JointAim, value_site
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
    before: Float[Tensor, " n"]
    """Its lengths."""
    residual: Float[Tensor, "d_model n"]
    """R, the layer's share of it."""
    adjusted: Float[Tensor, "d_in n"]
    """A."""
    after: list[Float[Tensor, " n"]] = field(default_factory=list)
    """The lengths of what they lacked once the update was in the model: one entry."""


def spread(
    decoder: Decoder, layers: Sequence[int], aim: Aim | JointAim,
    adjust: Callable[[int, Float[Tensor, "d_in n"]], Float[Tensor, "d_in n"]],
    change: Callable[[int, LowRank | Dense], None], refresh: bool, progress: bool,
) -> dict[int, Step]:
    """{layer: its update R A^T and what led there}: A from its keys, R its part of what is missing. All are in the model then.

    change: puts an update into the model. refresh: at once, so that the next layer's keys and what is missing then are
    measured with it; else they are those of the model as it is.
    """
    steps = {}
    bar = tqdm(layers, desc="layers", unit="layer", leave=False, disable=None if progress else True)
    distance, lengths = aim.missing()
    for layers_done, layer in enumerate(bar):
        layer_keys = aim.keys([layer])[layer].T
        adjusted, residual = adjust(layer, layer_keys), aim.residual(layers[layers_done:], distance).T
        update = to_change(decoder.weight(layer), residual.to(adjusted), adjusted)
        steps[layer] = Step(update, layer_keys, distance, lengths, residual, adjusted)
        if refresh:
            change(layer, update)
            distance, lengths = aim.missing()
            steps[layer].after.append(lengths)
    for layer in () if refresh else layers:
        change(layer, steps[layer].update)
        steps[layer].after.append(aim.missing()[1])
    return steps


def distances(steps: Mapping[int, Step]) -> dict[str, dict[str, list[float]]]:
    """{layer: {"before", "after"}}, JSON-ready: for each request the length of what its state lacked when the layer's update
    was sought, and once it was in the model."""
    def rounded(lengths: Float[Tensor, " n"]) -> list[float]:
        return [float(f"{length:.6g}") for length in lengths.tolist()]

    return {str(layer): {"before": rounded(step.before), "after": rounded(step.after[0])} for layer, step in steps.items()}


def share_left(missing: Mapping[str, Mapping[str, Sequence[float]]]) -> list[float]:
    """Of each request, how much of the way to its target state the whole edit left. missing: what `distances` gave."""
    first, last = next(iter(missing.values())), list(missing.values())[-1]
    return [after / before if before else 0.0 for before, after in zip(first["before"], last["after"])]


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

    def targets(self, task: Task) -> tuple[Values, Site]:
        return self._targets(task, self.contexts(task))

    def _targets(self, task: Task, prepared: Prepared) -> tuple[Values, Site]:
        """(the target states, where they were sought)."""
        hp, decoder = self.hparams, prepared.decoder
        site = value_site(decoder, task.requests, hp.layers, hp.fact_token)
        return cached_optimise(
            decoder, task.requests, hp.layers[-1], hp, prepared.templates, site, folder=task.z_cache, progress=task.progress
        ), site

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

        started = time.perf_counter()
        values, site = self._targets(task, prepared)
        seconds["values"] = time.perf_counter() - started

        started = time.perf_counter()
        aim = Aim.of(prepared, requests, hp, site, values)
        with trial(decoder) as change:
            steps = spread(decoder, hp.layers, aim, solver.adjust, change, self.refreshes, task.progress)
            if task.memory is not None and solver.remember:  # the keys that the edited model has, as published
                task.memory.stage({layer: solver.remember(layer, keys.T) for layer, keys in aim.keys(hp.layers).items()})
        changes: dict[str, LowRank | Dense] = {}
        objective = {}
        for layer, step in steps.items():
            name, parameter, in_first = decoder.weight(layer)
            changes[name] = self.written(step.update, parameter.detach())
            goal = Goal.of(step.keys, step.residual, step.adjusted, aim.states, aim.states.to(step.missing) - step.missing)
            preserved = solver.moments[layer].matrix if hp.calculate_objective_value else None
            objective[str(layer)] = objective_distances(goal, changes[name], parameter, in_first, preserved)
        seconds["insert"] = time.perf_counter() - started
        missing = distances(steps)
        return changes, {"seconds": seconds, "statistics": solver.statistics, "objective_distances": objective,
                         "missing": missing, "share_left": share_left(missing)}
