"""Commands of the pages run one after another, as a reader runs them: at small size, on a tiny model."""

import json
import runpy
import sys

import pytest

from tests.docs.pages import commands, PAGES, words
from tests.editors.test_contract import HPARAMS

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules")

SHOWN = {" ".join(words(command)) for page in PAGES for command in commands(page)}
EVALUATIONS = {
    "MEMIT": "--num_edits 10 --dataset_size_limit 10 --save_edits",
    "AlphaEdit": "--num_edits 10 --max_edits 500 --sample_num 0 --sequential --history_eval_steps 10",
}
AFTERWARDS = (
    "experiments.summarize --dir_name MEMIT,AlphaEdit",
    "experiments.report results/MEMIT/run_000 results/AlphaEdit/run_000 --out results/report.html",
    "figures.summary results/MEMIT/run_000 results/AlphaEdit/run_000 --out results/comparison",
    "figures.sequential results/AlphaEdit/run_000 --out results/sequence",
)
EXPORTS = ("--out edit_adapter", "--out edited_world --format checkpoint")
MEMORY = (
    "experiments.memory create facts.memory",
    "experiments.memory add facts.memory 'In which city does Ann Keller live?' Paris",
    "experiments.memory list facts.memory",
    "experiments.memory update facts.memory 0 --label Rome",
    "experiments.memory remove facts.memory 0",
)


@pytest.fixture
def run(monkeypatch):
    """Runs a command of the pages in this process, with more words behind it."""
    def start(command, *more):
        module, *argv = words(command)
        assert " ".join(["python", "-m", module, *argv]) in SHOWN, "no page shows this"
        monkeypatch.setattr(sys, "argv", [module, *argv, *map(str, more)])
        runpy.run_module(module, run_name="__main__")
    return start


def test_from_an_evaluation_to_a_report(run, golden, elsewhere, capsys):
    tiny = f"--model_name={golden / 'tiny-gpt2'}"
    for name, flags in EVALUATIONS.items():
        file = elsewhere / f"{name}.json"
        file.write_text(json.dumps(HPARAMS[name]))
        run(f"experiments.evaluate --alg_name {name} {flags}", tiny, f"--hparams_fname={file}", "--ds_name=world",
            "--num_edits=2", "--max_edits=4", "--skip_generation_tests")
    for command in AFTERWARDS:
        run(command)
    for flags in EXPORTS:
        run(f"experiments.export results/MEMIT/run_000/edits/000000.safetensors --model_name world {flags}", tiny)
    written = {str(path.relative_to(elsewhere)) for path in elsewhere.rglob("*") if path.is_file()}
    assert written >= {"results/summary.md", "results/report.html", "results/comparison.png", "results/sequence_retention.png",
                       "edit_adapter/adapter_model.safetensors", "edited_world/model.safetensors"}


def test_a_memory(run, elsewhere, capsys):
    for command in MEMORY:
        run(command)
    assert "Ann Keller" in capsys.readouterr().out
