"""The downstream tasks that flags ask for, checked, and what a model does in them.

Figures: :mod:`experiments.metrics.downstream`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import nearest_name, UserError
from data import downstream as data
from experiments.metrics.downstream import downstream_metrics
from experiments.run.config import TaskFlags


@dataclass(frozen=True)
class TaskRun:
    """A task to evaluate, checked."""

    name: str
    shots: list[data.Example]
    tests: list[data.Example]

    def settings(self) -> dict[str, Any]:
        """What decides its figures, beside the model, ``gen_len`` and ``legacy_rte_labels``."""
        return {"shots": len(self.shots), "tests": len(self.tests), "sha256": data.fingerprint(self.shots + self.tests)[:16]}


def prepare(flags: TaskFlags, source: str | Path | None = None, data_dir: str | Path | None = None) -> list[TaskRun]:
    """The tasks that the flags ask for, with their data, all checked. source: where from, see :func:`source_of`.

    Raises UserError for a flag that doesn't fit, for data that is missing or damaged.
    """
    names, tests_of_each = _names(flags.downstream_tasks), flags.number_of_tests
    counts = _shots(flags.number_of_few_shots, names)
    if tests_of_each is not None and tests_of_each < 1:
        raise UserError(f"--number_of_tests {tests_of_each}: should be at least 1")
    if flags.gen_len < 1:
        raise UserError(f"--gen_len {flags.gen_len}: should be at least 1")
    runs = []
    for name, count in zip(names, counts):
        examples = data.load(name, source, data_dir)
        tests = examples[data.POOL:]
        if tests_of_each is not None and tests_of_each > len(tests):
            raise UserError(f"--number_of_tests {tests_of_each}: task {name} has only {len(tests)} examples behind "
                            f"its {data.POOL} few-shot ones")
        runs.append(TaskRun(name, examples[:count], tests[:tests_of_each]))
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


def source_of(flags: TaskFlags, model_name: str) -> str | Path | None:
    """Where a model's tasks come from: by default the built-in world's own for its model, None (published ones) for others."""
    return flags.downstream_data or ("world" if model_name == "world" else None)


def _names(text: str | None) -> list[str]:
    all_tasks = ", ".join(data.TASKS)
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if not names:
        raise UserError(f"--downstream_tasks: name one or more tasks, separated by commas; there are {all_tasks}")
    for name in names:
        if name not in data.TASKS:
            raise UserError(f"--downstream_tasks: no task {name!r}; {nearest_name(name, data.TASKS)}there are {all_tasks}")
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
