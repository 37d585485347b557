"""Models in wrappers: peft's adapters, torch.compile and DistributedDataParallel, under the names of the plain model."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_INSIDE = re.compile(r"(^|\.)(_orig_mod|base_layer)(?=\.|$)")


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
    """A module without what is around it: of an adapted linear map the map itself."""
    while True:
        inner = module._modules.get("_orig_mod") or module._modules.get("base_layer")
        if inner is None:
            return module
        module = inner


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
    children = module._modules
    if children.get("base_layer") is not None:
        children = {"base_layer": children["base_layer"]}
    for name, child in children.items():
        if child is not None:
            yield from _own(child, f"{prefix}{name}.")


def _is_peft(model: nn.Module) -> bool:
    peft = sys.modules.get("peft")  # slow to import, and there where a model is wrapped by it
    return peft is not None and isinstance(model, peft.PeftModel)
