"""Knowledge editors: an editor turns requests into an Edit.

    editor = editors.load("MEMIT", "hparams/MEMIT/gpt2-xl.json")
    edit = editor.edit(model, tok, [{"prompt": "{} plays the sport of", "subject": "LeBron James", "target_new": {"str": "football"}}])
    with edit.applied(model): ...

A new editor is one file with a subclass of `Editor`, and one line in `_EDITORS`.
"""

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError

from . import hparams as _hparams
from .base import Editor, Task
from .edit import Dense, Edit, LowRank
from .errors import EditingError
from .hparams import HParams
from .sequence import EditSequence

_EDITORS = {
    "AlphaEdit": "editors.closed_form.alphaedit:AlphaEdit",
    "EMMET": "editors.closed_form.emmet:EMMET",
    "ENN": "editors.learned.weight_editors:ENNEditor",
    "FT": "editors.tuned.ft:FT",
    "ITI": "editors.heads.iti:ITI",
    "KE": "editors.learned.weight_editors:KEEditor",
    "LU": "editors.memory.memory_editors:LU",
    "MEMAT": "editors.heads.memat:MEMAT",
    "MEMIT": "editors.closed_form.memit:MEMIT",
    "MEMIT_prune": "editors.closed_form.memit:MEMITPrune",
    "MEMIT_rect": "editors.closed_form.memit:MEMITRect",
    "MEMIT_seq": "editors.closed_form.memit:MEMITSeq",
    "MEND": "editors.learned.weight_editors:MENDEditor",
    "ROME": "editors.closed_form.rome:ROME",
    "SERAC": "editors.memory.memory_editors:SERAC",
}


def names() -> list[str]:
    """Names of all editors."""
    return sorted(_EDITORS)


def editor_class(name: str) -> type[Editor]:
    """The class of the editor called `name`. Raises UserError with the nearest name if there is none."""
    if name not in _EDITORS:
        by_upper = {known.upper(): known for known in _EDITORS}
        near = difflib.get_close_matches(name.upper(), by_upper, n=1)
        hint = f", did you mean {by_upper[near[0]]!r}?" if near else ";"
        raise UserError(f"unknown editor {name!r}{hint} known: {', '.join(names())}")
    module, _, attribute = _EDITORS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def load(name: str, hparams: str | Path | Mapping[str, Any] | HParams) -> Editor:
    """The editor called `name` with its hyper-parameters: a JSON file's path, a mapping, or the editor's dataclass.

    Raises UserError for an unknown editor, or an unreadable file, unknown or missing key, or wrong type in hparams.
    """
    cls = editor_class(name)
    return cls(_hparams.load(cls.hparams_class, hparams))


__all__ = ["Dense", "Edit", "EditSequence", "EditingError", "Editor", "LowRank", "Task", "editor_class", "load", "names"]
