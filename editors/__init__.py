"""Knowledge editors: an editor turns requests into an Edit.

    editor = editors.load("MEMIT", "hparams/MEMIT/gpt2-xl.json")
    request = {"prompt": "{} plays the sport of", "subject": "LeBron James", "target_new": {"str": "football"}}
    edit = editor.edit(model, tok, [request])
    with edit.applied(model): ...

A new editor is one file with a subclass of `WeightEditor` (of `Editor` where no weight changes), and one line in registry.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError as EditingError
from .automatic import auto
from .base import Editor, Task
from .changes import Dense, LowRank
from .edit import Edit
from .hparams import HParams
from .registry import editor_class, names
from .sequence import EditSequence


def load(name: str, hparams: str | Path | Mapping[str, Any] | HParams) -> Editor:
    """The editor called `name` with its hyper-parameters: a JSON file's path, a mapping, or the editor's dataclass.

    Raises UserError for an unknown editor, or an unreadable file, unknown or missing key, or wrong type in hparams.
    """
    cls = editor_class(name)
    return cls(cls.hparams_class.of(hparams))


__all__ = ["Dense", "Edit", "EditSequence", "EditingError", "Editor", "LowRank", "Task", "auto", "editor_class", "load",
           "names"]
