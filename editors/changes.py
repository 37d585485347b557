"""Changes of one parameter: by two factors, or whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.errors import UserError


@dataclass(frozen=True)
class LowRank:
    """The change `left @ right.T`, in the parameter's own orientation."""

    left: Float[Tensor, "rows rank"]
    right: Float[Tensor, "columns rank"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter that is changed."""
        return len(self.left), len(self.right)

    def dense(self, device: torch.device | str = "cpu") -> Float[Tensor, "rows columns"]:
        """Formed in the factors' dtype, on that device."""
        return self.left.to(device) @ self.right.to(device).T

    def plus(self, other: Change) -> Change:
        """The sum of both changes; of two with factors: the factors side by side."""
        if isinstance(other, Dense):
            return Dense(self.dense() + other.dense())
        return LowRank(torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right], 1))

    def smaller(self) -> Change:
        """This change, or its product where the factors hold more numbers than that (very many edits)."""
        rows, columns, rank = *self.shape, self.left.shape[1]
        return self if rank * (rows + columns) <= rows * columns else Dense(self.dense())


@dataclass(frozen=True)
class Dense:
    """A change without factors (fine-tuning, biases), or of so high a rank that they would be the larger form."""

    delta: Float[Tensor, "..."]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter that is changed."""
        return tuple(self.delta.shape)

    def dense(self, device: torch.device | str = "cpu") -> Float[Tensor, "..."]:
        """The change itself, on that device."""
        return self.delta.to(device)

    def plus(self, other: Change) -> Dense:
        """The sum of both changes."""
        return Dense(self.dense() + other.dense())

    def smaller(self) -> Dense:
        """This change: it has no other form."""
        return self


Change = LowRank | Dense


def add_to(parameter: nn.Parameter, change: Change) -> None:
    """parameter += change in place."""
    with torch.no_grad():
        parameter.add_(change.dense(parameter.device))  # rounded once, to the parameter's dtype


def check_finite(changes: Mapping[str, Change]) -> None:
    """Raises UserError for the first change that holds NaN or infinity."""
    for name, change in changes.items():
        if not all(torch.isfinite(part).all() for part in vars(change).values()):
            raise UserError(f"the change of {name} is not finite: load the model in a wider dtype, or lower the learning rate")
