"""Short identities of models and tokenizers, so that cached numbers are used only where they belong."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

SAMPLES = 1024
"""Elements read of each parameter; reading all would take minutes on a large model."""


def model_fingerprint(model: nn.Module) -> str:
    """16 hex digits of the model's class, shapes, and weights (sum, sum of squares and evenly spaced samples of each parameter).

    An edit changes whole rows of a weight, so it changes the sums; the name a model was loaded under plays no part.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            flat = parameter.detach().flatten()
            step = max(1, len(flat) // SAMPLES)
            wide = torch.float32 if flat.device.type == "mps" else torch.float64
            sums = torch.stack([flat.sum(dtype=wide), flat.norm(dtype=torch.promote_types(flat.dtype, torch.float32)).to(wide)])
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(sums.cpu().numpy().tobytes())
            digest.update(flat[::step].to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(tok) -> str:
    """16 hex digits of the vocabulary and of what the tokenizer adds to a text."""
    digest = hashlib.sha256(json.dumps(sorted(tok.get_vocab().items())).encode())
    digest.update(json.dumps(tok("A b, c'd").input_ids).encode())
    return digest.hexdigest()[:16]
