"""What a model must be before it is edited: in memory, in numbers that can be changed, and finite."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn, Tensor

from common.errors import UserError
from .kept import kept

EDITABLE = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

QUANTISED_MODULES = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torchao.", "bitsandbytes.", "hqq.",
                     "optimum.quanto")


def check_editable(model: nn.Module) -> None:
    """Raises UserError, in one line, for a model whose weights can't be edited: quantised, in 8 bits or integers, offloaded,
    made under `torch.inference_mode`, NaN or infinite. What was found finite is kept, and costs nothing until it changes.
    """
    name = type(model).__name__
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        method = getattr(getattr(model, "quantization_method", None), "value", None) or "by transformers"
        raise UserError(f"{name} is quantised ({method}) and can't be edited: load it in 16 or 32 bits")
    for module in model.modules():
        if type(module).__module__.startswith(QUANTISED_MODULES):
            raise UserError(f"{name} is quantised ({type(module).__name__}) and can't be edited: load it in 16 or 32 bits")
    for weight, parameter in model.named_parameters():
        if _is_quantised(parameter):
            raise UserError(f"{weight} is quantised ({type(parameter).__name__}) and can't be edited: load the model in 16 or "
                            "32 bits")
        if parameter.is_meta:
            raise UserError(f"{weight} is not in memory (a meta tensor) and can't be edited: load the model into memory")
        if parameter.is_inference():
            raise UserError(f"{weight} was made under torch.inference_mode and can't be edited: load the model outside of it")
        if parameter.dtype not in EDITABLE:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise UserError(f"{weight} is {dtype}, in which no edit can be computed: load the model in 16 or 32 bits")
    for weight, buffer in model.named_buffers():
        if weight.endswith(".weight") and buffer.dtype in (torch.int8, torch.uint8):
            dtype = str(buffer.dtype).removeprefix("torch.")
            raise UserError(f"{weight} is quantised ({dtype}) and can't be edited: load the model in 16 or 32 bits")
    check_finite_weights(model, name)


def check_finite_weights(model: nn.Module, what: str) -> None:
    """Raises UserError for the first parameter that holds NaN or infinity; what: how the message calls the model.

    Quantised ones, whose packages know few operations, are left to `check_editable`. A parameter that was looked at is looked
    at again once it is changed or replaced.
    """
    seen = kept(model, "finite")
    for name, parameter in _in_memory(model):
        state = None if parameter.is_inference() else (parameter.data_ptr(), parameter._version)
        if state is None or seen.get(name) != state:
            if not is_finite(parameter):
                raise UserError(f"{what}: {name} is not finite (it holds NaN or infinity): no edit or measure of it would mean "
                                "anything; copy or download the model again, or load it in a wider dtype")
            seen[name] = state


def is_finite(x: Tensor) -> bool:
    """Whether no number of a tensor is NaN or infinite, without a copy of it."""
    if not x.numel() or not x.is_floating_point():
        return True
    if x.element_size() == 1:  # few operations know such numbers
        return bool(torch.isfinite(x.float()).all())
    low, high = torch.aminmax(x.detach())  # NaN passes through both
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _in_memory(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters()
            if not parameter.is_meta and not _is_quantised(parameter))


def _is_quantised(parameter: nn.Parameter) -> bool:
    return any(type(x).__module__.startswith(QUANTISED_MODULES) for x in (parameter, parameter.data))
