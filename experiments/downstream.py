"""``python -m experiments.downstream``: what a model, edited or not, can do in the downstream tasks of the papers.

    python -m experiments.downstream --downstream_tasks nli,sst,mmlu --number_of_few_shots 2,3,3 --number_of_tests 20
    python -m experiments.downstream --model_name gpt2-xl --downstream_tasks sst,cola --edit drum.safetensors

Prints a table and makes ``run_<NNN>`` in the results folder: ``downstream.json`` (settings and figures) and for each task
``<task>_gen.json`` (what happened on each example). Figures: :mod:`experiments.metrics.downstream`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import downstream as data
from data.files import sha256
from editors.core.fingerprint import tokenizer_fingerprint
from editors.edit import Edit
from experiments.results import run_folder
from experiments.results.tables import Table
from experiments.run import tasks
from experiments.run.cli import HelpFormatter, Parser, run_program
from experiments.run.config import add_flags, flag, FolderFlags, ModelFlags, TaskFlags
from experiments.run.models import check_readable, identity, load_model


@dataclass(frozen=True, kw_only=True)
class DownstreamConfig(FolderFlags, TaskFlags, ModelFlags):
    """Everything that the program is told."""

    edit: str | Path | None = flag(None, "file of an edit (Edit.save) that is put into the model first")


def table(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    """The figures of :func:`experiments.run.tasks.evaluate_tasks`, a row a task, with 95 % intervals; times 100."""
    header = ["task", "tests", "shots", "accuracy", "invalid", "F1", "MCC", "accuracy (label)", "F1 (label)", "majority", "s"]
    rows = []
    for task, result in figures.items():
        least, most = result["shots"]
        rows.append([task, result["total"], str(most) if least == most else f"{least}-{most}",
                     *(_percent(result, name) for name in ("accuracy", "invalid_rate", "f1", "mcc", "accuracy_new", "f1_new")),
                     f"{100 * result['majority']:.1f}", f"{result['time']:.1f}"])
    return Table(header, rows, words=len(header))


def main(config: DownstreamConfig) -> Path:
    """Evaluates as the command line does (whose help explains the flags), prints the table, returns the run's folder."""
    source = tasks.source_of(config, config.model_name)
    runs = tasks.prepare(config, source, config.data_dir)
    edit = None if config.edit is None else Edit.load(config.edit)
    model, tok = load_model(config.model_name, config.dtype, config.device)
    check_readable(model)
    about = {"model": f"{Path(config.model_name).name}, {identity(model)}", "tokenizer": tokenizer_fingerprint(tok),
             "dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type,
             "edit": config.edit and str(config.edit), "data": str(source or "published"), "gen_len": config.gen_len,
             "legacy_rte_labels": config.legacy_rte_labels, "tasks": {run.name: run.settings() for run in runs},
             **run_folder.provenance()}
    if edit is not None:
        with open(config.edit, "rb") as file:
            about["edit_sha256"] = sha256(file)
        edit.apply(model)
    figures, outputs = tasks.evaluate_tasks(model, tok, runs, config.gen_len, config.legacy_rte_labels)
    print(table(figures).text())
    files = {"downstream.json": {"settings": about, "results": figures}}
    files |= {f"{task}_gen.json": output for task, output in outputs.items()}
    return run_folder.new_run(Path(config.results_dir) / "downstream", files)


def _percent(result: Mapping[str, Any], name: str) -> str:
    low, high = result[f"{name}_ci"]
    return f"{100 * result[name]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def command() -> None:
    parser = Parser(prog="python -m experiments.downstream", description=__doc__.split("\n\n")[0],
                    formatter_class=HelpFormatter)
    add_flags(parser, DownstreamConfig)
    parser.set_defaults(downstream_tasks=",".join(data.TASKS))
    run = main(DownstreamConfig(**vars(parser.parse_args())))
    print(f"results: {run}")


if __name__ == "__main__":
    run_program(command)
