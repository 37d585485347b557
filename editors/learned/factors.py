"""The gradient of a linear map's weight as its two factors, from hooks and one backward pass (Mitchell et al. 2022a, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..core.modules import hooked
from ..errors import EditingError
from .editable import Editable, forward
from .episode import Batch
from .losses import IGNORED, wide

CHUNK = 128
"""Edits that go through the model together."""


@dataclass(frozen=True)
class Factors:
    """Rows u_b and delta_b of one weight: its gradient is the sum of delta_b u_b^T over all token positions b of all edits."""

    u: Float[Tensor, "rows d_in"]
    """The module's inputs, in float32 or wider."""
    delta: Float[Tensor, "rows d_out"]
    """Gradients of the loss, the mean over all scored tokens, at the module's outputs."""

    def kept(self) -> Factors:
        """Without the rows in which u or delta is all zero: padding, and positions that the loss does not depend on."""
        mask = (self.u != 0).any(-1) & (self.delta != 0).any(-1)
        return Factors(self.u[mask], self.delta[mask])


def linear_of(model: nn.Module, name: str) -> tuple[nn.Module, bool]:
    """(the module whose weight is called `name`, whether it stores it as [d_in, d_out]). Raises EditingError for other modules."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if attribute != "weight" or not isinstance(module, (nn.Linear, Conv1D)):
        raise EditingError(f"inner_params: {name} is not the weight of a linear map, so it has no such gradient factors")
    return module, isinstance(module, Conv1D)


def dimensions(model: nn.Module, name: str) -> tuple[int, int]:
    """(d_in, d_out) of the linear map whose weight is called `name`."""
    module, in_first = linear_of(model, name)
    rows, columns = module.weight.shape
    return (rows, columns) if in_first else (columns, rows)


def chunks(batch: Batch, size: int = CHUNK) -> Iterator[Batch]:
    """The batch in parts of at most `size` rows."""
    rows = len(batch["input_ids"])
    yield from ({name: tensor[i:i + size] for name, tensor in batch.items()} for i in range(0, rows, size)) if rows > size else [batch]



def gradient_factors(alg: Editable, batch: Batch, size: int = CHUNK) -> dict[str, Factors]:
    """{inner parameter: factors of the gradient of the batch's loss at the weights as they are now}, detached.

    No parameter needs a gradient, none gets one. Batches of more than `size` rows go through the model in parts, with the result
    of one pass. Raises EditingError if nothing is scored.
    """
    found: dict[str, list[Factors]] = {name: [] for name in alg.inner}
    total = scored(alg, batch)
    if not total:
        raise EditingError("an edit in which no label is scored: its target is empty, or all of it is masked")
    overrides = {name: weight.detach() for name, weight in alg.overrides.items()}
    for part in chunks(batch, size):
        weight = scored(alg, part)
        if not weight:
            continue
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        with torch.enable_grad(), _captured(alg, seen):
            loss = alg.score(forward(alg.model, overrides, part), part).nll * (weight / total)
        missing = [name for name in alg.inner if name not in seen]
        if missing:
            raise EditingError(f"inner_params: {missing[0]} takes no part in the model's forward pass")
        deltas = torch.autograd.grad(loss, [seen[name][1] for name in alg.inner])
        for name, delta in zip(alg.inner, deltas):
            u = seen[name][0].detach()
            found[name].append(Factors(wide(u.reshape(-1, u.shape[-1])), wide(delta.reshape(-1, delta.shape[-1]))))
    return {name: Factors(torch.cat([f.u for f in parts]), torch.cat([f.delta for f in parts])) for name, parts in found.items()}


def scored(alg: Editable, batch: Batch) -> float:
    """How many labels of a batch are scored, which is what its mean loss weighs among others."""
    labels = batch["labels"]
    return float((labels[:, 1:] if alg.kind.shift else labels).ne(IGNORED).sum())


@contextmanager
def _captured(alg: Editable, seen: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Inside, the (input, output) of each inner parameter's module are noted; outputs are where the graph begins."""

    def hook(name: str):
        def note(module, inputs, output):
            seen[name] = (inputs[0], output if output.requires_grad else output.requires_grad_(True))
        return note

    with hooked(linear_of(alg.model, name)[0].register_forward_hook(hook(name)) for name in alg.inner):
        yield


def gradients(alg: Editable, batch: Batch, weights: Mapping[str, Tensor], create_graph: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, {name: d loss / d weight}) with `weights` in place of the model's, materialised in full."""
    loss = alg.score(forward(alg.model, alg.overrides | dict(weights), batch), batch).nll
    grads = torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph)
    return loss, dict(zip(weights, grads))
