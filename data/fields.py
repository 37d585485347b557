"""Checked access to the keys of one record: every complaint names the file, the record and the key."""

import json
import re
from collections.abc import Mapping
from typing import Any

from common.errors import UserError

_SURROGATES = re.compile("[\ud800-\udfff]")


class Fields:
    """Checked access to the keys of one record.

    ``place`` says where it stands, e.g. ``counterfact.json, record 17``; a nested object adds its key. What has been
    taken is remembered, so that :meth:`rest` is everything else.
    """

    def __init__(self, raw: Any, place: str):
        if not isinstance(raw, Mapping):
            raise UserError(f"{place}: expected an object, found {_name(raw)}")
        self._raw, self._place, self._taken = raw, place, set()

    def error(self, message: str) -> UserError:
        """The error that names where the object stands."""
        return UserError(f"{self._place}: {message}")

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._raw.get(key) is not None

    def with_default(self, key: str, value: Any) -> "Fields":
        """The same object, with a key that it lacks."""
        return Fields({**self._raw, key: value}, self._place) if key not in self._raw else self

    def string(self, key: str) -> str:
        """A string, which may be empty."""
        return self._encodable(key, self._typed(key, str, "a string"))

    def text(self, key: str) -> str:
        """A string that is not blank."""
        value = self.string(key)
        if not value.strip():
            raise self.error(f"{key!r} is empty")
        return value

    def optional_text(self, key: str) -> str | None:
        """A string that is not blank, or None where the key is missing or null."""
        return self.text(key) if self.has(key) else None

    def integer(self, key: str) -> int:
        """A whole number."""
        value = self._typed(key, int, "an integer")
        if isinstance(value, bool):
            raise self.error(f"{key!r} should be an integer, found {value}")
        return value

    def optional_flag(self, key: str) -> bool | None:
        """True or false, or None where the key is missing or null."""
        return self._typed(key, bool, "true or false") if self.has(key) else None

    def number(self, key: str) -> float:
        """A number, whole or not."""
        value = self._typed(key, (int, float), "a number")
        if isinstance(value, bool):
            raise self.error(f"{key!r} should be a number, found {json.dumps(value)}")
        return float(value)

    def texts(self, key: str, optional: bool = False, blanks: bool = False) -> tuple[str, ...]:
        """A list of strings, none of them blank unless ``blanks``; ``optional``: a missing key is an empty list."""
        if optional and not self.has(key):
            return ()
        values = self._typed(key, list, "a list of strings")
        for number, value in enumerate(values):
            if not isinstance(value, str) or not (blanks or value.strip()):
                raise self.error(f"{key!r} has {_name(value)} at place {number}, expected a string of text")
            self._encodable(key, value)
        return tuple(values)

    def objects(self, key: str) -> list["Fields"]:
        """A list of objects."""
        values = self._typed(key, list, "a list of objects")
        return [Fields(value, f"{self._place}, {key!r} {number}") for number, value in enumerate(values)]

    def nested(self, key: str) -> "Fields":
        """An object within the object."""
        return Fields(self._typed(key, Mapping, "an object"), f"{self._place}, {key!r}")

    def rest(self) -> dict[str, Any]:
        """Every key that has not been taken, with its value as it stands."""
        return {key: value for key, value in self._raw.items() if key not in self._taken}

    def _encodable(self, key: str, value: str) -> str:
        """``value``, unless it has half of a character: JSON's escapes can spell it, but no tokenizer takes it."""
        if _SURROGATES.search(value):
            raise self.error(f"{key!r} has half of a character (a lone surrogate): {ascii(value)}")
        return value

    def _typed(self, key: str, kind: type | tuple[type, ...], description: str) -> Any:
        if key not in self._raw:
            raise self.error(f"the key {key!r} is missing")
        self._taken.add(key)
        if not isinstance(self._raw[key], kind):
            raise self.error(f"{key!r} should be {description}, found {_name(self._raw[key])}")
        return self._raw[key]


def check_template(prompt: str, fields: Fields, key: str = "prompt") -> None:
    """Raises UserError unless the prompt has one ``{}`` for the subject and no other brace (``str.format`` fills it)."""
    count = prompt.count("{}")
    if count != 1:
        raise fields.error(f"{key!r} needs exactly one {{}} for the subject, found {count}: {prompt!r}")
    if any(brace in prompt.replace("{}", "") for brace in "{}"):
        raise fields.error(f"{key!r} has a brace besides its {{}}: {prompt!r}")


def _name(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, str):
        return f"the string {value!r}" if value.strip() else "an empty string"
    return "a list" if isinstance(value, list) else "an object"
