"""Dataclasses whose annotations say which values their fields take; read from JSON, with errors a person can act on."""

import dataclasses
import difflib
import functools
import json
import math
import re
import types
import typing
import warnings
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from typing_extensions import Self
import yaml

from common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Bound:
    """In `Annotated`: which values of its type a field takes."""

    holds: Callable[[Any], bool]
    words: str
    """What the error says behind the field's name and value."""


Count = Annotated[int, Bound(lambda number: number >= 1, "must be at least 1")]
Natural = Annotated[int, Bound(lambda number: number >= 0, "must be at least 0")]
Finite = Annotated[float, Bound(math.isfinite, "must be a finite number")]
NotNegative = Annotated[float, Bound(lambda number: 0 <= number < math.inf, "must be a finite number, not below 0")]
Positive = Annotated[float, Bound(lambda number: 0 < number < math.inf, "must be a finite number above 0")]
Share = Annotated[float, Bound(lambda number: 0 < number <= 1, "must be above 0, at most 1")]
"""A part of a whole that is not empty, or the whole."""
ProperShare = Annotated[float, Bound(lambda number: 0 < number < 1, "must be above 0 and below 1")]
"""A part of a whole that leaves another part."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configuration:
    """A field without default must be given. Every instance has values of the fields' types within their bounds."""

    ignored: ClassVar[Mapping[str, str]] = {}
    """Keys of published files that change nothing here, and why."""
    fixed: ClassVar[Mapping[str, tuple[Any, str]]] = {}
    """Keys of published files that have one value here: that value, and why no other or what to do instead."""

    def __post_init__(self):
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            if not _fits(value, hint):
                raise UserError(f"{name} is {json.dumps(value, default=str)}, expected {describe(hint)}")
            if bound := _broken(value, hint):
                raise UserError(f"{name}: {value!r} {bound.words}")

    @classmethod
    def of(cls, source: Self | Mapping[str, Any] | str | Path | None) -> Self:
        """An instance from itself, a mapping (None: an empty one), or the path of a JSON or YAML file.

        Raises UserError naming the file and key for an unreadable file, an unknown or missing key, or a wrong type or value.
        """
        if isinstance(source, cls):
            return source
        if source is None or isinstance(source, Mapping):
            where, values = "hparams", dict(source or {})
        elif isinstance(source, (str, Path)):
            where, values = str(source), read_values(source, {field.name for field in dataclasses.fields(cls)})
        else:
            raise UserError(f"hparams of type {type(source).__name__}: give a path, a mapping or a {cls.__name__}")
        for key, (only, reason) in cls.fixed.items():
            if values.get(key, only) != only:
                value = json.dumps(values[key])
                raise UserError(f"{where}: {key}: {value} is not supported, only {json.dumps(only)}; {reason}")
        without_effect = [f"{key} ({cls.ignored[key]})" for key in values if key in cls.ignored]
        if without_effect:
            warnings.warn(f"{where}: without effect: {', '.join(without_effect)}", stacklevel=3)
        values = {key: value for key, value in values.items() if key not in cls.ignored and key not in cls.fixed}
        hints, fields = _hints(cls), dataclasses.fields(cls)
        for key in values:
            if key not in hints:
                near = difflib.get_close_matches(key, hints, n=1)
                raise UserError(f"{where}: unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else ""))
        missing = [field.name for field in fields if field.default is dataclasses.MISSING
                   and field.default_factory is dataclasses.MISSING and field.name not in values]
        if missing:
            raise UserError(f"{where}: missing key{'s' * (len(missing) > 1)} {', '.join(missing)}")
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """{field: its type}"""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


EASYEDIT = ("alg_name", "model_name", "stats_dir", "device", "results_dir", "model_parallel", "model_class", "tokenizer_class",
            "tokenizer_name", "max_length", "batch_size", "fp16", "bf16", "sequential_edit", "P_loc", "archive")
"""Keys of EasyEdit's YAML files that a program or the model decides here."""


class _Loader(yaml.SafeLoader):
    """YAML in which 5e-1 is a number, as in JSON; PyYAML's 1.1 wants a point in it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


def read_values(path: str | Path, fields: Container[str] = ()) -> dict[str, Any]:
    """The values of a file of hyper-parameters: one JSON object, or YAML as EasyEdit has it (.yaml, .yml), without the
    keys that only mean something there, unless they are among these fields; a warning names them.

    Raises UserError for a file that is missing or unreadable.
    """
    path = Path(path)
    is_yaml = path.suffix in (".yaml", ".yml")
    try:
        text = path.read_text()
        values = yaml.load(text, _Loader) if is_yaml else json.loads(text)
    except FileNotFoundError:
        others = sorted(p.name for p in path.parent.glob("*.json")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, others, n=1) or others[:5]
        raise UserError(f"{path}: no such hparams file" + (f"; there is {', '.join(near)}" if near else "")) from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as {'YAML' if is_yaml else 'JSON'} ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, expected one {'mapping' if is_yaml else 'JSON object'}")
    extra = [key for key in EASYEDIT if key in values and key not in fields] if is_yaml else []
    if extra:
        warnings.warn(f"{path}: EasyEdit's keys without effect here: {', '.join(extra)}", stacklevel=4)
    return {key: value for key, value in values.items() if key not in extra}


def _parts(hint: Any) -> tuple[Any, tuple]:
    """(kind of a hint, what it is made of): a union's is types.UnionType, however it is written."""
    origin = typing.get_origin(hint)
    return types.UnionType if origin is typing.Union else origin, typing.get_args(hint)


def _fits(value: Any, hint: Any) -> bool:
    """Whether the value has the type."""
    origin, arguments = _parts(hint)
    if origin is types.UnionType:
        return any(_fits(value, argument) for argument in arguments)
    if origin is Annotated:
        return _fits(value, arguments[0])
    if origin is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin is list:
        return isinstance(value, (list, tuple)) and all(_fits(entry, arguments[0]) for entry in value)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _broken(value: Any, hint: Any) -> Bound | None:
    """The bound that a value of this type does not keep."""
    origin, arguments = _parts(hint)
    if origin is types.UnionType:
        return _broken(value, next(argument for argument in arguments if _fits(value, argument)))
    return next((bound for bound in arguments[1:] if not bound.holds(value)), None) if origin is Annotated else None


def describe(hint: Any) -> str:
    """A type in words, "a number or null"."""
    origin, arguments = _parts(hint)
    if origin is types.UnionType:
        return " or ".join(describe(argument) for argument in arguments)
    if origin is Annotated:
        return describe(arguments[0])
    if origin is typing.Literal:
        return " or ".join(json.dumps(choice) for choice in arguments)
    if origin is list:
        return f"a list of {describe(arguments[0])}"
    words = {type(None): "null", float: "a number", int: "an integer", bool: "true or false", str: "a string"}
    return words.get(hint, str(hint))
