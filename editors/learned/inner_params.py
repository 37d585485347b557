"""Which weights an edit may change, where the configuration names none."""

import re

from torch import nn
from transformers.pytorch_utils import Conv1D

from common.errors import UserError

from .model_kind import model_kind, ModelKind

_FEED_FORWARD = re.compile(r"(^|\.)(mlp|fc1|fc2|DenseReluDense|feed_forward|intermediate|(?<!attention\.)output|ffn)(\.|$)")
_GATES = ("wi_1", "gate_proj")
_ROUTER = re.compile(r"(^|\.)(router|gate|shared_expert_gate)(\.|$)")


def default_inner_params(model: nn.Module, blocks: int | None = None) -> list[str]:
    """The weights of the feed-forward maps of the last blocks, block after block in the model's order.

    blocks: of each stack; None: three, of an encoder and a decoder two each. Left out are gates of gated layers (T5's wi_1,
    Llama's gate_proj), routers of experts, and what a multimodal decoder has besides its language model.
    Raises UserError if there are none.
    """
    kind = model_kind(model)
    blocks = blocks or (2 if kind.is_seq2seq else 3)
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if kind is ModelKind.DECODER:
        language = set(model.get_decoder().modules())
        lists = [(path, module) for path, module in lists if module in language]
    stacks = [(path, module) for path, module in lists if not any(path.startswith(other + ".") for other, _ in lists)]
    names, parameters = [], dict(model.named_parameters())  # of a block that stands in several places, one name
    for path, stack in stacks:
        for number in range(max(0, len(stack) - blocks), len(stack)):
            names += [
                f"{path}.{number}.{inner}.weight"
                for inner, module in stack[number].named_modules()
                if isinstance(module, (nn.Linear, Conv1D)) and _FEED_FORWARD.search(inner)
                and not inner.endswith(_GATES) and not _ROUTER.search(inner)
            ]
    names = [name for name in names if name in parameters]
    if not names:
        raise UserError("inner_params: no feed-forward weights were found in the model's last blocks; name the weights")
    return names
