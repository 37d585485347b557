"""`python -m experiments.bench edits`: an evaluation of many edits at once, from nothing, and where its time and memory go.

Runs `experiments.evaluate` in this process with an empty data folder, so that the statistics of the model are collected too, and one batch of
all edits. A clock around the program's own steps tells them apart. Memory is the largest that the process had held by the end of a step.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import editors
from experiments import evaluate, results
from experiments.cli import at_least_one
from experiments.metrics import summary
from experiments.summarize import read_run

MIB = 1 / 2**20 if sys.platform == "darwin" else 1 / 2**10  # of ru_maxrss: bytes there, kilobytes elsewhere


class Clock:
    """Seconds of each step, and the largest memory (MiB) until its end."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, float] = {}

    def add(self, step: str, seconds: float) -> None:
        self.seconds[step] = self.seconds.get(step, 0.0) + seconds
        self.memory[step] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MIB

    def timed(self, step: Callable[[], str], function: Callable) -> Callable:
        """`function`, its time added to the step that `step` names when it begins."""
        def run(*args, **kwargs):
            name, started = step(), time.perf_counter()
            result = function(*args, **kwargs)
            self.add(name, time.perf_counter() - started)
            return result
        return run


@contextmanager
def _clocked(clock: Clock) -> Iterator[None]:
    """Inside, the evaluation's steps are timed."""
    edit = editors.Editor.edit

    def edit_and_tell(self, *args, **kwargs):
        done = edit(self, *args, **kwargs)
        parts = dict(done.info["seconds"])
        total = parts.pop("total")
        for name, seconds in parts.items():
            clock.add({"prepare": "statistics and contexts", "values": "target states", "insert": "keys and solve"}.get(name, name), seconds)
        clock.add("rest of the edit", total - sum(parts.values()))
        return done

    def which() -> str:
        return "metrics after" if "rest of the edit" in clock.seconds else "metrics before"

    with ExitStack() as stack:
        for module, name, step in ((evaluate, "prepare", lambda: "model and data"), (evaluate, "measure", which),
                                   (results, "write_case", lambda: "results")):
            stack.enter_context(mock.patch.object(module, name, clock.timed(step, getattr(module, name))))
        stack.enter_context(mock.patch.object(editors.Editor, "edit", edit_and_tell))
        yield


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Prints seconds and memory by step, and what the edits reached."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench edits", description=__doc__.split("\n\n")[0])
    parser.add_argument("--alg_name", default="MEMIT", help="(default: %(default)s)")
    parser.add_argument("--model_name", default="world", help="(default: %(default)s)")
    parser.add_argument("--hparams_fname", help="by default <model_name>.json")
    parser.add_argument("--ds_name", default="world:10000", help="(default: %(default)s)")
    parser.add_argument("--edits", type=at_least_one, default=10000, help="(default: %(default)s)")
    parser.add_argument("--threads", type=at_least_one, default=torch.get_num_threads(), help="torch threads (default: %(default)s)")
    parser.add_argument("--out", help="write the figures to this .json file, too")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    clock, started = Clock(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        with _clocked(clock):
            run = evaluate.main(args.alg_name, args.model_name, args.hparams_fname, args.ds_name, dataset_size_limit=args.edits,
                                num_edits=args.edits, skip_generation_tests=True, results_dir=Path(folder) / "results", data_dir=folder,
                                dir_name="edits")
        total = time.perf_counter() - started
        reached = {name: values["mean"] for name, values in summary.statistics(read_run(run)[1]).items()
                   if name.endswith(("_success", "_acc", "score"))}
    rest = total - sum(clock.seconds.values())
    clock.add("other", rest)
    print(f"{args.edits} edits of {args.ds_name} into {args.model_name} by {args.alg_name}, {args.threads} threads")
    for step, seconds in clock.seconds.items():
        print(f"{step:26}{seconds:9.1f} s {100 * seconds / total:6.1f} %   {clock.memory[step]:8.0f} MiB at most until then")
    print(f"{'all':26}{total:9.1f} s, {total / args.edits * 1e3:.1f} ms an edit; {max(clock.memory.values()):.0f} MiB at most")
    print("reached: " + ", ".join(f"{name} {value:.1f}" for name, value in reached.items()))
    measured = {"seconds": clock.seconds, "memory_mib": clock.memory, "total": total, "reached": reached, "threads": args.threads}
    if args.out:
        results.write_json(Path(args.out), measured)
    return measured


