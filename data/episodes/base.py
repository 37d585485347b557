"""What the edit data of all experiments share: rows, their order, and the batches drawn from them."""
from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

from common.errors import UserError
from data.episodes.options import Options
from data.episodes.sampler import MendSampler, Sampler, SeracSampler
from data.episodes.types import Batch, Example, Item, Neighbours

RECIPES = ("mend", "serac")


@dataclass(frozen=True)
class Place:
    """Where rows come from and what is asked of them."""

    experiment: str
    split: str
    source: str
    options: Options
    recipe: str
    seed: int


class Rows:
    """Edit rows of one split. Subclasses give ``item`` and ``own_local``; other local examples come through ``locals_``."""

    keys: Sequence[str] | None = None
    keep: Sequence[float] | None = None

    def __init__(self, place: Place, rows: Sequence[Any], locals_: Sequence[Example] | None = None,
                 local_rows: Sequence[int | None] | None = None, name: str = "", neighbours: Neighbours | None = None):
        """locals_: unrelated examples of another source (default: the rows themselves). local_rows: the edit row that each
        belongs to. name: what the files are called. Raises UserError when there are no rows."""
        if not rows:
            raise UserError(f"{name or place.source}: none of its rows can be used as edits of {place.experiment}")
        self.place, self.rows, self._locals, self.local_rows, self.neighbours = place, rows, locals_, local_rows, neighbours
        if locals_ is not None and not locals_:
            raise UserError(f"{name or place.source}: there are no unrelated examples for {place.experiment}")
        self._name = name or place.source

    @cached_property
    def about(self) -> dict[str, Any]:
        """What these data are: JSON."""
        digest = hashlib.sha256()
        for part in (*self.rows, *(self._locals or ())):
            content = {f.name: getattr(part, f.name) for f in fields(part) if self._is_read(f)} if is_dataclass(part) else part
            digest.update(json.dumps(content, sort_keys=True, default=str).encode())
        given = {f.name: getattr(self.place.options, f.name) for f in fields(Options)
                 if getattr(self.place.options, f.name) != f.default}
        place = self.place
        return {"experiment": place.experiment, "split": place.split, "source": self._name, "recipe": place.recipe,
                "seed": place.seed, "rows": len(self), "local": self.n_local, "sha256": digest.hexdigest(), "options": given}

    def _is_read(self, part: Field) -> bool:
        """Whether a part of a row is read. One that is read with an option only is in no checksum without it: it may be newer."""
        option = part.metadata.get("read_with")
        return option is None or bool(getattr(self.place.options, option))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_local(self) -> int:
        return len(self.rows if self._locals is None else self._locals)

    @property
    def local_is_same_rows(self) -> bool:
        return self._locals is None

    def rng(self, index: int, epoch: int, use: str = "edit") -> random.Random:
        """The generator of one row in one pass: validation draws the same every time."""
        return random.Random(f"{self.place.seed}-{self.place.split}-{use}-{index}-{epoch}")

    def item(self, index: int, epoch: int) -> Item:
        raise NotImplementedError

    def own_local(self, index: int, epoch: int) -> Example:
        """Row ``index`` as an unrelated example."""
        raise NotImplementedError

    def local(self, index: int, epoch: int) -> Example:
        return self.own_local(index, epoch) if self._locals is None else self._locals[index % len(self._locals)]

    def local_of(self, index: int, epoch: int) -> Example | None:  # noqa: ARG002 (of claims with evidence)
        return None

    def kin(self, edits: Sequence[int], place: int, epoch: int) -> Example | None:  # noqa: ARG002 (of the world's facts)
        """What stands at a place of the unrelated examples instead of the one drawn, for ``data.same_relation``."""
        return None

    def settled(self, items: list[Item], local: list[Example], drawn: Sequence[int]) -> tuple[list[Item], list[Example]]:  # noqa: ARG002
        """A batch's edits and unrelated examples, whose numbers are `drawn`, without what contradicts itself."""
        return items, local

    def batches(self, n_edits: int, n_local: int, seed: int | None = None, limit: int | None = None,
                single_batch: bool = False) -> Batches:
        """Batches of ``n_edits`` edits and ``n_local`` unrelated examples, by their number.

        limit: edit only the first so many rows (periodic validation). single_batch: always the first rows.
        Raises UserError when there are too few rows.
        """
        n = min(limit or len(self), len(self))
        seed = self.place.seed if seed is None else seed
        local_rows = range(len(self)) if self._locals is None else self.local_rows
        shared = {"locals_": self.n_local, "local_rows": local_rows, "fixed": single_batch}
        if self.place.recipe == "mend":
            sampler: Sampler = MendSampler(n, n_edits, n_local, seed, **shared)
        else:
            sampler = SeracSampler(n, n_edits, n_local, seed, **shared, keys=self.keys, neighbours=self.neighbours,
                                   keep=None if self.keep is None else self.keep[:n])
        return Batches(self, sampler)


class Batches:
    """``batches[i]`` is a function of i alone; ``len`` is that of one pass over the rows."""

    def __init__(self, data: Rows, sampler: Sampler):
        self._data, self._sampler = data, sampler

    def __len__(self) -> int:
        return len(self._sampler)

    def __getitem__(self, number: int) -> Batch:
        draw, data = self._sampler[number], self._data
        items = [data.item(index, draw.epoch) for index in draw.edits]
        options = data.place.options
        owned = [data.local_of(index, draw.epoch) for index in draw.edits][:len(draw.local)]
        drawn = [data.kin(draw.edits, place, draw.epoch) or data.local(index, draw.epoch) for place, index in enumerate(draw.local)]
        local = [own or other for own, other in zip(owned, drawn)] + drawn[len(owned):]
        items, local = data.settled(items, local, draw.local)
        if options.flip_inner_outer and data.place.recipe == "serac" and data.rng(number, 0, "flip").random() < 0.5:
            items = [_flipped(item) for item in items]
        items = _cut(items, options.n_outer_max)
        return Batch(tuple(items), tuple(local), (draw.hard,) * len(local), draw.epoch)

    def __iter__(self) -> Iterator[Batch]:
        """One pass."""
        return (self[number] for number in range(len(self)))


def _flipped(item: Item) -> Item:
    """What was asked is edited, and what was edited is asked."""
    if len(item.outer) != 1:
        return item
    return replace(item, edit=item.outer[0], outer=(item.edit,), hard=(False,))


def _cut(items: list[Item], most: int | None) -> list[Item]:
    """The first ``most`` equivalents of the whole batch."""
    if most is None:
        return items
    left, kept = most, []
    for item in items:
        count = min(left, len(item.outer))
        left -= count
        kept.append(replace(item, outer=item.outer[:count], outer_sentiments=item.outer_sentiments[:count],
                            hard=item.hard[:count]))
    return kept


def check_recipe(recipe: str) -> None:
    if recipe not in RECIPES:
        raise UserError(f"the recipe of the data is {' or '.join(RECIPES)}, not {recipe!r}")


