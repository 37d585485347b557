"""An Edit as a LoRA adapter that peft (and vLLM) loads beside the unedited model.

A module's change Delta W becomes B A with scale 1. A change with factors is taken over exactly, at the rank it has (the number
of facts); one without, or above the rank limit, becomes its best approximation U U^T Delta W, U its leading left singular
vectors. Changes of biases travel as `lora_bias`, which also serves modules that have no bias of their own.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from common.errors import UserError
from common.json_text import to_json
from .changes import Change, check_finite, LowRank
from .core.files import new_folder
from .core.modules import get_plain_module
from .core.wrappers import plain_parameters, unwrapped

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for `max_lora_rank`."""
ABOUT = "edit.json"


@dataclass(frozen=True)
class Lora:
    """What an adapter adds to the output of one module: `up @ (down @ x) + bias`."""

    down: Float[Tensor, "rank d_in"]
    up: Float[Tensor, "d_out rank"]
    bias: Float[Tensor, " d_out"] | None
    exact_rank: int
    """Rank of the change, before rounding up or cutting; 0: only the bias changes."""
    error: float
    """|up @ down - Delta W| / |Delta W|, Frobenius norms; 0 where the factors were taken over."""

    @property
    def rank(self) -> int:
        """Rank of the stored factors."""
        return len(self.down)


def factors(changes: Mapping[str, Change], model: nn.Module, max_rank: int | None = RANKS[-1]) -> dict[str, Lora]:
    """What the adapter adds to each module, by its name; in float32, ranks rounded up to `RANKS` with zeros.

    max_rank: one of `RANKS`, or None: no limit (ranks above 512 are then not rounded, and vLLM does not load them).
    Raises UserError for a parameter that is no weight or bias of a linear map, or is shared with another module, and for a
    change that is not finite.
    """
    check_finite(changes)
    if max_rank is not None and max_rank not in RANKS:
        raise UserError(f"max_rank {max_rank}: give one of {', '.join(map(str, RANKS))}")
    weights, biases = {}, {}
    for name, change in changes.items():
        module, _, attribute = name.rpartition(".")
        linear = get_plain_module(model, module)
        if attribute not in ("weight", "bias") or not isinstance(linear, (nn.Linear, Conv1D)):
            raise UserError(
                f"{name} (of {type(linear).__name__}): a LoRA adapter changes weights and biases of linear maps alone; "
                "export a checkpoint"
            )
        if attribute == "weight" and _is_shared(model, linear.weight):
            raise UserError(f"{name} is shared by several modules, of which a LoRA adapter reaches one; export a checkpoint")
        if change.shape != (tuple(linear.weight.shape) if attribute == "weight" else (_widths(linear)[1],)):
            raise UserError(f"the edit of {name} has shape {change.shape}: it was made for another model")
        if attribute == "weight":
            weights[module] = change
        else:
            biases[module] = change.dense()
    loras = {}
    for module in weights.keys() | biases.keys():
        linear, bias = get_plain_module(model, module), biases.get(module)
        if module in weights:
            up, down, rank, error = _factors(weights[module], max_rank)
            if isinstance(linear, Conv1D):  # the weight is [d_in, d_out]
                up, down = down.T, up.T
        else:
            d_in, d_out = _widths(linear)
            up, down, rank, error = torch.zeros(d_out, 0), torch.zeros(0, d_in), 0, 0.0
        stored = next((size for size in RANKS if size >= up.shape[1]), up.shape[1])
        up = nn.functional.pad(up.float(), (0, stored - up.shape[1]))
        down = nn.functional.pad(down.float(), (0, 0, 0, stored - len(down)))
        loras[module] = Lora(down, up, None if bias is None else bias.float(), rank, error)
    return {module: loras[module] for module in sorted(loras)}


