"""Knowledge editors: an editor turns requests into an Edit.

    editor = editors.load("MEMIT", "hparams/MEMIT/gpt2-xl.json")
    edit = editor.edit(model, tok, [{"prompt": "{} plays the sport of", "subject": "LeBron James", "target_new": {"str": "football"}}])
    with edit.applied(model): ...

A new editor is one file and one line in `_EDITORS`: a class with `name`, `hparams_class` and
`edit(model, tok, requests, context_templates=None, z_cache=None, progress=True) -> Edit`.
"""

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import hparams as _hparams
from .edit import Dense, Edit, LowRank
from .errors import EditingError

_EDITORS = {
    "FT": "editors.ft:FT",
    "MEMIT": "editors.memit:MEMIT",
    "ROME": "editors.rome:ROME",
}


def names() -> list[str]:
    """Names of all editors."""
    return sorted(_EDITORS)


def editor_class(name: str) -> type:
    """The class of the editor called `name`. Raises EditingError with the nearest name if there is none."""
    if name not in _EDITORS:
        by_upper = {known.upper(): known for known in _EDITORS}
        near = difflib.get_close_matches(name.upper(), by_upper, n=1)
        hint = f", did you mean {by_upper[near[0]]!r}?" if near else ";"
        raise EditingError(f"unknown editor {name!r}{hint} known: {', '.join(names())}")
    module, _, attribute = _EDITORS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def load(name: str, hparams: str | Path | Mapping[str, Any] | Any):
    """The editor called `name` with its hyper-parameters: a JSON file's path, a mapping, or the editor's dataclass.

    Raises EditingError for an unknown editor, or an unreadable file, unknown or missing key, or wrong type in hparams.
    """
    cls = editor_class(name)
    return cls(_hparams.load(cls.hparams_class, hparams))


__all__ = ["Dense", "Edit", "EditingError", "LowRank", "editor_class", "load", "names"]
