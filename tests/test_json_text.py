"""JSON that holds no NaN."""

import json
import math

from common.json_text import to_json


def test_what_is_not_finite_is_null():
    content = {"a": math.nan, 1: [math.inf, (2.5, -math.inf)], "x": {"y": None, "z": True, "à": "NaN"}}
    text = to_json(content, ensure_ascii=False)
    assert json.loads(text) == {"a": None, "1": [None, [2.5, None]], "x": {"y": None, "z": True, "à": "NaN"}} and "à" in text
