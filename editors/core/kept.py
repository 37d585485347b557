"""What is found out about a model once and kept while it lives: its sites, contexts, statistics; and the edits in it."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

# The one place where something hangs on a model: functions are given models again and again, and nothing may outlive them.
_kept: WeakKeyDictionary[nn.Module, dict[str, dict]] = WeakKeyDictionary()


def kept(model: nn.Module, what: str) -> dict[Any, Any]:
    """The model's own dictionary of `what`, empty at first; it goes with the model."""
    return _kept.setdefault(model, {}).setdefault(what, {})
