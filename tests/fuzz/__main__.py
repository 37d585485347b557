"""``python -m tests.fuzz --cases N``: how many of each class were refused and accepted, and what failed."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz import run

parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
parser.add_argument("--cases", type=int, default=1000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--only", help="classes whose name contains this")
args = parser.parse_args()
started = time.perf_counter()
with tempfile.TemporaryDirectory() as folder:
    outcomes, failures = run(args.cases, args.seed, Path(folder), args.only)
for (name, outcome), count in sorted(outcomes.items()):
    print(f"{name:24s} {outcome:10s} {count:6d}")
for failure in failures[:50]:
    print(failure)
print(f"{args.cases} cases, {len(failures)} failures, {time.perf_counter() - started:.0f} s")
sys.exit(bool(failures))
