"""Target hidden states on disk, each under a key made of everything that changes it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..errors import EditingError
from .files import check_writable, write_tensors
from .fingerprint import model_fingerprint, tokenizer_fingerprint
from .prompts import Request
from .sites import Sites
from .values import Values, ValueSettings, optimise

SETTINGS = ("fact_token", "v_num_grad_steps", "v_lr", "v_loss_layer", "v_weight_decay", "clamp_norm_factor", "kl_factor")


def cached_optimise(
    model: nn.Module,
    tok,
    requests: Sequence[Request],
    layer: int,
    settings: ValueSettings,
    sites: Sites,
    templates: Sequence[str],
    site: str,
    folder: str | os.PathLike | None = None,
    progress: bool = True,
) -> Values:
    """`values.optimise`, with each request's result kept in `folder` (None: no cache).

    The key holds the model's weights, the tokenizer, the settings, the templates and the request, so an edited model or
    another learning rate never meets an old vector. Raises EditingError for a file that cannot be read, and before the work
    for a folder that cannot be written.
    """
    arguments = dict(layer=layer, settings=settings, sites=sites, templates=templates, site=site, progress=progress)
    if folder is None:
        return optimise(model, tok, requests, **arguments)
    common = {
        "model": model_fingerprint(model),
        "tokenizer": tokenizer_fingerprint(tok),
        "settings": {name: getattr(settings, name) for name in SETTINGS},
        "templates": list(templates),
        "site": [site, layer, dataclasses.asdict(sites)],
    }
    paths = [Path(folder) / f"{_key(common, request)}.safetensors" for request in requests]
    found = {path: _read(path) for path in paths if path.exists()}
    missing = {path: request for path, request in zip(paths, requests) if path not in found}
    if missing:
        check_writable(Path(folder), "target states")
        values = optimise(model, tok, list(missing.values()), **arguments)
        for path, initial, delta in zip(missing, values.initial, values.delta):
            found[path] = {"initial": initial, "delta": delta}
            write_tensors(path, found[path])
    return Values(*(torch.stack([found[path][part] for path in paths]) for part in ("initial", "delta")))


def _key(common: dict, request: Request) -> str:
    text = json.dumps({**common, "request": [request.prompt, request.subject, request.target_new]}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors = load_file(path)
        return {name: tensors[name] for name in ("initial", "delta")}
    except (SafetensorError, KeyError) as error:
        raise EditingError(f"{path}: truncated or foreign cache file ({error}): delete it and run again") from None
