"""The algorithms, by the names of the published configurations."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from common.errors import UserError
from .aliases import ALIASES
from .editable import Editable
from .options import Options

_ALGORITHMS = {
    "mend": "editors.learned.mend:MEND",
    "efk": "editors.learned.ke:KE",
    "enn": "editors.learned.enn:ENN",
    "ft": "editors.learned.finetune:FineTune",
    "lu": "editors.memory.lookup:Lookup",
    "rep": "editors.memory.serac:SERAC",
}


def names() -> list[str]:
    return sorted(_ALGORITHMS)


def algorithm_name(name: str) -> str:
    """The algorithm's own name, from it or an alias in any case. Raises UserError with the nearest one if there is none."""
    lower = name.lower()
    own = ALIASES.get(lower, lower)
    if own not in _ALGORITHMS:
        near = difflib.get_close_matches(lower, [*_ALGORITHMS, *ALIASES], n=1)
        hint = f", did you mean {near[0]!r}?" if near else ";"
        raise UserError(f"unknown algorithm {name!r}{hint} known: {', '.join(names())}")
    return own


def algorithm(name: str) -> type[Editable]:
    module, _, attribute = _ALGORITHMS[algorithm_name(name)].partition(":")
    return getattr(importlib.import_module(module), attribute)


def build(
    name: str, model: nn.Module, inner_params: Sequence[str], options: Options | Mapping[str, Any] | None = None, **parts
) -> Editable:
    """An untrained editor. parts: what SERAC needs besides (see `serac.SERAC.build`). Raises UserError for what does not fit
    the model."""
    kind = algorithm(name)
    return kind.build(model, inner_params, options, **parts) if hasattr(kind, "build") else kind(model, inner_params, options)
