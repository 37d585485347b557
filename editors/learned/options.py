"""What a learned editor can be told: one dataclass an algorithm, its keys those of the published configuration."""

import dataclasses
from typing import Any, ClassVar

from editors.configuration import Configuration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Configuration):
    """The options of one algorithm."""

    free: ClassVar[frozenset[str]] = frozenset()
    """Keys that may differ between a checkpoint and the editor that loads it."""

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in self.free}
