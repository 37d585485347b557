"""The algorithms of the training program: those of the learned editors in the registry, and fine-tuning, their baseline."""

import difflib
from functools import cache

from common.errors import UserError
from editors import registry
from .editable import Editable
from .finetune import FineTune


@cache
def algorithms() -> dict[str, type[Editable]]:
    """{name: algorithm}, by the names in configurations and checkpoints."""
    editors = map(registry.editor_class, registry.names())
    trainable = (editor.algorithm for editor in editors if hasattr(editor, "algorithm"))
    return {cls.config_key(): cls for cls in (FineTune, *trainable)}


def algorithm(name: str) -> type[Editable]:
    """The algorithm of this name, its own or a published one, in any case. Raises UserError with the nearest name if none."""
    by_name = {alias: cls for cls in algorithms().values() for alias in (cls.name, cls.config_key(), *cls.recipes)}
    if name.lower() not in by_name:
        near = difflib.get_close_matches(name.lower(), by_name, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ";"
        raise UserError(f"unknown algorithm {name!r}{hint} known: {', '.join(sorted(algorithms()))}")
    return by_name[name.lower()]


def recipe(name: str) -> str:
    """The recipe of the data that an algorithm of this name is trained on."""
    cls = algorithm(name)
    return cls.recipes.get(name.lower(), cls.recipe)
