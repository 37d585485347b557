"""A trained SERAC as folders that transformers loads, `scope` and `counterfactual`, which know that they belong together."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from common.errors import UserError
from editors.core.files import check_writable
from editors.core.fingerprint import model_fingerprint
from .serac import SERAC

SCOPE, COUNTERFACTUAL = "scope", "counterfactual"
KERNEL = ("cos", "square", "bound_embeds", "dist_heads", "pooling", "cross_attend", "threshold")
"""Options that belong to the scope classifier."""


def check_place(folder: Path) -> Path:
    """The folder's absolute path. Raises UserError if it holds anything but an earlier `save_parts`, or can't be made."""
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; networks need a folder")
    entries = list(folder.iterdir()) if folder.exists() else []
    if not all(entry.name in (SCOPE, COUNTERFACTUAL) and _is_part(entry) for entry in entries):
        raise UserError(f"{folder}: holds other things than a trained SERAC, which would be lost: choose a new folder")
    check_writable(folder.parent, "networks")
    return folder


def _is_part(folder: Path) -> bool:
    try:
        return "serac" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return False


def save_parts(alg: SERAC, folder: Path, threshold: float | None = None) -> Path:
    """Writes the networks of `alg` with their tokenizers, in the place of an earlier export. threshold: a calibrated one.

    Both configurations name the pair (`serac.run`), so that halves of different runs are told apart. Raises UserError as
    `check_place` does.
    """
    folder = check_place(folder)
    options = {name: getattr(alg.options, name) for name in (*KERNEL, "freeze_cntr")}
    if threshold is not None:
        options["threshold"] = threshold
    parts = {SCOPE: (alg.net.classifier, alg.scope.tok)}
    if not alg.options.freeze_cntr:
        parts[COUNTERFACTUAL] = (alg.net.replacement, alg.tok)
    run = hashlib.sha256(" ".join(model_fingerprint(model) for model, _ in parts.values()).encode()).hexdigest()[:16]
    part, replaced = (folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.{end}") for end in ("part", "old"))
    try:
        for name, (model, tok) in parts.items():
            model.config.serac = {"run": run, "model_kind": alg.kind.value, **options}
            model.save_pretrained(part / name)
            tok.save_pretrained(part / name)
        if folder.exists():
            os.replace(folder, replaced)
        os.replace(part, folder)
    finally:
        if replaced.exists() and not folder.exists():
            os.replace(replaced, folder)
        for leftover in (part, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
    return folder


def about_part(source: str) -> Mapping[str, Any]:
    """What a folder or a model of the hub tells of the SERAC that it is a part of; empty if it is none.

    Raises UserError where there is no model.
    """
    try:
        return getattr(AutoConfig.from_pretrained(source, trust_remote_code=False), "serac", None) or {}
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: no model there ({' '.join(str(error).split())[:160]})") from None


def check_pair(scope: str, counterfactual: str | None) -> Mapping[str, Any]:
    """What the scope classifier's part tells. Raises UserError if the two were trained in different runs."""
    header = about_part(scope)
    other_header = about_part(counterfactual) if counterfactual is not None else {}
    if header.get("run") and other_header.get("run") and header["run"] != other_header["run"]:
        raise UserError(f"{scope} and {counterfactual} were trained in different runs ({header['run']}, "
                        f"{other_header['run']}): use the scope classifier and the counterfactual model of one run")
    return header
