"""Edits of language models: a passage with another continuation than the model's own (MEND's "gen")."""
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random

from common.errors import UserError
from data.episodes.base import EditRows
from data.episodes.types import Example, Item
from data.fields import Fields
from data.files import read_json

SCHEMA = '{"n_tokens": int, "original": [...], "completions": [texts that end in n_tokens new tokens]}'


@dataclass(frozen=True)
class Completion:
    """A text whose last ``n_tokens`` tokens are the edit's target."""

    text: str
    n_tokens: int


@dataclass(frozen=True)
class Continuation:
    """A prompt with its new continuation, other prompts that should continue alike, and the continuation from before."""

    prompt: str
    new: str
    old: str
    rephrases: tuple[str, ...]
    relation: str = ""
    questions: tuple[str, ...] = field(default=(), metadata={"read_with": "asked"})
    """Questions that ask for the same."""


def read(path: Path) -> list[Completion]:
    """The completions of a file. Raises UserError when it is not of the schema or has none."""
    fields = Fields(read_json(path), str(path))
    n_tokens, texts = fields.integer("n_tokens"), fields.texts("completions")
    originals = fields.texts("original", optional=True, blanks=True)
    if n_tokens < 1:
        raise fields.error(f"'n_tokens' should be at least 1, found {n_tokens}")
    if originals and len(originals) != len(texts):
        raise fields.error(f"'original' has {len(originals)} texts and 'completions' {len(texts)}")
    if not texts:
        raise UserError(f"{path}: it has no completions")
    return [Completion(text, n_tokens) for text in texts]


class Completions(EditRows):
    """MEND's recipe: the equivalent is the same text without some of its first tokens."""

    rows: Sequence[Completion]

    def item(self, index: int, epoch: int) -> Item:
        row = self.rows[index]
        example = Example(row.text, scored=row.n_tokens)
        drop = self.rng(index, epoch).random() if self.spec.options.rephrase else None
        return Item(example, (example,), drop=drop, hard=(False,), index=index)

    def as_local(self, index: int, epoch: int) -> Example:
        return Example(self.rows[index].text)


class Continuations(EditRows):
    """Facts of the built-in world: the equivalent is another phrasing with the same new object."""

    rows: Sequence[Continuation]

    @cached_property
    def _indices_of_relation(self) -> dict[str, list[int]]:
        indices: dict[str, list[int]] = {}
        for index, row in enumerate(self.rows):
            indices.setdefault(row.relation, []).append(index)
        return indices

    def same_relation_local(self, edits: Sequence[int], position: int, epoch: int) -> Example | None:
        index = edits[position % len(edits)]
        rng = self.rng(index, epoch, f"kin-{position}")
        if rng.random() >= self.spec.options.same_relation:
            return None
        row = self.rows[index]
        others = [other for other in self._indices_of_relation[row.relation] if other not in edits]
        candidates = [other for other in others if self.rows[other].old == row.old] or others
        return self.as_local(rng.choice(candidates), epoch) if candidates else None

    def item(self, index: int, epoch: int) -> Item:
        row, rng = self.rows[index], self.rng(index, epoch)
        edited = self._forms((row.prompt,), row, rng)[0]
        prompt = rng.choice(self._forms(row.rephrases, row, rng)) if self.spec.options.rephrase else edited
        outer = Example(self._preceded(prompt, row, rng), row.new)
        return Item(Example(edited, row.new), (outer,), hard=(False,), index=index)

    def as_local(self, index: int, epoch: int) -> Example:
        row, rng = self.rows[index], self.rng(index, epoch, "local")
        prompt = rng.choice(self._forms((row.prompt, *row.rephrases), row, rng))
        return Example(self._preceded(prompt, row, rng), row.old)

    def _forms(self, prompts: tuple[str, ...], row: Continuation, rng: Random) -> tuple[str, ...]:
        """The prompts or, with the probability ``data.asked``, the row's questions."""
        probability = self.spec.options.asked
        return row.questions if probability and rng.random() < probability else prompts

    def _preceded(self, prompt: str, row: Continuation, rng: Random) -> str:
        """The prompt, with the probability ``data.preceded`` behind a sentence of another fact."""
        probability = self.spec.options.preceded
        other = rng.choice(self.rows) if probability and rng.random() < probability else row
        return prompt if other is row else f"{other.prompt}{other.old}. {prompt}"
