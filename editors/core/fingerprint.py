"""Short identities of models and tokenizers, so that cached numbers are used only where they belong."""

import hashlib
import json
from collections.abc import Collection

import torch
from torch import nn

from .wrappers import plain_name, unwrapped

SAMPLES = 1024
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def model_fingerprint(model: nn.Module, without: Collection[str] = ()) -> str:
    """16 hex digits of the model's class, shapes and weights: of each parameter a checksum of all bits, and spaced samples.

    without: names of parameters that may have been edited, of which only the shapes count.
    The sum is one of integers, so it is the same on every device and for any number of threads. The name that a model was
    loaded under plays no part.
    """
    model = unwrapped(model)
    digest = hashlib.sha256(type(model).__name__.encode())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            name = plain_name(name)
            if name in without:
                digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
                continue
            flat = parameter.detach().contiguous().flatten()
            checksum = int(flat.view(BITS[flat.element_size()]).sum(dtype=torch.int64))  # wraps around, in any order alike
            step = max(1, len(flat) // SAMPLES)
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {checksum}".encode())
            digest.update(flat[::step].to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(tok) -> str:
    """16 hex digits of the vocabulary and of what the tokenizer adds to a text."""
    digest = hashlib.sha256(json.dumps(sorted(tok.get_vocab().items())).encode())
    digest.update(json.dumps(tok("A b, c'd").input_ids).encode())
    return digest.hexdigest()[:16]
