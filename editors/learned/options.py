"""What a learned editor can be told: one dataclass an algorithm, its keys those of the published configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import Self

from editors import hparams


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options of one algorithm. A field without default must be given."""

    ignored: ClassVar[Mapping[str, str]] = {}
    """Published keys without effect, and why."""
    fixed: ClassVar[Mapping[str, tuple[Any, str]]] = {}
    """Published keys that have one supported value: that value, and why no other."""
    free: ClassVar[frozenset[str]] = frozenset()
    """Keys that may differ between a checkpoint and the editor that loads it."""

    @classmethod
    def of(cls, source: Self | Mapping[str, Any] | None) -> Self:
        """From a mapping. Raises UserError for an unknown or missing key, or a wrong type or value."""
        return hparams.load(cls, {} if source is None else source)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in self.free}
