"""Reading a Hugging Face model's modules: lookup by name, outputs of either kind, the head, modes and devices."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from common.errors import UserError
from .wrappers import plain_module, unwrapped


def get_module(model: nn.Module, name: str) -> nn.Module:
    """The submodule called ``name``; UserError with the nearest name if there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        near = difflib.get_close_matches(name, [n for n, _ in model.named_modules() if n], n=1, cutoff=0.0)
        raise UserError(f"{type(model).__name__} has no module {name!r}; nearest: {near[0]!r}") from None


def get_plain_module(model: nn.Module, name: str) -> nn.Module:
    """The bare module of this name in the plain model, whatever the model is wrapped in; UserError as `get_module`."""
    try:
        return plain_module(model, name)
    except AttributeError:
        return get_module(unwrapped(model), name)


def first(output) -> Tensor:
    """The tensor of a module's output: blocks return tensors or tuples, decoders a mapping that indexes like one."""
    return output if isinstance(output, Tensor) else output[0]


def by_row(x: Tensor, batch: int) -> Tensor:
    """[batch, tokens, width] of a projection's input or output; OPT runs its MLP on [batch * tokens, width]."""
    return x.reshape(batch, -1, x.shape[-1])


def input_device(model: nn.Module) -> torch.device:
    """Where token ids go: the device of the input embedding (the CPU if that is offloaded; hooks move them on)."""
    device = model.get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device


def is_linear(module: nn.Module) -> bool:
    """Linear or Conv1D, quantised subclasses and peft adapters around one (``base_layer``) included."""
    return isinstance(getattr(module, "base_layer", module), (nn.Linear, Conv1D))


def in_features(module: nn.Module) -> int:
    """Width of a linear map's input."""
    linear = getattr(module, "base_layer", module)
    return linear.nx if isinstance(linear, Conv1D) else linear.in_features


def is_mixture(module: nn.Module) -> bool:
    """Whether experts are among which each token chooses: their weights are three-dimensional, or a list of modules."""
    return any("expert" in name.lower().rpartition(".")[2] or "expert" in type(part).__name__.lower()
               for name, part in module.named_modules())


def text_config(model: nn.Module):
    """The configuration of the decoder; of a multimodal model, its language part."""
    return model.config.get_text_config()


def longest_context(model: nn.Module) -> int | None:
    """Tokens of a row that edits, metrics, statistics and tracing let the model read at most: those that it was made for.

    With ALiBi, MPT fails beyond `max_seq_len`, and BLOOM goes on beyond `seq_length`, for which it was not trained.
    None if the configuration names no limit.
    """
    config = text_config(model) if hasattr(model, "config") else None
    names = ("n_positions", "max_position_embeddings", "max_seq_len", "seq_length")
    return next((value for name in names if (value := getattr(config, name, None)) and value > 0), None)  # XLNet: -1


def logits_of(model: nn.Module, head: str, normed_hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocabulary"]:
    """Logits of final-norm outputs, as the model itself computes them.

    Includes the head's bias, a logit scale (Cohere multiplies, Granite divides) and soft-capping (Gemma 2).
    """
    config = text_config(model)
    logits = get_module(model, head)(normed_hidden)
    if getattr(config, "logit_scale", None):
        logits = logits * config.logit_scale
    if getattr(config, "logits_scaling", None):
        logits = logits / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


class LeaveForward(Exception):
    """Raised by a hook that has seen all it was to see: ends the forward pass within ``hooked``."""


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Inside, the hooks that ``handles`` places are there; they go whatever happens. One may leave by LeaveForward."""
    placed: list[RemovableHandle] = []
    try:
        for handle in handles:
            placed.append(handle)
        yield
    except LeaveForward:
        pass
    finally:
        for handle in placed:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, no dropout, and GELU's tanh form as one kernel, not eight elementwise steps; afterwards all is as it was."""
    modes = {module: module.training for module in model.modules()}
    spelled_out = [m for m in modes if isinstance(m, NewGELUActivation) and "forward" not in vars(m)]
    model.eval()
    for module in spelled_out:
        module.forward = partial(nn.functional.gelu, approximate="tanh")
    try:
        yield
    finally:
        for module in spelled_out:
            del module.forward
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no gradient goes to the model's parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
