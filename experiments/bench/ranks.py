"""`python -m experiments.bench ranks -- EVALUATE OPTIONS`: an evaluation in one process and, by torchrun, in several; compared.

    python -m experiments.bench ranks --processes 2 -- --alg_name MEMIT --num_edits 100 --dataset_size_limit 200 \
        --skip_generation_tests

Each process has one thread, so that two of them on two cores have twice the machine that one has. The results must be equal to
the last digit, apart from times. The overhead is the processor's time that several processes take beyond that of one, in
percent: work that is not shared out, exchanges and, where it is said to be included, starting up and loading the model in each
(what a continuation of the finished run takes). Waiting for one another is in the seconds.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.bench.kill import content
from experiments.run.cli import at_least_one, Parser, run_program


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Prints seconds; prints and returns speed-up and overhead. Exits with 1 if the results differ."""
    parser = Parser(prog="python -m experiments.bench ranks", description=__doc__.split("\n\n")[0])
    parser.add_argument("--processes", type=at_least_one, default=2, help="of the run by torchrun (default: %(default)s)")
    parser.add_argument("evaluate", nargs="*", help="options of experiments.evaluate, behind --")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        # Statistics, where an editor needs them, are collected by a first run that is not timed.
        _run(args.evaluate, 1, Path(folder) / "warm")
        measured, contents = [], []
        for processes in (1, args.processes):
            results_dir = Path(folder) / str(len(contents))
            whole = _run(args.evaluate, processes, results_dir)
            run = next(results_dir.glob("*/run_*"))
            contents.append(content(run))
            start_up = _run([*args.evaluate, "--continue_from_run", run.name], processes, results_dir)
            measured.append((whole, tuple(a - b for a, b in zip(whole, start_up))))
            for what, (seconds, busy) in zip(("in all", "without start-up"), measured[-1]):
                print(f"{processes} process{'es' * (processes > 1)}, {what}: {seconds:.1f} s, {busy:.1f} s of the processor")
    if contents[0] != contents[1]:
        raise SystemExit("the results differ")
    ratios = {}
    for what, one, several in zip(("in all", "without start-up"), *measured):
        ratios |= {f"speed-up {what}": one[0] / several[0], f"overhead {what}": 100 * (several[1] / one[1] - 1)}
        print(f"the same results; {what}: speed-up {ratios[f'speed-up {what}']:.2f}, "
              f"overhead {ratios[f'overhead {what}']:.0f} %")
    return ratios


def _run(options: Sequence[str], processes: int, results_dir: Path) -> tuple[float, float]:
    """(seconds, seconds of the processor) of an evaluation. Raises SystemExit if it fails."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    command += ["experiments.evaluate", *options, "--results_dir", str(results_dir)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        print(process.stderr, file=sys.stderr)
        raise SystemExit(process.returncode)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    run_program(main)
