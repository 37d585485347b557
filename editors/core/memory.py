"""How much memory a device has: batch sizes are chosen from this, not from a model's longest context.

Not what is free now: batches, and with them the last digits of results, must not depend on what else runs.
"""

import os

import torch


def total_bytes(device: torch.device) -> int:
    """Bytes of memory of `device`."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
