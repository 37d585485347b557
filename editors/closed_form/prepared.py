"""What ROME, MEMIT and their kin need before their own formula: the decoder with its sites, and contexts."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.errors import UserError
from editors.base import Task
from editors.changes import add_to, Dense, LowRank
from editors.core.contexts import as_groups, context_templates, contexts_fingerprint
from editors.core.decoder import Decoder, Weight
from editors.core.moment import Moment
from editors.core.prompts import check_lengths
from editors.hparams import ValueHParams


@dataclass(frozen=True)
class Prepared:
    """What a closed form needs of a model before its first edit: the decoder and the context templates."""

    decoder: Decoder
    contexts: list[list[str]]
    """Groups of context templates: the first is the bare "{}"."""

    @property
    def templates(self) -> list[str]:
        """All templates of all groups, the bare "{}" first."""
        return [template for group in self.contexts for template in group]


def prepare(
    task: Task, hparams: ValueHParams, kind: str, length_params: list | None = None, starts: list[str] | None = None
) -> Prepared:
    """Verified sites and the contexts (given, or of this kind, from the model with the seed of the hparams).

    Raises UserError for what either finds wrong.
    """
    decoder = Decoder.of(task.model, task.tok, hparams.templates())
    blocks = decoder.sites.layers
    beyond = [layer for layer in hparams.layers if layer >= blocks]
    if beyond:
        raise UserError(f"layers: block {beyond[0]} does not exist, the model has blocks 0 to {blocks - 1}")
    if hparams.v_loss_layer is not None and not 0 <= hparams.v_loss_layer < blocks:
        raise UserError(f"v_loss_layer: block {hparams.v_loss_layer} does not exist, the model has blocks 0 to {blocks - 1}")
    if task.context_templates is None:
        contexts = context_templates(
            task.model, task.tok, kind, length_params=length_params, seed=hparams.context_seed, starts=starts
        )
    else:
        contexts = as_groups(task.context_templates)
    if contexts[0][0] != "{}":
        raise UserError(f'context_templates: the first must be the bare "{{}}", found {contexts[0][0]!r}')
    shared = [layer for layer in hparams.layers if decoder.sites.mixtures[layer] and decoder.sites.name("down_proj", layer)]
    if shared:
        warnings.warn(f"layers {shared} are mixtures of experts: only the expert that every token passes is edited, "
                      f"{decoder.sites.name('down_proj', shared[0])}", stacklevel=2)
    prepared = Prepared(decoder, contexts)
    checked = prepared.templates if hparams.end_of_text else prepared.templates[1:]  # a Task is of the bare prompt and target
    check_lengths(task.tok, task.requests, checked, decoder.positions, hparams.end_of_text)
    return prepared


def begun_with(prepared: Prepared, moments: dict[int, Moment]) -> dict[str, Any]:
    """What `Editor.begin` tells of contexts and statistics, JSON-ready."""
    statistics = {f"statistics of block {layer}": moment.summary() for layer, moment in moments.items()}
    return {"contexts": contexts_fingerprint(prepared.contexts), **statistics}


def to_change(weight: Weight, left: Float[Tensor, "d_out n"], right: Float[Tensor, "d_in n"]) -> LowRank:
    """The update `left @ right.T` of the map d_in -> d_out in the parameter's orientation, on the CPU, float32 at least."""
    dtype = torch.promote_types(weight.parameter.dtype, torch.float32)
    left, right = (factor.to("cpu", dtype) for factor in (left, right))
    return LowRank(right, left) if weight.in_first else LowRank(left, right)


@contextmanager
def trial(decoder: Decoder) -> Iterator[Callable[[int, LowRank | Dense], None]]:
    """Yields change(layer, update), which alters the weight in place; afterwards the exact weights are back."""
    originals: dict[str, tuple[nn.Parameter, Tensor]] = {}

    def change(layer: int, update: LowRank | Dense) -> None:
        name, parameter, _ = decoder.weight(layer)
        if name not in originals:
            originals[name] = (parameter, parameter.detach().clone())
        add_to(parameter, update)

    try:
        yield change
    finally:
        with torch.no_grad():
            for parameter, original in originals.values():
                parameter.copy_(original)
