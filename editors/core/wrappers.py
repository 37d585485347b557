"""Models in wrappers: peft's adapters, torch.compile and DistributedDataParallel, under the names of the plain model."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_INSIDE = re.compile(r"(^|\.)(_orig_mod|base_layer|original_module|modules_to_save\.[^.]+)(?=\.|$)")


def unwrapped(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside: the same modules and parameters, an adapter's included."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._orig_mod
        elif _is_peft(model):  # an adapter's tuner stands between; learned prompts, which are left out, have none
            model = model.base_model.model if hasattr(model.base_model, "inject_adapter") else model.base_model
        else:
            return model


def bare(module: nn.Module) -> nn.Module:
    """A module without what is around it: of an adapted linear map the map itself, of a module that is saved whole beside an
    adapter the one in use."""
    while (inner := _inside(module)) is not None:
        module = inner[1]
    return module


def plain_name(name: str) -> str:
    """The name that a module or parameter of an unwrapped model has without compiled blocks and adapters."""
    return _INSIDE.sub("", name).removeprefix(".")


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """{name in the plain model: parameter}, in order, without those of adapters; shared ones under each of their names."""
    return {plain_name(name): parameter for name, parameter in _own(unwrapped(model))}


def plain_module(model: nn.Module, name: str) -> nn.Module:
    """The bare module that has this name in the plain model. Raises AttributeError if there is none."""
    module = bare(unwrapped(model))
    for part in name.split(".") if name else ():
        module = bare(module.get_submodule(part))
    return module


def _own(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield prefix + name, parameter
    inner = _inside(module)
    children = module._modules if inner is None else dict([inner])
    for name, child in children.items():
        if child is not None:
            yield from _own(child, f"{prefix}{name}.")


def _inside(module: nn.Module) -> tuple[str, nn.Module] | None:
    """(name, module) of what a wrapper computes with, its adapter aside; None for a module that is no wrapper."""
    children = module._modules
    for name in ("_orig_mod", "base_layer"):
        if children.get(name) is not None:
            return name, children[name]
    original, copies = children.get("original_module"), children.get("modules_to_save")
    if original is None or copies is None:
        return None
    adapter = next(iter(module.active_adapters), None)
    if module.disable_adapters or adapter not in copies:
        return "original_module", original
    return f"modules_to_save.{adapter}", copies[adapter]


def _is_peft(model: nn.Module) -> bool:
    peft = sys.modules.get("peft")  # slow to import, and there where a model is wrapped by it
    return peft is not None and isinstance(model, peft.PeftModel)
