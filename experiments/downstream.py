"""``python -m experiments.downstream``: what a model, edited or not, can do in the downstream tasks of the papers.

    python -m experiments.downstream --downstream_tasks nli,sst,mmlu --number_of_few_shots 2,3,3 --number_of_tests 20
    python -m experiments.downstream --model_name gpt2-xl --downstream_tasks sst,cola --edit drum.safetensors

Prints a table and makes ``run_<NNN>`` in the results folder: ``downstream.json`` (settings and figures) and for each task
``<task>_gen.json`` (what happened on each example). Figures: :mod:`experiments.metrics.downstream`.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from data import downstream as data
from data.files import sha256
from editors.core.fingerprint import tokenizer_fingerprint
from editors.edit import Edit
from experiments.metrics.downstream import downstream_metrics
from experiments.results import run_folder
from experiments.run.cli import add_model_flags, HelpFormatter, Parser, run_program
from experiments.run.models import identity, load_model


@dataclass(frozen=True)
class TaskRun:
    """A task to evaluate, checked."""

    name: str
    shots: list[data.Example]
    tests: list[data.Example]

    def settings(self) -> dict[str, Any]:
        """What decides its figures, beside the model, ``gen_len`` and ``legacy_rte_labels``."""
        return {"shots": len(self.shots), "tests": len(self.tests), "sha256": data.fingerprint(self.shots + self.tests)[:16]}


def add_downstream_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that :func:`prepare` and :func:`evaluate_tasks` take."""
    parser.add_argument("--downstream_tasks", help=f"comma-separated, of {', '.join(data.TASKS)}")
    parser.add_argument("--number_of_few_shots", default="-1",
                        help=f"examples in front of a question, 0 to {data.POOL}: one number a task, comma-separated; -1: none")
    parser.add_argument("--number_of_tests", type=int, help="the first so many examples of each task; by default all")
    parser.add_argument("--gen_len", type=int, default=3, help="tokens that the model generates as an answer")
    parser.add_argument("--legacy_rte_labels", action="store_true",
                        help='as published, "False" is right for rte pairs that are entailed')
    parser.add_argument("--downstream_data", help="folder of the tasks' .jsonl, .json or .parquet files, or world; by default "
                        "world for the model world, else downstream in the data folder, which is filled from the hub")


def prepare(
    downstream_tasks: str | None,
    number_of_few_shots: str = "-1",
    number_of_tests: int | None = None,
    gen_len: int = 3,
    downstream_data: str | Path | None = None,
    data_dir: str | Path | None = None,
) -> list[TaskRun]:
    """The tasks that these flags (see :func:`add_downstream_flags`) ask for, with their data, all checked.

    Raises UserError for a flag that doesn't fit, for data that is missing or damaged.
    """
    names = _names(downstream_tasks)
    counts = _shots(number_of_few_shots, names)
    if number_of_tests is not None and number_of_tests < 1:
        raise UserError(f"--number_of_tests {number_of_tests}: should be at least 1")
    if gen_len < 1:
        raise UserError(f"--gen_len {gen_len}: should be at least 1")
    runs = []
    for name, count in zip(names, counts):
        examples = data.load(name, downstream_data, data_dir)
        tests = examples[data.POOL:]
        if number_of_tests is not None and number_of_tests > len(tests):
            raise UserError(f"--number_of_tests {number_of_tests}: task {name} has only {len(tests)} examples behind "
                               f"its {data.POOL} few-shot ones")
        runs.append(TaskRun(name, examples[:count], tests[:number_of_tests]))
    return runs


