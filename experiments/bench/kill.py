"""`python -m experiments.bench.kill -- EVALUATE OPTIONS`: kill an evaluation at random moments, go on, and compare.

    python -m experiments.bench.kill --times 20 -- --alg_name MEMIT --num_edits 2 --dataset_size_limit 40

The evaluation first runs undisturbed. Then it is started again, killed with SIGKILL at a random moment, continued, killed
again, and so on until it ends; runs that ended before all kills were used are followed by further ones. Every case file of
every disturbed run, and its summary, must equal the undisturbed run's, apart from times.
"""

import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from experiments.results import run_folder, summary
from experiments.results.runs import read_run
from experiments.run.cli import at_least_one, Parser, run_program
from experiments.run.sequences import CHECKPOINT


def main(argv: Sequence[str] | None = None) -> dict[str, int]:
    """Prints and returns the number of kills and of disturbed runs; exits with 1 if a run differs from the undisturbed one."""
    parser = Parser(prog="python -m experiments.bench.kill", description=__doc__.split("\n\n")[0])
    parser.add_argument("--times", type=at_least_one, default=20, help="number of kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("evaluate", nargs="*", help="options of experiments.evaluate, behind --")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        kills = disturb(args.evaluate, args.times, args.seed, Path(folder))
    print(f"{sum(kills)} kills over {len(kills)} runs ({', '.join(map(str, kills))}); "
          "every case and summary equals the undisturbed run's")
    return {"kills": sum(kills), "runs": len(kills)}


def disturb(options: Sequence[str], times: int, seed: int, folder: Path) -> list[int]:
    """The number of kills of each disturbed run, ``times`` in all.

    Raises SystemExit if one of the runs differs from the undisturbed one.
    """
    rng = random.Random(seed)
    started = time.perf_counter()
    _succeeded(_start(options, folder / "undisturbed"))
    longest = time.perf_counter() - started
    expected, cases = content(_only_run(folder / "undisturbed")), _finished(folder / "undisturbed")
    kills: list[int] = []
    while sum(kills) < times:
        results_dir = folder / f"disturbed-{len(kills)}"
        kills.append(0)
        while True:
            # Up to four new case files, then up to an eighth of the run's time: in the work more often than in the start-up.
            moment = (rng.randrange(5), rng.uniform(0, longest / 8)) if sum(kills) < times else None
            process = _start([*options, *_continuation(results_dir)], results_dir, moment)
            if process.returncode != -signal.SIGKILL:
                _succeeded(process)
                break
            kills[-1] += 1
            state = f"run {len(kills)} has {_finished(results_dir)} of {cases} cases"
            print(f"kill {sum(kills)} of {times}: {state}", flush=True)
        disturbed = content(_only_run(results_dir))
        if disturbed != expected:
            names = expected[0].keys() | disturbed[0].keys()
            wrong = [name for name in names if expected[0].get(name) != disturbed[0].get(name)]
            raise SystemExit(f"{results_dir}: differs from the undisturbed run in {', '.join(sorted(wrong)) or 'its summary'}")
    return kills


def content(run: Path) -> tuple[dict[str, Any], dict]:
    """(everything in a run's files by name, summary) without what times and memory it took.

    Of a sequence also what is measured between batches, and every bit of the weights and the memory it ends with.
    """
    files: dict[str, Any] = {path.name: {**run_folder.read_json(path), "time": None} for _, path in run_folder.case_files(run)}
    for path in sorted(run.glob("batches/*.json")):
        files[f"batches/{path.name}"] = _without_times(run_folder.read_json(path))
    for path in sorted(run.glob("history/*.jsonl")):
        files[f"history/{path.name}"] = path.read_text()
    if (run / CHECKPOINT).exists():
        with safe_open(run / CHECKPOINT, "pt") as checkpoint:
            for name in checkpoint.keys():  # noqa: SIM118 (not a mapping)
                content_bytes = checkpoint.get_tensor(name).contiguous().view(torch.uint8).numpy().tobytes()
                files[f"{CHECKPOINT}: {name}"] = hashlib.sha256(content_bytes).hexdigest()
    return files, {**summary.statistics(read_run(run)[1]), "time": None}


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(v) for key, v in value.items() if key not in ("seconds", "phases", "memory_mb", "time")}
    return value


def _start(
    options: Sequence[str], results_dir: Path, moment: tuple[int, float] | None = None
) -> subprocess.CompletedProcess:
    """Runs an evaluation to its end, or kills it ``moment`` = (new case files, further seconds) after its start."""
    command = [sys.executable, "-m", "experiments.evaluate", *options, "--results_dir", str(results_dir)]
    with tempfile.TemporaryFile("w+") as errors:
        before = _finished(results_dir)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        if moment is not None:
            files, seconds = moment
            while process.poll() is None and _finished(results_dir) < before + files:
                time.sleep(0.005)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        if process.wait() not in (0, -signal.SIGKILL):
            errors.seek(0)
            print(errors.read(), file=sys.stderr)
    return subprocess.CompletedProcess(command, process.returncode)


def _succeeded(process: subprocess.CompletedProcess) -> None:
    """Ends this program as the evaluation ended, whose error has been printed, unless it succeeded."""
    if process.returncode:
        raise SystemExit(process.returncode)


def _continuation(results_dir: Path) -> list[str]:
    run = _only_run(results_dir)
    return ["--continue_from_run", run.name] if run else []


def _only_run(results_dir: Path) -> Path | None:
    runs = sorted(results_dir.glob("*/run_*"))
    assert len(runs) <= 1, f"more than one run: {runs}"
    return runs[0] if runs else None


def _finished(results_dir: Path) -> int:
    run = _only_run(results_dir)
    return len(run_folder.case_files(run)) if run else 0


if __name__ == "__main__":
    run_program(main)
