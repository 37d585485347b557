"""Checkpoints of learned editors: a safetensors file whose header says what it is of; never the edited model, never pickle."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import UserError
from common.tensor_files import read_tensors, write_tensors
from .editable import Editable

FORMAT = 1
NET = "net/"
"""What the names of the networks' tensors begin with; others are the trainer's."""


def save(path: Path, alg: Editable, info: Mapping[str, Any], extra: Mapping[str, Tensor] | None = None) -> None:
    """Write the networks of `alg`, and `extra` tensors, whole or not at all. info: JSON-ready."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {NET + name: tensor.detach().cpu() for name, tensor in alg.state().items()} | dict(extra or {})
    header = {"format": FORMAT, "about": alg.about(), "info": dict(info)}
    write_tensors(path, tensors, header)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(header, tensors). Raises UserError for a file that is missing, damaged or no checkpoint."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    # Not finite: statistics of MEND's inputs that were never trained.
    header, tensors = read_tensors(path, "checkpoint of a learned editor", "use a copy, or train again", finite=False,
                                   header={"format": int, "about": dict, "info": dict})
    if header["format"] != FORMAT:
        raise UserError(f"{path}: a checkpoint of format {header['format']}, this program reads {FORMAT}")
    return header, tensors


def load(path: Path, alg: Editable, any_model: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(info, extra tensors); the networks go into `alg`.

    any_model: whatever the model's weights are. Raises UserError for a checkpoint of another model, algorithm or
    configuration, and names what differs.
    """
    header, tensors = read(path)
    saved, current = header["about"], json.loads(json.dumps(alg.about()))
    for key, words in (
        ("algorithm", "algorithm"),
        ("model_type", "kind of model"),
        ("inner_params", "choice of edited weights"),
        ("options", "configuration"),
    ):
        if saved.get(key) != current[key]:
            saved_value, current_value = saved.get(key), current[key]
            if isinstance(saved_value, dict):
                keys = sorted(saved_value.keys() | current_value.keys())
                keys = [k for k in keys if saved_value.get(k) != current_value.get(k)]
                saved_value, current_value = ({k: options.get(k) for k in keys} for options in (saved_value, current_value))
            raise UserError(f"{path}: a checkpoint of another {words}: {_short(saved_value)}, here {_short(current_value)}")
    if not any_model and not same_model(saved, current):
        raise UserError(
            f"{path}: a checkpoint of another model: its weights have the fingerprint {saved.get('model')}, "
            f"here {current['model']}"
        )
    alg.load_state({name.removeprefix(NET): tensor for name, tensor in tensors.items() if name.startswith(NET)})
    return header["info"], {name: tensor for name, tensor in tensors.items() if not name.startswith(NET)}


def same_model(saved: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Whether two identities are of one model, in the same precision (all bits count) or another (lengths do, to 1 %)."""
    if saved.get("dtype") == current["dtype"]:
        return saved.get("model") == current["model"]
    saved_norms, norms = saved.get("norms", {}), current["norms"]
    return saved_norms.keys() == norms.keys() and all(
        math.isclose(saved_norms[name], norms[name], rel_tol=1e-2, abs_tol=1e-6) for name in norms
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
