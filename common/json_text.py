"""JSON that any reader takes: no NaN and no infinity, which JSON does not have."""

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(content: Any, **options: Any) -> str:
    """:func:`json.dumps` with ``null`` for what is not finite."""
    return json.dumps(_finite(content), allow_nan=False, **options)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content
