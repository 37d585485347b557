"""Optimisers by name, and their state in a form that checkpoints hold."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common.errors import UserError

MUON = "Muon"


class MuonAndAdam(Optimizer):
    """Muon for matrices (Jordan et al. 2024), in steps of Adam's size and with its usual decay of lr * 0.1; Adam for the rest:
    vectors, and the matrices in `tables` (embeddings), whose rows have little to do with each other."""

    def __init__(self, params: Iterable, lr: float = 1e-3, tables: Collection[Tensor] = ()):
        super().__init__(params, {"lr": lr})
        table_ids = {id(table) for table in tables}
        self._parts: list[tuple[Optimizer, dict[str, Any]]] = []
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.ndim == 2 and min(p.shape) > 1 and id(p) not in table_ids]
            matrix_ids = {id(p) for p in matrices}
            others = [p for p in group["params"] if id(p) not in matrix_ids]
            if matrices:
                self._parts.append((torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), group))
            if others:
                self._parts.append((torch.optim.Adam(others), group))

    @torch.no_grad()
    def step(self, closure=None):
        for part, group in self._parts:
            part.state = self.state  # by parameter; loading makes a new one
            for part_group in part.param_groups:
                part_group["lr"] = group["lr"]
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        groups = self.param_groups
        super().load_state_dict(state_dict)
        for old, new in zip(groups, self.param_groups):
            old.update(new)
        self.param_groups = groups  # which the parts look at


def build(name: str, groups: Sequence[Mapping[str, Any]], module: nn.Module) -> Optimizer:
    """The optimiser of that name in torch.optim for parameter groups; for "Muon", which takes matrices only, `MuonAndAdam`.
    module: whose embeddings count as tables."""
    if name != MUON:
        return getattr(torch.optim, name)(groups)
    return MuonAndAdam(groups, tables=[m.weight for m in module.modules() if isinstance(m, nn.Embedding)])


def optimiser_class(name: str, key: str, lr: float, shapes: Sequence[Sequence[int]] = ((2,), (2, 2))) -> type[Optimizer]:
    """The class of that name in torch.optim.

    shapes: what it must be able to step, as dense parameters. Raises UserError that names `key`.
    """
    kind = getattr(torch.optim, name, None)
    if not isinstance(kind, type):
        raise UserError(f"{key}: torch.optim has no {name!r}")
    params = [torch.zeros(*shape, requires_grad=True) for shape in shapes]
    for p in params:
        p.grad = torch.ones_like(p)
    try:
        kind(params, lr=lr).step()
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{key}: {name} can't take a step from gradients alone, at the rate {lr:g} ({reason})") from None
    return kind


def state_of(optimiser: Optimizer, params: Sequence[Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(JSON-ready, tensors): the optimiser's state, the gradients gathered so far, and the state of random numbers."""
    scalars, tensors = {}, {}
    for number, entry in optimiser.state_dict()["state"].items():
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"opt/{number}/{key}"] = value.detach().cpu()
            else:
                scalars[f"{number}/{key}"] = value
    tensors |= {f"grad/{i}": p.grad.detach().cpu() for i, p in enumerate(params) if p.grad is not None}
    tensors["rng/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    return scalars, tensors


def restore(optimiser: Optimizer, params: Sequence[Tensor], scalars: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Takes over what `state_of` gave."""
    state = optimiser.state_dict() | {"state": {}}
    for name, value in (tensors | {f"opt/{name}": value for name, value in scalars.items()}).items():
        kind, _, place = name.partition("/")
        if kind == "opt":
            number, _, key = place.partition("/")
            state["state"].setdefault(int(number), {})[key] = value
        elif kind == "grad":
            params[int(place)].grad = value.to(params[int(place)].device)
    optimiser.load_state_dict(state)
    torch.set_rng_state(tensors["rng/cpu"])
    if "rng/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng/cuda"])
