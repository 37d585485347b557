"""The texts that SERAC makes of an edit: what its scope classifier and its counterfactual model read."""

from dataclasses import dataclass

from editors.learned.model_kind import ModelKind
from .store import Entry


@dataclass(frozen=True)
class Form:
    """How edits are put, by the kind of the model that is edited. As published, to the last space."""

    kind: ModelKind

    def context(self, entry: Entry, sep: str) -> str:
        """What the scope classifier reads of an edit; sep: its separator token.

        Of a decoder's edit this is the input alone, and without a label, where the input goes on to the answer, all but its
        last word.
        """
        if self.kind is ModelKind.DECODER:
            return (entry.input if entry.label else " ".join(entry.input.split(" ")[:-1])) + sep
        return entry.input + sep + entry.label + sep

    def prefix(self, entry: Entry) -> str:
        """What the counterfactual model reads before a query."""
        if self.kind is ModelKind.DECODER and not entry.label:
            return f"{entry.input} "
        return f"{entry.text} "
