"""`python -m experiments.bench edits`: an evaluation of many edits at once, from nothing, and where its time and memory go.

Runs `experiments.evaluate` in this process with an empty data folder, so that the statistics of the model are collected too,
and one batch of all edits. A clock around the program's own steps tells them apart; the processor's seconds (over all threads)
tell what a busy machine adds. Memory is the largest that the process had held by the end of a step.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from common.errors import UserError
from editors import base
from editors.closed_form import aim, memit, spread
from editors.core import solve
from experiments import evaluate
from experiments.results import run_folder, summary
from experiments.results.runs import read_run
from experiments.run import batches

from experiments.bench.options import options, parse

MIB = 1 / 2**20 if sys.platform == "darwin" else 1 / 2**10  # of ru_maxrss: bytes there, kilobytes elsewhere


class Clock:
    """Of each step: seconds, the processor's seconds over all threads, and the largest memory (MiB) until its end."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.busy: dict[str, float] = {}
        self.memory: dict[str, float] = {}

    def add(self, step: str, seconds: float, busy: float) -> None:
        self.seconds[step] = self.seconds.get(step, 0.0) + seconds
        self.busy[step] = self.busy.get(step, 0.0) + busy
        self.memory[step] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MIB

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started, busy = time.perf_counter(), time.process_time()
        yield
        self.add(name, time.perf_counter() - started, time.process_time() - busy)

    def timed(self, step: Callable[[], str], function: Callable) -> Callable:
        """`function`, its time added to the step that `step` names when it begins."""
        def run(*args, **kwargs):
            with self.step(step()):
                return function(*args, **kwargs)
        return run


@contextmanager
def _clocked(clock: Clock) -> Iterator[None]:
    """Inside, the steps of an evaluation with a closed-form editor are timed."""
    with ExitStack() as stack:
        for owner, name, step in (
            (evaluate, "prepare", lambda: "model and data"), (batches, "measure_unedited", lambda: "metrics before"),
            (batches, "measure", lambda: "metrics after"),
            (run_folder, "write_cases", lambda: "results"), (memit, "prepare", lambda: "contexts"),
            (memit, "second_moments", lambda: "statistics"),
            (spread, "cached_optimise", lambda: "target states"), (aim, "compute_keys", lambda: "keys"),
            (aim, "compute_hidden", lambda: "states now"), (solve, "memit", lambda: "solve"),
            (base, "what_is_said", lambda: "targets said"),
        ):
            stack.enter_context(mock.patch.object(owner, name, clock.timed(step, getattr(owner, name))))
        yield


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Prints seconds and memory by step, and what the edits reached."""
    parser = options("edits", __doc__, seed=False, edits=(10000, ""))
    parser.add_argument("--alg_name", default="MEMIT", help="MEMIT or a variant of it (default: %(default)s)")
    parser.add_argument("--model_name", default="world", help="(default: %(default)s)")
    parser.add_argument("--hparams_fname", help="by default <model_name>.json")
    parser.add_argument("--ds_name", default="world:10000", help="(default: %(default)s)")
    parser.add_argument("--results_dir", help="keep the run there; by default it is thrown away")
    parser.add_argument("--dir_name", default="edits", help="of the run in it (default: %(default)s)")
    parser.add_argument("--data_dir", help="keep statistics and target states there, for other runs; a new folder")
    parser.add_argument("--out", help="write the figures to this .json file, too")
    args = parse(parser, argv)
    clock, started, busy = Clock(), time.perf_counter(), time.process_time()
    if args.data_dir and Path(args.data_dir).exists():
        raise UserError(f"--data_dir {args.data_dir}: is there already, and statistics in it would not be collected")
    with tempfile.TemporaryDirectory() as folder:
        with _clocked(clock):
            run = evaluate.main(args.alg_name, args.model_name, hparams_fname=args.hparams_fname, ds_name=args.ds_name,
                                dataset_size_limit=args.edits, num_edits=args.edits, generation_test_interval=-1,
                                results_dir=args.results_dir or Path(folder) / "results", dir_name=args.dir_name,
                                data_dir=args.data_dir or folder, use_cache=bool(args.data_dir))
        total, busy = time.perf_counter() - started, time.process_time() - busy
        reached = {name: values["mean"] for name, values in summary.statistics(read_run(run)[1]).items()
                   if name.endswith(("_success", "_acc", "score"))}
    clock.add("other", total - sum(clock.seconds.values()), busy - sum(clock.busy.values()))
    print(f"{args.edits} edits of {args.ds_name} into {args.model_name} by {args.alg_name}, {args.threads} threads")
    print(f"{'':18}{'seconds':>9}{'of all':>9}{'processor':>11}{'largest memory until then':>28}")
    for step, seconds in clock.seconds.items():
        print(f"{step:18}{seconds:9.1f}{100 * seconds / total:8.1f}%{clock.busy[step]:11.1f}{clock.memory[step]:24.0f} MiB")
    print(f"{'all':18}{total:9.1f}{100:8.1f}%{busy:11.1f}{max(clock.memory.values()):24.0f} MiB")
    print("reached: " + ", ".join(f"{name} {value:.1f}" for name, value in reached.items()))
    measured = {"seconds": clock.seconds, "processor_seconds": clock.busy, "memory_mib": clock.memory,
                "total": total, "reached": reached, "threads": args.threads}
    if args.out:
        run_folder.write_json(Path(args.out), measured)
    return measured


