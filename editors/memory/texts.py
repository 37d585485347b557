"""Batches together with the texts they were made of: SERAC keeps and compares texts, and tokens tell them only nearly."""

from collections.abc import Sequence
from dataclasses import replace

from editors.learned.episode import Batch, Episode, Example


class Texts(dict):
    """A batch together with the texts it was made of, which no tokenizer has been through: queries, and the edits' answers."""

    def __init__(self, batch: Batch, inputs: Sequence[str], labels: Sequence[str] = ()):
        super().__init__(batch)
        self.inputs, self.labels = list(inputs), list(labels)


def with_texts(episode: Episode) -> Episode:
    """The episode with its batches' own texts, which no tokenizer has cut or put in lower case, where it has them.

    A text whose beginning was dropped, or that holds its own target, is left to the tokens.
    """
    items, local = episode.extras.get("items"), episode.extras.get("local")
    examples = [example for item in items or () for example in item.outer]
    if items is None or items[0].drop is not None or any(e.scored is not None for e in (*examples, *(i.edit for i in items))):
        return episode

    def texts(batch: Batch | None, sources: Sequence[Example]) -> Batch | None:
        if batch is None:
            return None
        sources = sources[: len(batch["input_ids"])]
        return Texts(batch, [e.input for e in sources], [e.target or "" for e in sources])

    return replace(episode, edit_inner=texts(episode.edit_inner, [item.edit for item in items]),
                   edit_outer=texts(episode.edit_outer, examples), loc=texts(episode.loc, list(local)))
