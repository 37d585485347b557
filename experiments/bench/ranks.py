"""`python -m experiments.bench ranks -- EVALUATE OPTIONS`: an evaluation in one process and, by torchrun, in several; compared.

    python -m experiments.bench ranks --processes 2 -- --alg_name MEMIT --num_edits 100 --dataset_size_limit 200 \
        --skip_generation_tests

Each process has one thread, so that two of them on two cores have twice the machine that one has. The results must be equal to the
last digit, apart from times. The overhead is the processor's time that several processes take beyond that of one, in percent:
starting up and loading the model in each, work that is not shared out, and exchanges. Waiting for one another is in the seconds.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.bench.kill import content
from experiments.cli import Parser, at_least_one, run_program


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Prints and returns the seconds, the speed-up and the overhead; exits with 1 if the results differ."""
    parser = Parser(prog="python -m experiments.bench ranks", description=__doc__.split("\n\n")[0])
    parser.add_argument("--processes", type=at_least_one, default=2, help="of the run by torchrun (default: %(default)s)")
    parser.add_argument("evaluate", nargs="*", help="options of experiments.evaluate, behind --")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        # Statistics, where an editor needs them, are collected by a first run that is not timed.
        _run(args.evaluate, 1, Path(folder) / "warm")
        alone, processor_alone = _run(args.evaluate, 1, Path(folder) / "one")
        together, processor_together = _run(args.evaluate, args.processes, Path(folder) / "several")
        found = [content(next(Path(folder, name).glob("*/run_*"))) for name in ("one", "several")]
    if found[0] != found[1]:
        raise SystemExit("the results differ")
    overhead = 100 * (processor_together / processor_alone - 1)
    print(f"one process: {alone:.1f} s, {processor_alone:.1f} s of the processor\n"
          f"{args.processes} processes: {together:.1f} s, {processor_together:.1f} s of the processor; the same results\n"
          f"speed-up {alone / together:.2f}, overhead {overhead:.0f} %")
    return {"alone": alone, "together": together, "overhead": overhead}


def _run(options: Sequence[str], processes: int, results_dir: Path) -> tuple[float, float]:
    """(seconds, seconds of the processor) of an evaluation. Raises SystemExit if it fails."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    command += ["experiments.evaluate", *options, "--results_dir", str(results_dir)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise SystemExit(done.returncode)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    run_program(main)
