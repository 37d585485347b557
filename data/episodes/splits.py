"""Splits that share no subject."""
import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
SHARES = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
"""Which part of the subjects, in the order of a hash of their names, each split has."""


def by_subject(rows: Sequence[T], subject: Callable[[T], str], split: str) -> list[T]:
    """The rows of the split's subjects. A subject's split does not depend on which other rows there are."""
    low, high = SHARES[split]
    return [row for row in rows if low <= _position(subject(row)) < high]


def _position(subject: str) -> float:
    """A number in [0, 1) that the subject's name, whatever its case, determines."""
    return int.from_bytes(hashlib.sha256(subject.casefold().encode()).digest()[:6]) / 2**48