def evaluate_tasks(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, runs: Sequence[TaskRun], gen_len: int = 3,
    legacy_rte_labels: bool = False,
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """({task: its figures}, {task: what happened on each test}) of a model as it is now, JSON-ready;
    see :func:`experiments.metrics.downstream.downstream_metrics`, also for what it raises."""
    figures, outputs = {}, {}
    with tqdm(total=sum(len(run.tests) for run in runs), desc="downstream", unit="test", leave=False, disable=None) as bar:
        for run in runs:
            bar.set_postfix_str(run.name)
            figures[run.name], outputs[run.name] = downstream_metrics(
                model, tok, run.name, run.shots, run.tests, gen_len, legacy_rte_labels, bar.update)
    return figures, outputs


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of :func:`evaluate_tasks`, a row a task, with 95 % intervals; times 100."""
    header = ["task", "tests", "shots", "accuracy", "invalid", "F1", "MCC", "accuracy (label)", "F1 (label)", "majority", "s"]
    rows = [header]
    for task, result in figures.items():
        least, most = result["shots"]
        rows.append([task, str(result["total"]), str(most) if least == most else f"{least}-{most}",
                     *(_percent(result, name) for name in ("accuracy", "invalid_rate", "f1", "mcc", "accuracy_new", "f1_new")),
                     f"{100 * result['majority']:.1f}", f"{result['time']:.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def main(
    model_name: str = "world", edit: str | Path | None = None, results_dir: str | Path = "results", dtype: str = "auto",
    device: str = "auto", data_dir: str | Path | None = None, gen_len: int = 3, legacy_rte_labels: bool = False,
    downstream_data: str | Path | None = None, **flags: Any,
) -> Path:
    """Evaluates as the command line does (whose help explains the arguments), prints the table, returns the run's folder."""
    source = downstream_data or default_source(model_name)
    runs = prepare(gen_len=gen_len, downstream_data=source, data_dir=data_dir, **flags)
    change = None if edit is None else Edit.load(edit)
    model, tok = load_model(model_name, dtype, device)
    about = {"model": f"{Path(model_name).name}, {identity(model)}", "tokenizer": tokenizer_fingerprint(tok),
             "dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type, "edit": edit and str(edit),
             "data": str(source or "published"), "gen_len": gen_len, "legacy_rte_labels": legacy_rte_labels,
             "tasks": {run.name: run.settings() for run in runs}, **run_folder.provenance()}
    if change is not None:
        with open(edit, "rb") as file:
            about["edit_sha256"] = sha256(file)
        change.apply(model)
    figures, outputs = evaluate_tasks(model, tok, runs, gen_len, legacy_rte_labels)
    print(table(figures))
    files = {"downstream.json": {"settings": about, "results": figures}}
    return run_folder.new_run(Path(results_dir) / "downstream", files | {f"{task}_gen.json": o for task, o in outputs.items()})


def default_source(model_name: str) -> str | None:
    """Where a model's tasks come from if nothing is said: the built-in world's own for its model."""
    return "world" if model_name == "world" else None


def _names(text: str | None) -> list[str]:
    known = ", ".join(data.TASKS)
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if not names:
        raise UserError(f"--downstream_tasks: name one or more tasks, separated by commas; there are {known}")
    for name in names:
        if name not in data.TASKS:
            near = difflib.get_close_matches(name, data.TASKS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"--downstream_tasks: no task {name!r}; {hint}there are {known}")
        if names.count(name) > 1:
            raise UserError(f"--downstream_tasks: {name} is named {names.count(name)} times; name it once")
    return names


def _shots(text: str, names: Sequence[str]) -> list[int]:
    if text.strip() == "-1":
        return [0] * len(names)
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--number_of_few_shots {text!r}: should be one number a task, separated by commas, or -1") from None
    if len(counts) != len(names):
        raise UserError(f"--number_of_few_shots {text}: {len(counts)} for {len(names)} tasks ({', '.join(names)}); "
                           "give one number a task, or -1 for none at all")
    for name, count in zip(names, counts):
        if not 0 <= count <= data.POOL:
            raise UserError(f"--number_of_few_shots {text}: {count} for task {name}; there are {data.POOL} few-shot "
                               f"examples, so give 0 to {data.POOL}")
    return counts


def _percent(result: Mapping[str, Any], name: str) -> str:
    low, high = result[f"{name}_ci"]
    return f"{100 * result[name]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def command() -> None:
    parser = Parser(prog="python -m experiments.downstream", description=__doc__.split("\n\n")[0],
                    formatter_class=HelpFormatter)
    parser.add_argument("--model_name", default="world", help="Hugging Face hub id, local folder, or the built-in world")
    add_downstream_flags(parser)
    parser.set_defaults(downstream_tasks=",".join(data.TASKS))
    parser.add_argument("--edit", help="file of an edit (Edit.save) that is put into the model first")
    parser.add_argument("--results_dir", default="results", help="the results folder")
    parser.add_argument("--data_dir", help="data files; by default KE_DATA_DIR, else ~/.cache/knowledge-editing/data")
    add_model_flags(parser)
    run = main(**vars(parser.parse_args()))
    print(f"results: {run}")


if __name__ == "__main__":
    run_program(command)
