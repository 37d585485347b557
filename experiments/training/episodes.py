"""Edit data, which are text, as the episodes that a learned editor is trained on."""

from dataclasses import dataclass
from typing import Any

from editors.learned.episode import Collator, Episode


@dataclass(frozen=True)
class Episodes:
    """One split's batches, tokenised: what a Trainer reads."""

    batches: Any
    """Of :mod:`data.episodes`: ``batches[i]`` is the same whenever it is asked for."""
    collate: Collator

    def __len__(self) -> int:
        """Batches of one pass over the edits."""
        return len(self.batches)

    def episode(self, number: int) -> Episode:
        """The batch of that number, of any pass."""
        batch = self.batches[number]
        return self.collate(batch.items, batch.local)
