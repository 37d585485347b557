"""Which rows are edited together and which unrelated ones go with them; a function of the seed and the batch's number.

Two samplers, as published. MEND's takes edits from a permutation and draws locality rows until none of them is edited; SERAC's
draws as many locality rows as edits from those that are not edited. Both draw with replacement. Numbers are those of numpy's
default generator, so that the same seed gives the published batches (SERAC's edits in the permutation's order, where the
published code has a set's).
"""
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import UserError
from data.episodes.types import Neighbours

TRIES = 100
"""Draws of locality rows before it is given up to find some that the batch does not edit."""


@dataclass(frozen=True)
class Pool:
    """What batches are drawn from."""

    n: int
    """Edit rows."""
    local: int | None = None
    """Local examples; None: the edit rows themselves."""
    owners: Sequence[int | None] | None = None
    """For each local example the edit row that it belongs to, from which it is kept apart."""


@dataclass(frozen=True)
class Draw:
    """Rows of one batch: ``edits`` and ``local`` (indices of local examples); ``epoch`` counts passes over the edit rows."""

    edits: tuple[int, ...]
    local: tuple[int, ...]
    epoch: int
    hard: bool = False


class Sampler:
    """``sampler[i]`` is batch i; asking in order is cheap, an earlier one restarts the draws from the beginning."""

    def __init__(self, pool: Pool, n_edits: int, n_local: int, seed: int = 0, fixed: bool = False):
        """n_edits, n_local: edits and local examples of a batch. fixed: always the same rows (``single_batch``).

        Raises UserError when there are too few rows.
        """
        if n_edits < 1 or n_local < 1:
            raise UserError(f"a batch needs at least 1 edit and 1 unrelated row, not {n_edits} and {n_local}; "
                            "make batch_size larger than data.n_edits")
        self.n, self.n_edits, self.n_local, self.fixed = pool.n, n_edits, n_local, fixed
        self.pool_local = pool.n if pool.local is None else pool.local
        owners = range(pool.n) if pool.local is None else pool.owners
        self._local_of: dict[int, list[int]] = {}
        for index, row in enumerate(owners or ()):
            if row is not None:
                self._local_of.setdefault(row, []).append(index)
        if pool.n < n_edits:
            raise UserError(f"{n_edits} edits at a time are asked for, and there are only {pool.n} rows")
        self._seed = seed
        self._restart()

    def __len__(self) -> int:
        """Batches in one pass over the edit rows."""
        return self.n // self.n_edits

    def __getitem__(self, number: int) -> Draw:
        if number < 0:
            raise IndexError(number)
        if number < self._next - 1:
            self._restart()
        while self._next <= number:
            self._last = self._draw()
            self._next += 1
        return self._last

    def _restart(self) -> None:
        self._rng = np.random.default_rng(self._seed)
        self._queue: deque[int] = deque()
        self._epoch, self._next = -1, 0

    def _permute(self) -> None:
        self._queue = deque(self._rng.permutation(self.n).tolist())
        self._epoch += 1

    def _forbidden(self, edits: Sequence[int]) -> list[int]:
        """Local examples that belong to these edits, sorted."""
        return sorted(index for edit in edits for index in self._local_of.get(edit, ()))

    def _draw(self) -> Draw:
        raise NotImplementedError


class MendSampler(Sampler):
    """MEND's: the next ``n_edits`` rows of a permutation; local examples with replacement, again until none is edited."""

    def _draw(self) -> Draw:
        if self.fixed:
            return Draw(tuple(range(self.n_edits)), tuple(i % self.pool_local for i in range(self.n_local)), 0)
        if len(self._queue) < self.n_edits:
            self._permute()
        edits = [self._queue.popleft() for _ in range(self.n_edits)]
        forbidden = set(self._forbidden(edits))
        if len(forbidden) >= self.pool_local:
            raise _none_left(self.pool_local, self.n_edits)
        local = self._rng.choice(self.pool_local, self.n_local)
        while forbidden.intersection(local.tolist()):
            if len(forbidden) * self.n_local > self.pool_local:  # few are allowed: draw among these alone
                allowed = [i for i in range(self.pool_local) if i not in forbidden]
                local = self._rng.choice(allowed, self.n_local)
            else:
                local = self._rng.choice(self.pool_local, self.n_local)
        return Draw(tuple(edits), tuple(local.tolist()), self._epoch)


