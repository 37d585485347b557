"""What earlier edits of a sequence leave behind for later ones: sums over their keys, to keep off them, and statistics."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from .normaliser import Normaliser
from .solve import Factor, Gram

Sum = TypeVar("Sum", Factor, Gram, Normaliser)
KINDS: dict[str, type[Factor | Gram | Normaliser]] = {"factor": Factor, "gram": Gram, "normaliser": Normaliser}
"""What can be kept: of one tensor, from which `plus` makes the next."""


class KeyMemory:
    """For each layer S + K K^T, S an editor's own matrix and K all keys edited so far: as its Cholesky factor, or as it is.
    For others, by a name, the statistics of all rows so far (`Normaliser`).

    An editor stages the keys of an edit; whoever applies the edit commits them. Size and time of a commit do not grow with the
    number of edits.
    """

    def __init__(self):
        self._sums: dict[int | str, Factor | Gram | Normaliser] = {}
        self._staged: dict[int | str, Any] = {}

    def at(self, layer: int | str, start: Callable[[], Sum]) -> Sum:
        """Everything committed at `layer`; `start()` before the first commit."""
        if layer not in self._sums:
            self._sums[layer] = start()
        return self._sums[layer]

    def stage(self, keys: Mapping[int | str, Any]) -> None:
        """Keep the keys of an edit [d_in, n], or what else `plus` takes, in place of those staged before, until it is known to
        be applied."""
        self._staged = dict(keys)

    def commit(self) -> None:
        """The edit whose keys were staged is in the model now."""
        for layer, keys in self._staged.items():
            self._sums[layer] = self._sums[layer].plus(keys)
        self._staged = {}

    def tensors(self) -> dict[str, Tensor]:
        """Everything committed, by name."""
        kind_of = {kind: name for name, kind in KINDS.items()}
        return {f"{kind_of[type(total)]}.{layer}": tensor
                for layer, total in self._sums.items() for tensor in vars(total).values()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` returned, to the last bit."""
        named = ((*name.split(".", 1), tensor) for name, tensor in tensors.items())
        self._sums = {int(layer) if layer.isdecimal() else layer: KINDS[kind](tensor.clone()) for kind, layer, tensor in named}
        self._staged = {}
