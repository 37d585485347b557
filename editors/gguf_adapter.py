"""An Edit as a LoRA adapter in a GGUF file, which llama.cpp and Ollama load beside the GGUF file of the same model.

llama.cpp adds (alpha / rank) B A to a weight, rank being that of its own factors. alpha is the largest rank here, and B of a
smaller one is scaled for it. Such a file can't tell of biases, nor of weights that llama.cpp stores in another order than
transformers (the queries and keys of Llama and its kin).
"""

import importlib
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from common.errors import UserError
from common.files import whole_file
from . import adapter
from .changes import Change
from .core.gguf_file import INSTALL
from .core.wrappers import unwrapped

ARCHITECTURES = {"mistral": "llama", "gpt_neox": "gptneox", "gemma3_text": "gemma3", "falcon": "falcon", "qwen2": "qwen2"}
"""transformers' name of a model type -> GGUF's, where they differ; others have the same name, or none."""
REORDERED = ("attn_q", "attn_k", "attn_qkv")
"""Parts of a block that llama.cpp stores with their rows in another order, of some architectures at least."""


def save(
    path: Path, changes: Mapping[str, Change], info: Mapping[str, Any], model: nn.Module, max_rank: int | None = None
) -> dict[str, adapter.Lora]:
    """Writes the file, whole or not at all; for what it returns see :func:`adapter.factors`.

    max_rank: of :data:`adapter.RANKS`, or None: exact whatever the rank. Raises UserError without the package gguf, for a model
    type that GGUF does not know, and for changes that such a file can't hold.
    """
    if find_spec("gguf") is None:
        raise UserError(f"a GGUF file needs the package gguf: {INSTALL}")
    gguf = importlib.import_module("gguf")
    loras = adapter.factors(changes, model, max_rank)
    if not loras:
        raise UserError("the edit changes no weight, so there is nothing for an adapter to hold")
    config = unwrapped(model).config
    architecture, names = _names(gguf, config, loras)
    alpha = max(lora.rank for lora in loras.values())
    with whole_file(path) as part:
        writer = gguf.GGUFWriter(part, architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
        writer.add_string("general.description", json.dumps(dict(info), default=str))
        for module, lora in loras.items():
            writer.add_tensor(f"{names[module]}.lora_a", lora.down.contiguous().numpy())
            writer.add_tensor(f"{names[module]}.lora_b", (lora.up * (lora.rank / alpha)).contiguous().numpy())
        for step in ("header", "kv_data", "tensors"):
            getattr(writer, f"write_{step}_to_file")()
        writer.close()
    return loras


def _names(gguf: Any, config: Any, loras: Mapping[str, adapter.Lora]) -> tuple[str, dict[str, str]]:
    """(GGUF's name of the architecture, {module: GGUF's name of its weight})."""
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in kinds:
        raise UserError(f"a model of type {config.model_type!r} has no architecture of GGUF that is known here: export an "
                        "adapter or a checkpoint, and convert it with llama.cpp's own script")
    name_map = gguf.get_tensor_name_map(kinds[architecture], config.get_text_config().num_hidden_layers)
    names = {}
    for module, lora in loras.items():
        if lora.bias is not None:
            raise UserError(f"{module}: the edit changes its bias, which a LoRA adapter of llama.cpp can't hold")
        name = name_map.get_name(module)
        if name is None:
            raise UserError(f"{module}: GGUF has no name for it in the architecture {architecture!r}")
        if any(part in name for part in REORDERED):
            raise UserError(f"{module}: llama.cpp may store its rows in another order; only maps that it keeps can be exported")
        names[module] = f"{name}.weight"
    return architecture, names
