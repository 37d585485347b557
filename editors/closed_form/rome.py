"""ROME: rank-one model editing (Meng et al., NeurIPS 2022)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch

from editors.base import Task, WeightEditor
from editors.changes import LowRank
from editors.configuration import Bound
from editors.core import solve
from editors.core.keys import layer_io
from editors.core.prompts import Request
from editors.core.value_cache import cached_optimise
from editors.core.values import Values
from editors.hparams import ValueHParams
from .prepared import begun_with, prepare, Prepared, to_change, trial
from .statistics import described, factorised, second_moments

ContextLengths = Annotated[list[list[int]], Bound(lambda pairs: all(len(pair) == 2 and min(pair) >= 1 for pair in pairs),
                                                  "must be pairs [length, number], both at least 1")]


@dataclass(frozen=True, kw_only=True)
class ROMEHParams(ValueHParams):
    """ROME's keys: the sampled contexts, and the key that the weight maps onto the value."""

    mom2_adjustment: bool
    """Whiten the key with the second moment; false uses the key itself (ROME's ablation, and AlphaEdit's Llama-3 file)."""
    context_template_length_params: ContextLengths
    """[[length in tokens, number of contexts], ...] of the sampled contexts."""
    key: Literal["legacy", "consistent"] = "legacy"
    """Which key the edited weight maps onto the value.

    legacy: as published, u comes from the key averaged over contexts, but the residual and the denominator from the bare
    prompt's key, so that W' maps the bare prompt's key exactly onto v. consistent: the averaged key throughout (eq. 2 of the
    paper as it is written; the mismatch is known to make some single edits collapse a model).
    """

    ignored: ClassVar[Mapping[str, str]] = {
        "model_name": "the model is given to the program",
    }
    fixed: ClassVar[Mapping[str, tuple[Any, str]]] = ValueHParams.fixed | {
        "bias_update": (False, "only the weight is edited"),
    }


class ROME(WeightEditor):
    """Writes one fact as a rank-one change of one layer's down-projection; several requests one after another.

    W' = W + (v - W k) u^T / (u^T k), u = C^{-1} k / |C^{-1} k| (eq. 2). With several layers, each is edited in ascending order
    on the model already changed below.
    """

    name = "ROME"
    hparams_class = ROMEHParams

    def prepare(self, task: Task) -> dict[str, Any]:
        hp = self.hparams
        prepared = prepare(task, hp, "rome", length_params=hp.context_template_length_params)
        fixed = hp.mom2_adjustment and not hp.dynamic
        return begun_with(prepared, second_moments(prepared.decoder, hp, task.progress) if fixed else {})

    def targets(self, task: Task) -> Values | None:
        """Those at the first layer; at others they follow from the edit before."""
        hp = self.hparams
        if len(hp.layers) > 1:
            return None
        prepared = prepare(task, hp, "rome", length_params=hp.context_template_length_params)
        return self._targets(task, prepared, task.requests, hp.layers[0])

    def _targets(self, task: Task, prepared: Prepared, requests: Sequence[Request], layer: int) -> Values:
        return cached_optimise(
            prepared.decoder, requests, layer, self.hparams, prepared.templates, "down_proj", folder=task.z_cache,
            progress=task.progress
        )

    def changes(self, task: Task) -> tuple[dict[str, LowRank], dict[str, Any]]:
        hp = self.hparams
        prepared = prepare(task, hp, "rome", length_params=hp.context_template_length_params)
        layers = sorted(hp.layers)
        info: dict[str, Any] = {}
        factors: dict[int, solve.Factor | None] = dict.fromkeys(layers)
        if hp.mom2_adjustment:
            moments = second_moments(prepared.decoder, hp, task.progress)
            regular = factorised(moments, hp)
            factors |= regular.by_layer
            info["statistics"] = described(moments, regular.added)
        changes: dict[str, LowRank] = {}
        with trial(prepared.decoder) as change:
            for request in task.requests:
                for layer in layers:
                    name, update = self._rank_one(task, request, layer, prepared, factors[layer])
                    change(layer, update)
                    changes[name] = changes[name].plus(update) if name in changes else update
        return changes, info

    def _rank_one(
        self, task: Task, request: Request, layer: int, prepared: Prepared, factor: solve.Factor | None
    ) -> tuple[str, LowRank]:
        hp, decoder = self.hparams, prepared.decoder
        values = self._targets(task, prepared, [request], layer)
        inputs, outputs = layer_io(decoder, request, layer, prepared.contexts, hp.fact_token)
        key = inputs.mean(0)
        u = solve.rome_direction(factor, key)
        if hp.key == "legacy":
            key, mapped = inputs[0], outputs[0]
        else:
            with torch.no_grad():
                mapped = decoder.down_proj(layer)(key.to(task.model.dtype)[None])[0]
        right = (values.target[0].to(u) - mapped.to(u)) / (key.to(u) @ u)
        weight = decoder.weight(layer)
        return weight.name, to_change(weight, right[:, None], u[:, None])
