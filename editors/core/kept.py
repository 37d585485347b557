"""What is kept of a model for as long as it lives: its sites, contexts and statistics, found out once; and the edits in it."""

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

# The one place where something hangs on a model: functions are given models again and again, and nothing may outlive them.
_kept: WeakKeyDictionary[nn.Module, dict[str, dict]] = WeakKeyDictionary()


def kept(model: nn.Module, what: str) -> dict[Any, Any]:
    """The model's own dictionary of `what`, empty at first; it goes with the model."""
    return _kept.setdefault(model, {}).setdefault(what, {})
