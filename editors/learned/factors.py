"""The gradient of a linear map's weight as its two factors, from hooks and one backward pass (Mitchell et al. 2022a)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from common.errors import UserError
from .episode import Batch
from .losses import IGNORED, row_log_probs, wide

CHUNK = 128
"""Edits that go through the model together."""


@dataclass(frozen=True)
class Factors:
    """Rows u_b and delta_b of one weight: its gradient is the sum of delta_b u_b^T over all token positions b of an edit."""

    u: Float[Tensor, "rows d_in"]
    """The module's inputs, in float32 or wider."""
    delta: Float[Tensor, "rows d_out"]
    """Gradients of the loss, the mean over all scored tokens of the edit, at the module's outputs."""
    segment: Int[Tensor, "rows"]
    """Which of the edits that go through the model side by side a row belongs to."""

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """(u, delta, segment)."""
        return self.u, self.delta, self.segment

    def kept(self) -> Factors:
        """Without the rows in which u or delta is all zero: padding, and positions that the loss does not depend on."""
        mask = (self.u != 0).any(-1) & (self.delta != 0).any(-1)
        return Factors(self.u[mask], self.delta[mask], self.segment[mask])


def linear_of(model: nn.Module, name: str) -> tuple[nn.Module, bool]:
    """(module whose weight is called `name`, whether that is [d_in, d_out]). Raises UserError for one that is not linear."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if attribute != "weight" or not isinstance(module, (nn.Linear, Conv1D)):
        raise UserError(f"inner_params: {name} is not the weight of a linear map, so it has no such gradient factors")
    return module, isinstance(module, Conv1D)


def dimensions(model: nn.Module, name: str) -> tuple[int, int]:
    """(d_in, d_out) of the linear map whose weight is called `name`."""
    module, in_first = linear_of(model, name)
    rows, columns = module.weight.shape
    return (rows, columns) if in_first else (columns, rows)


def chunks(batch: Batch, size: int) -> list[Batch]:
    """The batch in parts of at most `size` rows."""
    return [{name: tensor[i : i + size] for name, tensor in batch.items()} for i in range(0, len(batch["input_ids"]), size)]


def gradient_factors(alg, batch: Batch, segments: int = 1, size: int = CHUNK, create_graph: bool = False) -> dict[str, Factors]:
    """{inner parameter: factors of the gradient of the batch's loss at the weights as they are now}.

    alg: a LowRankEditable. segments: the batch holds so many edits, each of equally many rows, and each has a loss of its own.
    Detached, unless create_graph. No parameter needs a gradient, none gets one. Batches of more than `size` rows of one edit go
    through the model in parts, with the result of one pass. Raises UserError if nothing is scored, and where the model's
    forward gives no factors.
    """
    parts_of: dict[str, list[Factors]] = {name: [] for name in alg.inner}
    total = float(scored(alg, batch).sum())
    parts = chunks(batch, size) if segments == 1 else [batch]
    for part in parts:
        if not scored(alg, part).reshape(segments, -1).any(-1).all():
            if len(parts) > 1:
                continue
            raise UserError("an edit in which no label is scored: its target is empty, or all of it is masked")
        activations: dict[str, tuple[Tensor, Tensor]] = {}
        with torch.enable_grad():
            logits = (alg if create_graph else alg.detached()).run(part, activations)
            log_p, n = (x.reshape(segments, -1).sum(-1) for x in row_log_probs(logits, part["labels"], alg.kind.shift))
            loss = -(log_p / n).sum() * (n.sum() / total if segments == 1 else 1)
        missing = [name for name in alg.inner if name not in activations]
        if missing:
            raise UserError(f"inner_params: {missing[0]} takes no part in the model's forward pass")
        if not loss.requires_grad:
            raise UserError(f"{type(alg.model).__name__} keeps no graph of its forward pass, so the loss has no gradient")
        deltas = torch.autograd.grad(loss, [activations[name][1] for name in alg.inner], create_graph=create_graph)
        for name, delta in zip(alg.inner, deltas):
            u = activations[name][0] if create_graph else activations[name][0].detach()
            u, delta = (wide(x.reshape(-1, x.shape[-1])) for x in (u, delta))
            segment = torch.arange(segments, device=u.device).repeat_interleave(len(u) // segments)
            parts_of[name].append(Factors(u, delta, segment))
    return {
        name: Factors(*(torch.cat([getattr(f, field) for f in factors]) for field in ("u", "delta", "segment")))
        for name, factors in parts_of.items()
    }


def scored(alg, batch: Batch) -> Int[Tensor, "rows"]:
    """Scored labels of each row, which is what its mean loss weighs among others."""
    labels = batch["labels"].reshape(len(batch["input_ids"]), -1)
    return (labels[:, 1:] if alg.kind.shift else labels).ne(IGNORED).sum(-1)
