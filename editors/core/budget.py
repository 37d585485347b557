"""How much memory a device has: batch sizes are chosen from this, not from a model's longest context.

Not what is free now: batches, and with them the last digits of results, must not depend on what else runs.
"""

import os

import torch
from torch import nn

from .modules import input_device


def total_bytes(device: torch.device) -> int:
    """Bytes of memory of `device`."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def batch_tokens(model: nn.Module, d_model: int) -> int:
    """Tokens of a batch without gradients: a sixteenth of the memory, at some 32 activations as wide as d_model alive for each."""
    size = model.get_input_embeddings().weight.element_size()
    return min(16384, max(512, total_bytes(input_device(model)) // 16 // (32 * d_model * size)))
