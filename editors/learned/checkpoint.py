"""Checkpoints of learned editors: a safetensors file whose header says what it is of; never the edited model, never pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import UserError
from editors.core import moment_store
from editors.core.files import write_tensors
from .editable import Editable

FORMAT = 1
NET = "net/"
"""What the names of the networks' tensors begin with; others are the trainer's."""


def save(path: Path, alg: Editable, info: Mapping[str, Any], extra: Mapping[str, Tensor] | None = None) -> None:
    """Write the networks of `alg`, and `extra` tensors, whole or not at all. info: JSON-ready."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {NET + name: tensor.detach().cpu() for name, tensor in alg.state().items()} | dict(extra or {})
    header = {"format": FORMAT, "about": alg.about(), "info": dict(info)}
    write_tensors(path, tensors, {"header": json.dumps(header)})


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(header, tensors). Raises UserError for a file that is missing, damaged or no checkpoint."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    header, tensors = moment_store.read(path, "checkpoint of a learned editor")
    if header.get("format") != FORMAT or "about" not in header:
        raise UserError(f"{path}: not a checkpoint of a learned editor")
    return header, tensors


def load(path: Path, alg: Editable, any_model: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(info, extra tensors); the networks go into `alg`.

    any_model: whatever the model's weights are. Raises UserError for a checkpoint of another model, algorithm or
    configuration, and names what differs.
    """
    header, tensors = read(path)
    found, wanted = header["about"], json.loads(json.dumps(alg.about()))
    for key, what in (
        ("algorithm", "algorithm"),
        ("model_type", "kind of model"),
        ("inner_params", "choice of edited weights"),
        ("options", "configuration"),
    ):
        if found.get(key) != wanted[key]:
            was, now = found.get(key), wanted[key]
            if isinstance(was, dict):
                differing = sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k))
                was, now = ({k: side.get(k) for k in differing} for side in (was, now))
            raise UserError(f"{path}: a checkpoint of another {what}: {_short(was)}, here {_short(now)}")
    if not any_model and not same_model(found, wanted):
        raise UserError(
            f"{path}: a checkpoint of another model: its weights have the fingerprint {found.get('model')}, "
            f"here {wanted['model']}"
        )
    alg.load_state({name.removeprefix(NET): tensor for name, tensor in tensors.items() if name.startswith(NET)})
    return header["info"], {name: tensor for name, tensor in tensors.items() if not name.startswith(NET)}


def same_model(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two identities are of one model, in the same precision (all bits count) or another (lengths do, to 1 %)."""
    if found.get("dtype") == wanted["dtype"]:
        return found.get("model") == wanted["model"]
    was, now = found.get("norms", {}), wanted["norms"]
    return was.keys() == now.keys() and all(math.isclose(was[k], now[k], rel_tol=1e-2, abs_tol=1e-6) for k in was)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
