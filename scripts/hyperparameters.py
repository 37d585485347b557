"""``python -m scripts.hyperparameters``: writes docs/hyperparameters.md, every key of every editor, from their dataclasses."""

import ast
import dataclasses
import functools
import inspect
import json
import types
import typing
from pathlib import Path
from typing import Annotated, Any

from common.programs import run_program
from editors import registry
from editors.configuration import Configuration, describe

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "hyperparameters.md"
HEAD = """\
# Hyper-parameters

Written by `python -m scripts.hyperparameters` from the editors' dataclasses.

* A file is `hparams/<ALG>/<model>.json`. Where the values come from is in [hparams/README.md](../hparams/README.md).
* A key without default must be given. An unknown key, a missing one, or a wrong value is an error that names file and key.
* An editor has the keys of its own table and of the tables that it names. A key without meaning goes with the one above it.
"""


def page() -> str:
    """The text of docs/hyperparameters.md: a table for each dataclass, those that several editors share first."""
    editors: dict[type, list[str]] = {}
    for name in registry.names():
        *shared, last = reversed(_line(registry.editor_class(name).hparams_class))
        for cls in shared:
            editors.setdefault(cls, [])
        editors.setdefault(last, []).append(name)
    ordered = sorted(editors, key=lambda cls: bool(editors[cls]))
    return "\n".join([HEAD, *(_section(cls, ", ".join(editors[cls]) or f"Shared: {cls.__name__}") for cls in ordered)])


def _line(cls: type) -> list[type]:
    """The class and those it inherits keys from, the class first."""
    return [base for base in cls.__mro__ if issubclass(base, Configuration) and _own(base)]


def _own(cls: type) -> list[str]:
    """Keys that a class adds or gives another default."""
    names = {field.name for field in dataclasses.fields(cls)}
    return [name for name in cls.__dict__.get("__annotations__", {}) if name in names]


def _section(cls: type, title: str) -> str:
    bases = ", ".join(base.__name__ for base in _line(cls)[1:])
    text = f"`{cls.__name__}` in `{Path(inspect.getfile(cls)).relative_to(ROOT)}`{bases and f'; also the keys of {bases}'}"
    hints = typing.get_type_hints(cls, include_extras=True)
    rows = [f"| `{name}` | {_type(hints[name])} | {_default(cls, name)} | {_meaning(cls, name)} |" for name in _own(cls)]
    return "\n".join([f"## {title}\n\n{text}.\n", "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _type(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return (", or " if Annotated in map(typing.get_origin, arguments) else " or ").join(map(_type, arguments))
    if typing.get_origin(hint) is not Annotated:
        return describe(hint)
    words = arguments[1].words.removeprefix("must be ").replace("is none of", "one of")
    return words if words.startswith(("a ", "pairs ", "two ")) else f"{_type(arguments[0])}, {words}"


def _default(cls: type, name: str) -> str:
    default = inspect.signature(cls).parameters[name].default
    return "" if default is inspect.Parameter.empty else f"`{json.dumps(default)}`"


def _meaning(cls: type, name: str) -> str:
    """The text below the field, in the class or the nearest one that it inherits from."""
    text = next((texts[name] for texts in map(_texts, _line(cls)) if name in texts), "")
    return text.replace("|", "\\|").replace("None:", "null:")


@functools.cache
def _texts(cls: type) -> dict[str, str]:
    """{field: the string literal below it}"""
    body = ast.parse(inspect.getsource(cls)).body[0].body
    return {field.target.id: " ".join(text.value.value.split()) for field, text in zip(body, body[1:])
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)}


def main() -> None:
    PAGE.write_text(page())
    print(f"written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    run_program(main)
