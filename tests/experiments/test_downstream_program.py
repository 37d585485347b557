"""``python -m experiments.downstream``: flags, files, edits; a mistake ends in one line with nothing written."""

import json
import re

import pytest
import torch
from models import tiny_model, tiny_tokenizer

from common.errors import UserError
from data.downstream import TASKS, load
from editors.changes import Dense
from editors.edit import Edit
from experiments import downstream
from experiments.downstream import table
from experiments.metrics.downstream import downstream_metrics
from experiments.run import tasks
from experiments.run.cli import run_program
from experiments.run.config import TaskFlags
from experiments.run.models import load_model
from experiments.run.tasks import evaluate_tasks

PUBLISHED_FIGURES = {"correct", "incorrect", "invalid", "total", "f1", "f1_new", "mcc", "time"}


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs the command line; returns (exit code, output, errors)."""
    def start(*argv) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["downstream", "--results_dir", str(tmp_path / "results"), *map(str, argv)])
        capsys.readouterr()
        try:
            run_program(downstream.command)
            code = 0
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()
    return start


def prepare(names, shots="-1", tests=None, source="world"):
    return tasks.prepare(TaskFlags(downstream_tasks=names, number_of_few_shots=shots, number_of_tests=tests), source)


def test_prepared_tasks():
    rte, sst, nli = prepare("rte, sst,nli", "0,3,10", 7)
    assert [run.name for run in (rte, sst, nli)] == ["rte", "sst", "nli"]
    assert [len(run.shots) for run in (rte, sst, nli)] == [0, 3, 10] and {len(run.tests) for run in (rte, sst, nli)} == {7}
    examples = load("sst", "world")
    assert sst.shots == examples[:3] and sst.tests == examples[10:17]
    assert [len(run.shots) for run in prepare("mmlu,cola", "-1")] == [0, 0]
    assert len(prepare("mmlu")[0].tests) == len(load("mmlu", "world")) - 10
    assert rte.settings() != prepare("rte", "1", 7)[0].settings()


def test_tests_are_counted_for_the_asked_tasks_only(realdata):
    folder = realdata / "downstream"
    nli, = prepare("nli", "0", 2479, source=folder)
    assert len(nli.tests) == 2479


def test_files_of_a_run(command, tmp_path):
    code, out, _ = command("--downstream_tasks", "sst,mmlu", "--number_of_few_shots", "2,1", "--number_of_tests", 5)
    assert code == 0 and "results/downstream/run_000" in out and re.search(r"^sst +5 +2 ", out, re.M)
    run = tmp_path / "results" / "downstream" / "run_000"
    assert sorted(path.name for path in run.iterdir()) == ["downstream.json", "mmlu_gen.json", "sst_gen.json"]
    content = json.loads((run / "downstream.json").read_text())
    assert content["results"].keys() == {"sst", "mmlu"} and PUBLISHED_FIGURES <= content["results"]["mmlu"].keys()
    assert content["settings"]["tasks"]["mmlu"]["shots"] == 1 and content["settings"]["gen_len"] == 3
    outputs = json.loads((run / "mmlu_gen.json").read_text())
    assert len(outputs) == 5 and outputs[0]["input_prompt"].count("Question: ") == 2

    model, tok = load_model("world", device="cpu")
    examples = load("mmlu", "world")
    figures, again = downstream_metrics(model, tok, "mmlu", examples[:1], examples[10:15])
    assert json.loads(json.dumps(again)) == outputs
    assert {k: v for k, v in figures.items() if k != "time"} == {
        k: v for k, v in content["results"]["mmlu"].items() if k != "time"}


def test_an_edit_is_in_the_model(command, tmp_path):
    model, _ = load_model("world", device="cpu")
    name = "transformer.h.2.mlp.c_proj.weight"
    delta = torch.randn(model.get_parameter(name).shape, generator=torch.Generator().manual_seed(0))
    Edit({name: Dense(delta)}).save(tmp_path / "edit.safetensors")
    flags = ("--downstream_tasks", "cola", "--number_of_tests", 3)
    assert command(*flags)[0] == command(*flags, "--edit", tmp_path / "edit.safetensors")[0] == 0
    plain, edited = (tmp_path / "results" / "downstream" / name for name in ("run_000", "run_001"))
    first, second = (json.loads((run / "cola_gen.json").read_text()) for run in (plain, edited))
    assert first[0]["input_prompt"] == second[0]["input_prompt"]
    assert abs(first[0]["prob_yes"] - second[0]["prob_yes"]) > 1e-9
    assert first[0]["generated_text"] != second[0]["generated_text"]
    settings = json.loads((edited / "downstream.json").read_text())["settings"]
    assert settings["edit"].endswith("edit.safetensors") and len(settings["edit_sha256"]) == 64


def test_the_model_is_left_as_it_was():
    model, tok = tiny_model("gpt2", n_positions=512).train(), tiny_tokenizer()
    before = {name: p.clone() for name, p in model.named_parameters()}
    figures, _ = evaluate_tasks(model, tok, prepare("cola,sst", "1,0", 3))
    assert model.training and all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    model.eval()
    again, _ = evaluate_tasks(model, tok, prepare("cola,sst", "1,0", 3))
    assert [f["f1_new"] for f in figures.values()] == [f["f1_new"] for f in again.values()]
    assert table(figures).text().count("\n") == 2


@pytest.mark.parametrize(("flags", "message"), [
    ({"--downstream_tasks": "mnli"}, "no task 'mnli'; did you mean 'nli'. there are nli, rte"),
    ({"--downstream_tasks": "sst2"}, "no task 'sst2'; did you mean 'sst'"),
    ({"--downstream_tasks": " , "}, "--downstream_tasks: name one or more tasks"),
    ({"--downstream_tasks": "nli,nli"}, "nli is named 2 times"),
    ({"--number_of_few_shots": "1"}, "--number_of_few_shots 1: 1 for 2 tasks .sst, rte."),
    ({"--number_of_few_shots": "1,2,3"}, "3 for 2 tasks"),
    ({"--number_of_few_shots": "1,two"}, "should be one number a task, separated by commas, or -1"),
    ({"--number_of_few_shots": "1,11"}, "11 for task rte; there are 10 few-shot examples, so give 0 to 10"),
    ({"--number_of_few_shots": "1,-1"}, "-1 for task rte; .* give 0 to 10"),
    ({"--number_of_tests": "211"}, "--number_of_tests 211: task sst has only 210 examples behind its 10 few-shot ones"),
    ({"--number_of_tests": "0"}, "--number_of_tests 0: should be at least 1"),
    ({"--gen_len": "0"}, "--gen_len 0: should be at least 1"),
    ({"--gen_len": "120"}, "task sst, test 0: its question has .* tokens and can't be answered .* context of 128"),
    ({"--downstream_data": "nowhere"}, "nowhere: no such folder of downstream tasks"),
    ({"--edit": "nowhere.safetensors"}, "nowhere.safetensors: no such edit file"),
])
def test_mistakes(command, tmp_path, flags, message):
    flags = {"--downstream_tasks": "sst,rte", **flags}
    code, _, errors = command(*(part for pair in flags.items() for part in pair))
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and re.search(message, lines[0]) and "Traceback" not in errors
    assert not (tmp_path / "results").exists()


def test_a_broken_model_has_no_answers():
    model = tiny_model("gpt2", n_positions=512)
    torch.nn.init.constant_(model.transformer.h[1].mlp.c_proj.weight, torch.nan)
    with pytest.raises(UserError, match="answers are not finite"):
        evaluate_tasks(model, tiny_tokenizer(), prepare("mmlu,sst", "-1", 4))


def test_every_task_runs_without_data():
    model, tok = load_model("world", device="cpu")
    figures, outputs = evaluate_tasks(model, tok, prepare(",".join(TASKS), "-1", 2), gen_len=5)
    assert figures.keys() == outputs.keys() == TASKS.keys() and all(len(o) == 2 for o in outputs.values())
    json.dumps([figures, outputs])