def save(
    folder: Path, changes: Mapping[str, Change], info: Mapping[str, Any], model: nn.Module,
    max_rank: int | None = RANKS[-1], base_model: str | None = None,
) -> dict[str, Lora]:
    """Write the adapter as peft reads it, and `edit.json` (the edit's info, ranks and errors), whole or not at all.

    base_model: what peft shall load beneath it; by default what the model was loaded from. For the rest see `factors`.
    """
    from peft import LoraConfig  # slow to import

    loras = factors(changes, model, max_rank)
    if not loras:
        raise UserError("the edit changes no weight, so there is nothing for an adapter to hold")
    with_bias = any(lora.bias is not None for lora in loras.values())
    if with_bias:
        warnings.warn(
            "the edit changes biases: peft applies them (lora_bias), vLLM does not; export a checkpoint for it", stacklevel=2
        )
    for module, lora in loras.items():
        if not lora.up.any() and lora.bias is None:
            warnings.warn(f"the edit changes nothing in {module}: its part of the adapter is zero", stacklevel=2)
    rank = max(lora.rank for lora in loras.values())
    pattern = {module: lora.rank for module, lora in loras.items() if lora.rank != rank}
    base_model = base_model or getattr(unwrapped(model).config, "_name_or_path", "") or None
    config = LoraConfig(
        task_type="CAUSAL_LM", base_model_name_or_path=base_model,
        inference_mode=True, r=rank, lora_alpha=rank, rank_pattern=pattern, alpha_pattern=dict(pattern), lora_dropout=0.0,
        target_modules=list(loras), lora_bias=with_bias,
        fan_in_fan_out=any(isinstance(get_plain_module(model, module), Conv1D) for module in loras),
    )
    config.target_modules = list(loras)  # a set would be written in any order
    tensors = {}
    for module, lora in loras.items():
        start = f"base_model.model.{module}"
        tensors[f"{start}.lora_A.weight"], tensors[f"{start}.lora_B.weight"] = lora.down.contiguous(), lora.up.contiguous()
        if with_bias:
            tensors[f"{start}.lora_B.bias"] = torch.zeros(len(lora.up)) if lora.bias is None else lora.bias.contiguous()
    about = {module: {"exact_rank": lora.exact_rank, "rank": lora.rank, "error": lora.error} for module, lora in loras.items()}
    with new_folder(folder) as part:
        config.save_pretrained(part)
        save_file(tensors, part / "adapter_model.safetensors", metadata={"format": "pt"})
        (part / ABOUT).write_text(to_json({"info": dict(info), "modules": about}, indent=1) + "\n")
        (part / "README.md").write_text(_card(info, base_model, about))
    return loras


def _card(info: Mapping[str, Any], base_model: str | None, about: Mapping[str, Mapping[str, Any]]) -> str:
    """The folder's model card: what was edited, how, and how to load it."""
    base = base_model or "the model that was edited"
    header = f"base_model: {base_model}\n" if base_model else ""
    lines = (f"* `{name}`: rank {module['rank']}, relative error {module['error']:.2g}" for name, module in about.items())
    modules = "\n".join(lines)
    return f"""---
{header}library_name: peft
tags: [lora, knowledge-editing]
---
# A knowledge edit as a LoRA adapter

* Base model: {base}, whose licence holds for the edited model, too. The adapter fits its unedited weights alone.
* Edited by {info.get("editor", "an editor")}: {info.get("requests", "some")} facts. `{ABOUT}` has hyper-parameters and more.

```python
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained("this folder")
```

It changes

{modules}
"""


def _factors(change: Change, max_rank: int | None) -> tuple[Tensor, Tensor, int, float]:
    """(left [rows, rank], right [rank, columns], exact rank, error): left @ right is the change, in the parameter's
    orientation."""
    if isinstance(change, LowRank) and (max_rank is None or change.left.shape[1] <= max_rank):
        return change.left, change.right.T, change.left.shape[1], 0.0
    delta = change.dense().double()
    tall = len(delta) > delta.shape[1]
    delta = delta.T if tall else delta
    # The smaller Gram matrix in float64 resolves singular values down to 1e-7 of the largest: what float32 factors hold.
    energy, vectors = torch.linalg.eigh(delta @ delta.T)
    energy, vectors = energy.flip(0), vectors.flip(1)
    rank = int((energy > len(energy) * torch.finfo(torch.float64).eps * energy[0]).sum())
    kept = rank if max_rank is None else min(rank, max_rank)
    cut_energy, total_energy = (float(part.clamp_min(0).sum()) for part in (energy[kept:], energy))
    error = (cut_energy / total_energy) ** 0.5 if kept < rank else 0.0
    left = vectors[:, :kept]
    right = left.T @ delta
    return (right.T, left.T, rank, error) if tall else (left, right, rank, error)


def _widths(linear: nn.Linear | Conv1D) -> tuple[int, int]:
    """(d_in, d_out)"""
    return tuple(linear.weight.shape) if isinstance(linear, Conv1D) else tuple(linear.weight.shape[::-1])


def _is_shared(model: nn.Module, weight: nn.Parameter) -> bool:
    """Whether several modules hold the weight (embedding and head, where they are tied)."""
    return sum(parameter is weight for parameter in plain_parameters(model).values()) > 1
