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
from data.episodes.options import DataOptions
from data.episodes.sampler import MendSampler, Pool, Sampler, SeracSampler
from data.episodes.types import EditBatch, Example, Item, Neighbours

RECIPES = ("mend", "serac")


@dataclass(frozen=True)
class DataSpec:
    """Which edit data: of which experiment, split and source, for which recipe."""

    experiment: str
    split: str
    source: str
    options: DataOptions
    recipe: str
    seed: int


class EditRows:
    """The edit rows of one split, and the unrelated ("local") examples that go with them.

    Subclasses give ``item`` and ``as_local``; local examples of another source come through ``local_examples``.
    """

    keys: Sequence[str] | None = None
    """For each row what no two edits of a batch may share."""
    keep: Sequence[float] | None = None
    """For each row the probability of staying in a pass over the rows, which balances their classes."""

    def __init__(self, spec: DataSpec, rows: Sequence[Any], local_examples: Sequence[Example] | None = None,
                 owners: Sequence[int | None] | None = None, name: str = "", neighbours: Neighbours | None = None):
        """local_examples: of another source (default: the rows themselves). owners: for each the edit row that it belongs to
        and must not stand beside. name: what the files are called. Raises UserError when there are no rows."""
        self._name = name or spec.source
        if not rows:
            raise UserError(f"{self._name}: none of its rows can be used as edits of {spec.experiment}")
        if local_examples is not None and not local_examples:
            raise UserError(f"{self._name}: there are no unrelated examples for {spec.experiment}")
        self.spec, self.rows, self._local, self.owners, self.neighbours = spec, rows, local_examples, owners, neighbours

    @cached_property
    def about(self) -> dict[str, Any]:
        """What these data are, for results and checkpoints; JSON."""
        spec, digest = self.spec, hashlib.sha256()
        for row in (*self.rows, *(self._local or ())):
            content = {f.name: getattr(row, f.name) for f in fields(row) if self._is_read(f)} if is_dataclass(row) else row
            digest.update(json.dumps(content, sort_keys=True, default=str).encode())
        options = {f.name: getattr(spec.options, f.name) for f in fields(DataOptions)
                   if getattr(spec.options, f.name) != f.default}
        return {"experiment": spec.experiment, "split": spec.split, "source": self._name, "recipe": spec.recipe,
                "seed": spec.seed, "rows": len(self), "local": self.n_local, "sha256": digest.hexdigest(), "options": options}

    def _is_read(self, field: Field) -> bool:
        """Whether a row's field counts. One that is read with an option only is in no checksum without it: it may be newer."""
        option = field.metadata.get("read_with")
        return option is None or bool(getattr(self.spec.options, option))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_local(self) -> int:
        """Local examples to draw from."""
        return len(self.rows if self._local is None else self._local)

    def rng(self, index: int, epoch: int, use: str = "edit") -> random.Random:
        """The generator of one row in one pass: validation draws the same every time."""
        return random.Random(f"{self.spec.seed}-{self.spec.split}-{use}-{index}-{epoch}")

    def item(self, index: int, epoch: int) -> Item:
        """The edit of row ``index`` with its equivalents, as they are drawn in pass ``epoch``."""
        raise NotImplementedError

    def as_local(self, index: int, epoch: int) -> Example:
        """Row ``index`` as an unrelated example."""
        raise NotImplementedError

    def local(self, index: int, epoch: int) -> Example:
        """The unrelated example ``index``."""
        return self.as_local(index, epoch) if self._local is None else self._local[index % len(self._local)]

    def paired_local(self, index: int, epoch: int) -> Example | None:  # noqa: ARG002
        """The unrelated example that belongs to edit row ``index`` (of claims with evidence); None: any that is drawn."""
        return None

    def same_relation_local(self, edits: Sequence[int], position: int, epoch: int) -> Example | None:  # noqa: ARG002
        """The example that ``data.same_relation`` puts at this position of a batch's unrelated ones; None: the one drawn."""
        return None

    def without_contradictions(self, items: list[Item], local: list[Example],
                               drawn: Sequence[int]) -> tuple[list[Item], list[Example]]:  # noqa: ARG002
        """A batch's edits and unrelated examples, whose numbers are `drawn`, without what contradicts itself."""
        return items, local

    def batches(self, n_edits: int, n_local: int, limit: int | None = None, single_batch: bool = False) -> EditBatches:
        """Batches of ``n_edits`` edits and ``n_local`` unrelated examples, by their number.

        limit: edit only the first so many rows (periodic validation). single_batch: always the first rows.
        Raises UserError when there are too few rows.
        """
        n = min(limit or len(self), len(self))
        pool = Pool(n, self.n_local, range(len(self)) if self._local is None else self.owners)
        if self.spec.recipe == "mend":
            sampler: Sampler = MendSampler(pool, n_edits, n_local, self.spec.seed, single_batch)
        else:
            keep = None if self.keep is None else self.keep[:n]
            sampler = SeracSampler(pool, n_edits, n_local, self.spec.seed, single_batch, self.keys, keep, self.neighbours)
        return EditBatches(self, sampler)


class EditBatches:
    """``batches[i]`` is a function of i alone; ``len`` is that of one pass over the rows."""

    def __init__(self, data: EditRows, sampler: Sampler):
        self._data, self._sampler = data, sampler

    def __len__(self) -> int:
        return len(self._sampler)

    def __getitem__(self, number: int) -> EditBatch:
        draw, data = self._sampler[number], self._data
        items = [data.item(index, draw.epoch) for index in draw.edits]
        options = data.spec.options
        paired = [data.paired_local(index, draw.epoch) for index in draw.edits][:len(draw.local)]
        drawn = [data.same_relation_local(draw.edits, position, draw.epoch) or data.local(index, draw.epoch)
                 for position, index in enumerate(draw.local)]
        local = [example or other for example, other in zip(paired, drawn)] + drawn[len(paired):]
        items, local = data.without_contradictions(items, local, draw.local)
        if options.flip_inner_outer and data.spec.recipe == "serac" and data.rng(number, 0, "flip").random() < 0.5:
            items = [_flipped(item) for item in items]
        items = _cut(items, options.n_outer_max)
        return EditBatch(tuple(items), tuple(local), (draw.hard,) * len(local), draw.epoch)

    def __iter__(self) -> Iterator[EditBatch]:
        """One pass."""
        return (self[number] for number in range(len(self)))


def _flipped(item: Item) -> Item:
    """The item with edit and equivalent exchanged, if it has one equivalent."""
    if len(item.outer) != 1:
        return item
    return replace(item, edit=item.outer[0], outer=(item.edit,), hard=(False,))


def _cut(items: list[Item], most: int | None) -> list[Item]:
    """The items with the first ``most`` equivalents of the whole batch."""
    if most is None:
        return items
    remaining, cut_items = most, []
    for item in items:
        count = min(remaining, len(item.outer))
        remaining -= count
        cut_items.append(replace(item, outer=item.outer[:count], outer_sentiments=item.outer_sentiments[:count],
                                 hard=item.hard[:count]))
    return cut_items


def check_recipe(recipe: str) -> None:
    """Raises UserError for an unknown recipe."""
    if recipe not in RECIPES:
        raise UserError(f"the recipe of the data is {' or '.join(RECIPES)}, not {recipe!r}")


