"""Optimisers of torch.optim by name, and their state in a form that checkpoints hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import EditingError


def optimiser_class(name: str, key: str, lr: float, shapes: Sequence[Sequence[int]] = ((2,), (2, 2))) -> type[Optimizer]:
    """The class of that name. shapes: what it must be able to step, as dense parameters. Raises EditingError that names `key`."""
    kind = getattr(torch.optim, name, None)
    if not isinstance(kind, type):
        raise EditingError(f"{key}: torch.optim has no {name!r}")
    params = [torch.zeros(*shape, requires_grad=True) for shape in shapes]
    for p in params:
        p.grad = torch.ones_like(p)
    try:
        kind(params, lr=lr).step()
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise EditingError(f"{key}: {name} can't take a step from gradients alone, at the rate {lr:g} ({said})") from None
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
        kind, _, rest = name.partition("/")
        if kind == "opt":
            number, _, key = rest.partition("/")
            state["state"].setdefault(int(number), {})[key] = value
        elif kind == "grad":
            params[int(rest)].grad = value.to(params[int(rest)].device)
    optimiser.load_state_dict(state)
    torch.set_rng_state(tensors["rng/cpu"])
    if "rng/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng/cuda"])
