"""What the keys of earlier edits leave behind, so that later edits of a sequence keep off them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from .solve import Factor


class KeyMemory:
    """For each layer the Cholesky factor of S + K K^T, S an editor's own matrix and K all keys edited so far.

    An editor stages the keys of an edit; whoever applies the edit commits them. Size and time of a commit do not grow with the
    number of edits.
    """

    def __init__(self):
        self._factors: dict[int, Factor] = {}
        self._staged: dict[int, Tensor] = {}

    def factor(self, layer: int, start: Callable[[], Factor]) -> Factor:
        """Of everything committed at `layer`; `start()` before the first commit."""
        if layer not in self._factors:
            self._factors[layer] = start()
        return self._factors[layer]

    def stage(self, keys: Mapping[int, Float[Tensor, "d_in n"]]) -> None:
        """Keep the keys of an edit, in place of those staged before, until it is known to be applied."""
        self._staged = dict(keys)

    def commit(self) -> None:
        """The edit whose keys were staged is in the model now."""
        for layer, keys in self._staged.items():
            self._factors[layer] = self._factors[layer].plus(keys)
        self._staged = {}

    def tensors(self) -> dict[str, Tensor]:
        """Everything committed, by name."""
        return {str(layer): factor.lower for layer, factor in self._factors.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` returned, to the last bit."""
        self._factors = {int(layer): Factor(lower.to(torch.float64, copy=True)) for layer, lower in tensors.items()}
        self._staged = {}