class SeracSampler(Sampler):
    """SERAC's: as many local examples as edits. Rows with alike ``keys`` are not edited together, ``keep`` thins each pass,
    and a share of the batches takes its local examples from the edits' ``neighbours``."""

    def __init__(self, pool: Pool, n_edits: int, n_local: int, seed: int = 0, fixed: bool = False,
                 keys: Sequence[str] | None = None, keep: Sequence[float] | None = None, neighbours: Neighbours | None = None):
        self._keys = None if keys is None else [key.casefold() for key in keys]
        self._keep = None if keep is None else np.asarray(keep)
        self._neighbours = neighbours
        super().__init__(pool, n_edits, n_local, seed, fixed)

    def _draw(self) -> Draw:
        if self.fixed:
            return Draw(tuple(range(self.n_edits)), tuple(i % self.pool_local for i in range(self.n_local)), 0)
        edits = self._next_edits()
        if self._neighbours is not None and self._rng.random() < self._neighbours.share:
            local = self._from_neighbours(edits)
            if local is not None:
                return Draw(tuple(edits), local, self._epoch, hard=True)
        forbidden = self._forbidden(edits)
        if len(forbidden) >= self.pool_local:
            raise _none_left(self.pool_local, len(edits))
        local = self._rng.choice(self.pool_local - len(forbidden), self.n_local).tolist()
        return Draw(tuple(edits), tuple(_skip(i, forbidden) for i in local), self._epoch)

    def _next_edits(self) -> list[int]:
        """The next rows of the permutation whose keys differ; the others keep their places."""
        for _ in range(TRIES):
            chosen: list[int] = []
            waiting: list[int] = []
            while self._queue and len(chosen) < self.n_edits:
                row = self._queue.popleft()
                alike = self._keys is not None and any(_alike(self._keys[row], self._keys[other]) for other in chosen)
                (waiting if alike else chosen).append(row)
            if len(chosen) == self.n_edits:
                self._queue.extendleft(reversed(waiting))
                return chosen
            self._permute()
            if self._keep is not None:
                stays = self._rng.random(self.n) < self._keep
                self._queue = deque(row for row in self._queue if stays[row])
        raise UserError(f"{TRIES} passes over the {self.n} rows gave no {self.n_edits} that can be edited together "
                        "(their pages or entities are alike); use fewer edits")

    def _from_neighbours(self, edits: Sequence[int]) -> tuple[int, ...] | None:
        """A neighbour of each edit, none of which belongs to an edit of the batch; None if an edit has no such neighbours.

        Where so many edits are made that drawing gives none, each draws among its allowed neighbours alone.
        """
        forbidden = set(self._forbidden(edits))
        for _ in range(TRIES):
            drawn = [int(self._rng.choice(self._neighbours.indices[row], p=self._neighbours.probabilities[row]))
                     for row in edits[:self.n_local]]
            if not forbidden.intersection(drawn):
                return tuple(drawn)
        drawn = []
        for row in edits[:self.n_local]:
            nearest, odds = self._neighbours.indices[row], np.asarray(self._neighbours.probabilities[row], dtype=float)
            odds = np.where([int(i) in forbidden for i in nearest], 0.0, odds)
            if not odds.sum():
                return None
            drawn.append(int(self._rng.choice(nearest, p=odds / odds.sum())))
        return tuple(drawn)


def _none_left(n_local: int, n_edits: int) -> UserError:
    return UserError(f"all {n_local} unrelated examples belong to the {n_edits} edits of one batch; use fewer edits")


def _skip(index: int, forbidden: Sequence[int]) -> int:
    """The ``index``-th of the numbers from 0 that are not in the sorted list ``forbidden``."""
    for number in forbidden:
        index += index >= number
    return index


def _alike(a: str, b: str) -> bool:
    return a in b or b in a
