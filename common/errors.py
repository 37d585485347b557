"""The one exception that a user's mistake ends in, whatever part of the toolkit finds it."""

import difflib
from collections.abc import Iterable


LONGEST = 1500
"""Characters of a message."""


class UserError(ValueError):
    """What was wrong, where, and what to do about it, in one line; the middle of one that quotes a very long value is left
    out."""

    def __init__(self, message: object = "", *more: object):
        text = str(message)
        super().__init__(message if len(text) <= LONGEST else f"{text[:LONGEST // 2]} ... {text[-LONGEST // 2:]}", *more)


def nearest_name(name: str, names: Iterable[str]) -> str:
    """The question of a message about an unknown name: ``did you mean 'zsre'? `` with a space behind it; "" if none is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {near[0]!r}? " if near else ""
