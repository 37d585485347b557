"""What ROME, MEMIT and their kin do before their own formula: find sites, templates and statistics."""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from common.errors import UserError
from editors.base import Task
from editors.changes import add_to, Dense, LowRank
from editors.core import covariance, solve
from editors.core.contexts import as_groups, context_templates, contexts_fingerprint
from editors.core.moment_store import Moment
from editors.core.prompts import check_lengths
from editors.core.sites import find_sites, longest_context, Sites, weight_of
from editors.hparams import ValueHParams

# Factors by second moment: one Cholesky a layer serves every batch, and goes when the moment goes.
_factors: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_ranks: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@dataclass(frozen=True)
class Prepared:
    sites: Sites
    groups: list[list[str]]
    """Context templates: the first is the bare "{}"."""

    @property
    def templates(self) -> list[str]:
        return [template for group in self.groups for template in group]


def prepare(
    task: Task, hparams: ValueHParams, kind: str, length_params: list | None = None, starts: list[str] | None = None
) -> Prepared:
    """Verified sites and the contexts (given, or of this kind, from the model with the seed of the hparams).

    Raises UserError for what either finds wrong.
    """
    sites = find_sites(task.model, hparams.templates())
    beyond = [layer for layer in hparams.layers if layer >= sites.layers]
    if beyond:
        raise UserError(f"layers: block {beyond[0]} does not exist, the model has blocks 0 to {sites.layers - 1}")
    if hparams.v_loss_layer is not None and not 0 <= hparams.v_loss_layer < sites.layers:
        raise UserError(f"v_loss_layer: block {hparams.v_loss_layer} does not exist, the model has blocks 0 to {sites.layers - 1}")
    if task.context_templates is None:
        groups = context_templates(task.model, task.tok, kind, length_params=length_params, seed=hparams.context_seed, starts=starts)
    else:
        groups = as_groups(task.context_templates)
    if groups[0][0] != "{}":
        raise UserError(f'context_templates: the first must be the bare "{{}}", found {groups[0][0]!r}')
    prepared = Prepared(sites, groups)
    check_lengths(task.tok, task.requests, prepared.templates[1:], longest_context(task.model))
    return prepared


def keys_for(multiplier: float, model: nn.Module, sites: Sites, layer: int) -> int:
    """FastMEMIT's number of keys, ceil(m * d_in)."""
    _, weight, in_first = weight_of(model, sites, layer)
    return math.ceil(Fraction(str(multiplier)) * weight.shape[0 if in_first else 1])  # 1.1 * 6400 is 7040, but not in floats


def second_moments(task: Task, hparams: ValueHParams, sites: Sites, info: dict[str, Any]) -> dict[int, Moment]:
    """{layer: second moment of the keys}, all before the first weight changes; what they were made of goes into `info`.

    With dynamic_multiplier m of exactly ceil(m * d_in) keys (FastMEMIT); with dynamic of the model as it is now.
    """
    multiplier = hparams.dynamic_multiplier
    max_keys = None if multiplier is None else keys_for(multiplier, task.model, sites, hparams.layers[0])
    gather = covariance.collect_now if hparams.dynamic else partial(covariance.collect, batch_tokens=hparams.mom2_tokens)
    moments = gather(
        task.model, task.tok, hparams.layers, hparams.mom2_dataset, hparams.mom2_n_samples, hparams.mom2_dtype, sites=sites,
        progress=task.progress, max_keys=max_keys,
    )
    told = {"count": "keys", "texts": "documents", "rank": "rank", "condition": "condition", "seconds": "seconds"}
    info["statistics"] = {
        str(layer): {name: moment.identity[field] for field, name in told.items() if field in moment.identity}
        for layer, moment in moments.items()
    }
    return moments


def covariance_factors(
    moments: dict[int, Moment], hparams: ValueHParams, info: dict[str, Any], ridge: float = 0.0
) -> dict[int, solve.Factor]:
    """{layer: Cholesky factor of C + ridge I}, for the C that `second_moments` gave with the same `info`.

    A C without full rank is helped by relative_ridge, if the hparams set it; `info` tells by how much.
    """
    factors = {}
    for layer, moment in moments.items():
        added, rank = ridge, _rank(moment) if hparams.relative_ridge else moment.identity.get("rank", len(moment.matrix))
        if rank < len(moment.matrix) and not ridge and not hparams.relative_ridge:
            raise UserError(
                f"block {layer}: the second moment of {moment.count} keys has rank {rank} of {len(moment.matrix)}: raise "
                "dynamic_multiplier (10 is usual) or mom2_n_samples, or set relative_ridge (1e-3, say)"
            )
        if rank < len(moment.matrix) and hparams.relative_ridge:
            helping = hparams.relative_ridge * float(moment.matrix.diagonal().mean())
            info["statistics"][str(layer)]["ridge"] = helping
            warnings.warn(
                f"block {layer}: the second moment of {moment.count} keys has rank {rank} of {len(moment.matrix)}; "
                f"relative_ridge adds {helping:.3g} to its diagonal", stacklevel=2,
            )
            added += helping
        elif rank < len(moment.matrix):
            warnings.warn(
                f"block {layer}: the second moment of {moment.count} keys has rank {rank} of {len(moment.matrix)}; "
                f"{ridge:.3g} on its diagonal (update_norm_lambda / mom2_update_weight) makes it regular", stacklevel=2,
            )
        by_ridge = _factors.setdefault(moment.matrix, {})
        if added not in by_ridge:
            by_ridge[added] = solve.factorise(moment.matrix, added, where=f"block {layer}", count=moment.count)
        factors[layer] = by_ridge[added]
    return factors


def _rank(moment: Moment) -> int:
    """Rank of a second moment, found once."""
    if moment.matrix not in _ranks:
        rank = moment.identity.get("rank", len(moment.matrix))
        if rank == len(moment.matrix) and torch.linalg.cholesky_ex(moment.matrix.double())[1]:
            rank = covariance.spectrum(moment.matrix)["rank"]
        _ranks[moment.matrix] = rank
    return _ranks[moment.matrix]


def begun_with(prepared: Prepared, moments: dict[int, Moment]) -> dict[str, Any]:
    """What `Editor.begin` tells of contexts and statistics, JSON-ready."""
    statistics = {f"statistics of block {layer}": moment.summary() for layer, moment in moments.items()}
    return {"contexts": contexts_fingerprint(prepared.groups), **statistics}


def to_change(update_left: torch.Tensor, update_right: torch.Tensor, in_first: bool, dtype: torch.dtype) -> LowRank:
    """The update R A^T of the map d_in -> d_out (left R [d_out, n], right A [d_in, n]) in the parameter's orientation."""
    kept = torch.promote_types(dtype, torch.float32)
    left, right = (x.to("cpu", kept) for x in (update_left, update_right))
    return LowRank(right, left) if in_first else LowRank(left, right)


@contextmanager
def trial(model: nn.Module, sites: Sites):
    """Yields change(layer, LowRank | Dense), which alters the weight in place; afterwards the exact weights are back."""
    originals: dict[str, tuple[nn.Parameter, torch.Tensor]] = {}

    def change(layer: int, update: LowRank | Dense) -> None:
        name, parameter, _ = weight_of(model, sites, layer)
        if name not in originals:
            originals[name] = (parameter, parameter.detach().clone())
        add_to(parameter, update)

    try:
        yield change
    finally:
        with torch.no_grad():
            for parameter, original in originals.values():
                parameter.copy_(original)
