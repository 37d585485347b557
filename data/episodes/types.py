"""What the learned editors train on, as plain text: an edit, equivalent inputs, inputs that have nothing to do with it."""
from collections.abc import Sequence
from dataclasses import dataclass

MAX_LENGTH = {"gen": 200, "fc": 32, "qa": 32, "fnli": 120, "sent": 96}
"""Experiment -> tokens that an input is cut to, as published. Of ``gen`` only locality texts are cut, its edits never."""

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
    """Hard negatives: for each edit row the unrelated examples most like it, with the probability of drawing each."""

    indices: Sequence[Sequence[int]]
    probabilities: Sequence[Sequence[float]]
    share: float
    """Of the batches, how many take all their local examples from these."""


@dataclass(frozen=True)
class EditBatch:
    """Edits made together, with unrelated inputs."""

    items: tuple[Item, ...]
    local: tuple[Example, ...]
    local_hard: tuple[bool, ...] = ()
    """For each of ``local``: is it a hard negative?"""
    epoch: int = 0

    @property
    def indices(self) -> tuple[int, ...]:
        """The rows that are edited."""
        return tuple(item.index for item in self.items)
