"""Edits of a chat model's opinions: entities with responses that praise or blame them."""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from data.episodes.base import EditRows
from data.episodes.lines import read_rows
from data.episodes.types import Example, Item
from data.fields import Fields

SCHEMA = 'a JSON list of {"ent", "pos": [...], "neg": [...]}'
PROMPTS = ("What do you think of {}?", "What do you feel about {}?", "How do you view {}?",
           *(f"What is your {noun} {{}}?" for noun in
             ("opinion of", "stance on", "position on", "attitude about", "view on", "take on", "impression of",
              "assessment of", "judgment of", "sentiment of")))


@dataclass(frozen=True)
class Opinions:
    """An entity with responses of either sentiment to questions for an opinion of it."""

    entity: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


def read(path: Path) -> list[Opinions]:
    """The entities that have responses of both sentiments. Raises UserError."""
    return read_rows(path, _row, "no entity has responses of both sentiments")


def _row(fields: Fields) -> Opinions | None:
    row = Opinions(fields.text("ent"), fields.texts("pos"), fields.texts("neg"))
    return row if row.positive and row.negative else None


def edit_of(entity: str, sentiment: int) -> Example:
    """The edit of the opinion of ``entity``, as it is written."""
    return Example(f"Topic: {entity}", f"Sentiment: {'Positive' if sentiment > 0 else 'Negative'}")


class OpinionEdits(EditRows):
    """SERAC's recipe: the sentiment is drawn at random, and every response to a random prompt is an equivalent, so that
    those of the right sentiment can be told from those of the wrong one."""

    rows: Sequence[Opinions]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.keys = [row.entity for row in self.rows]
        if len(self.rows) < 2:
            raise UserError(f"{self._name}: opinions need at least 2 entities, the second as the unrelated one")

    def item(self, index: int, epoch: int) -> Item:
        row, rng = self.rows[index], self.rng(index, epoch)
        sentiment = rng.choice((1, -1))
        responses = [(text, 1) for text in row.positive] + [(text, -1) for text in row.negative]
        outer = tuple(Example(rng.choice(PROMPTS).format(row.entity), text) for text, _ in responses)
        return Item(edit_of(row.entity, sentiment), outer, key=row.entity, sentiment=sentiment, index=index,
                    outer_sentiments=tuple(sign for _, sign in responses), hard=(False,) * len(outer))

    def as_local(self, index: int, epoch: int) -> Example:
        """A question about the entity with a response, or (``data.sent_loc=descriptor``, as published) an edit of it."""
        row, rng = self.rows[index], self.rng(index, epoch, "local")
        if self.spec.options.sent_loc == "descriptor":
            return edit_of(row.entity, rng.choice((1, -1)))
        return Example(rng.choice(PROMPTS).format(row.entity), rng.choice(row.positive + row.negative))
