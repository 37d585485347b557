"""The race between two ways to the same result: their times, and the check that they give the same."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """(what it returns, seconds)."""
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


@dataclass
class Race:
    """Of each way the last result, and the seconds and the processor's seconds of every run."""

    results: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    busy: dict[str, list[float]] = field(default_factory=dict)

    def best(self, way: str) -> float:
        """Seconds of the fastest run."""
        return min(self.seconds[way])


def race(ways: Mapping[str, Callable[[], Any]], repeats: int) -> Race:
    """Runs the ways ``repeats`` times, in turn, so that whatever else runs on the machine slows all."""
    result = Race()
    for _ in tqdm(range(repeats), desc="repeats", unit="run", disable=repeats == 1 or None):
        for way, run in ways.items():
            busy = time.process_time()
            result.results[way], seconds = timed(run)
            result.seconds.setdefault(way, []).append(seconds)
            result.busy.setdefault(way, []).append(time.process_time() - busy)
    return result


def require_equal(difference: float, tolerance: float, what: str) -> None:
    """Ends the program with code 1 where the two ways' results differ."""
    if difference > tolerance:
        raise SystemExit(f"the {what} differ by more than {tolerance}")
