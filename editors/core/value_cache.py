"""Target hidden states on disk, each under a key made of everything that changes it."""

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.tensor_files import DamagedFile, read_tensors, write_tensors
from . import ranks
from .decoder import Decoder
from .files import check_writable
from .fingerprint import model_fingerprint, tokenizer_fingerprint
from .prompts import Request
from .values import Site, Values, ValueSettings, optimise

SETTINGS = (
    "fact_token", "v_num_grad_steps", "v_lr", "v_loss_layer", "v_weight_decay", "clamp_norm_factor", "kl_factor", "kl_prompt",
    "target_tokens", "end_of_text",
)

FINDINGS = ("down_projs", "mixtures", "arrivals")
"""Of the sites, what follows from the others and the weights."""


def cached_optimise(
    decoder: Decoder,
    requests: Sequence[Request],
    layer: int,
    settings: ValueSettings,
    templates: Sequence[str],
    site: Site,
    folder: str | os.PathLike | None = None,
    progress: bool = True,
) -> Values:
    """`values.optimise`, with each request's result kept in `folder` (None: no cache).

    The key holds the model's weights, the tokenizer, the settings, the templates and the request, so an edited model or
    another learning rate never meets an old vector (one that was found in a batch of another size may differ in the last
    digits). Files that are damaged are made again. Raises UserError before the work for a folder that cannot be written.
    """
    arguments = dict(layer=layer, settings=settings, templates=templates, site=site, progress=progress)
    if folder is None:
        return optimise(decoder, requests, **arguments)
    common = {
        "model": model_fingerprint(decoder.model),
        "tokenizer": tokenizer_fingerprint(decoder.tok),
        "settings": {name: getattr(settings, name) for name in SETTINGS},
        "templates": list(templates),
        "site": [site if isinstance(site, str) else list(site.layers), layer,
                 {name: value for name, value in vars(decoder.sites).items() if name not in FINDINGS}],
    }
    paths = [Path(folder) / f"{_key(common, request)}.safetensors" for request in requests]
    kept_states = ranks.from_first(lambda: _read(paths))
    if kept_states is not None:
        return Values(*kept_states)
    check_writable(Path(folder), "target states")
    # All of them, also those that are there: which requests run together decides the last digits, so a killed and continued
    # run must find the same together again.
    values = optimise(decoder, requests, **arguments)
    for path, initial, delta in zip(paths, values.initial, values.delta) if ranks.rank() == 0 else ():
        write_tensors(path, {"initial": initial, "delta": delta})
    return values


def _key(common: dict, request: Request) -> str:
    text = json.dumps({**common, "request": [request.prompt, request.subject, request.target_new]}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(paths: Sequence[Path]) -> tuple[Tensor, Tensor] | None:
    """(initial states, deltas), a row a file; None where a file is missing or, which a warning says, damaged."""
    if not all(path.exists() for path in paths):
        return None
    shapes = {"initial": [None], "delta": [None]}
    try:
        states = [read_tensors(path, "target state", "it is found anew", shapes=shapes)[1] for path in paths]
        for path, tensors in zip(paths, states):
            if any(tensors[name].shape != states[0]["delta"].shape for name in shapes):
                raise DamagedFile(f"{path}: a target state of another width: it is found anew")
    except DamagedFile as error:
        warnings.warn(str(error), stacklevel=2)
        return None
    return tuple(torch.stack([tensors[name] for tensors in states]) for name in shapes)
