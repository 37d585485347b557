"""What the learned editors train on, as plain text: an edit, equivalent inputs, inputs that have nothing to do with it."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

MAX_LENGTH = {"gen": 200, "fc": 32, "qa": 32, "fnli": 120, "sent": 96}
"""Tokens that an input is cut to, as published. Of ``gen`` only locality texts are cut, its edits never."""

EXPERIMENTS = {"gen": "gen", "wiki": "gen", "fc": "fc", "fever": "fc", "qa": "qa", "zsre": "qa",
               "fnli": "fnli", "sent": "sent", "sentiment": "sent"}
"""Every accepted name of an experiment -> the one used everywhere else."""

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """An input and what should come out of it.

    Exactly one of ``target`` (a text; a decoder reads ``input + target``, which brings its own space), ``label`` (a
    class: 1 true, 0 false) and ``scored`` (the last so many tokens of ``input`` are the target) is set. None of them:
    every token of ``input`` is scored.
    """

    input: str
    target: str | None = None
    label: int | None = None
    scored: int | None = None


@dataclass(frozen=True)
class Item:
    """One edit, with everything that was drawn for it from (seed, split, index, epoch)."""

    edit: Example
    outer: tuple[Example, ...]
    """Equivalent inputs with what they should give after the edit: usually one; none for a claim that is left open."""
    condition: str | None = None
    """The text that KE's hyper-network reads; None: the edit's own."""
    drop: float | None = None
    """Of ``gen`` files: u in [0, 1); ``outer`` loses its first floor(u (h + 1)) tokens, h = (shortest length - scored) // 2."""
    flip: bool | None = None
    """Of claims: does the edit change the model's prediction (else it confirms it)?"""
    sentiment: int | None = None
    """Of opinions: +1 or -1, with one for each of ``outer`` in ``outer_sentiments``."""
    outer_sentiments: tuple[int, ...] = ()
    key: str | None = None
    """What no two edits of a batch may share: the page of a claim, the entity of an opinion."""
    hard: tuple[bool, ...] = ()
    """For each of ``outer``: is it implied by the edit rather than a paraphrase of it?"""
    index: int = 0


@dataclass(frozen=True)
class Neighbours:
    """For each edit row the local examples most like it (hard negatives), with the probability of drawing each."""

    indices: Sequence[Sequence[int]]
    probabilities: Sequence[Sequence[float]]
    share: float
    """Of the batches, how many take all their local examples from these."""


class EpisodeData(Protocol):
    """The edit rows of one split, and the unrelated inputs that go with them."""

    local_rows: Sequence[int | None] | None
    """For each local example the edit row that it belongs to and must not stand beside; None: they come from elsewhere."""
    neighbours: Neighbours | None
    about: dict[str, Any]
    """What the data are, for results and checkpoints; JSON."""
    keys: Sequence[str] | None
    """For each row what no two edits of a batch may share."""
    keep: Sequence[float] | None
    """For each row the probability of staying in a pass over the rows, which balances their classes."""

    def __len__(self) -> int: ...

    @property
    def n_local(self) -> int: ...

    @property
    def local_is_same_rows(self) -> bool: ...

    def item(self, index: int, epoch: int) -> Item: ...

    def local(self, index: int, epoch: int) -> Example: ...

    def local_of(self, index: int, epoch: int) -> Example | None:
        """The local example that belongs to edit row ``index``; None: any that the sampler draws."""


@dataclass(frozen=True)
class Batch:
    """Edits made together, with unrelated inputs."""

    items: tuple[Item, ...]
    local: tuple[Example, ...]
    local_hard: tuple[bool, ...] = field(default=())
    epoch: int = 0

    @property
    def indices(self) -> tuple[int, ...]:
        return tuple(item.index for item in self.items)

    @property
    def pos_pairs(self) -> tuple[tuple[int, int], ...]:
        """(place among all equivalents of the batch, place of its edit), the first counting up from 0."""
        owners = [number for number, item in enumerate(self.items) for _ in item.outer]
        return tuple(enumerate(owners))
