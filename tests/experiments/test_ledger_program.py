"""The program of ledgers, from an empty one to the edit of what is left."""

import json
import sys

import pytest

from editors import Edit
from experiments import ledger
from experiments.run.cli import run_program
from tests.conftest import ROOT

FACTS = [("{} has its head office in", "Naluelo", "Qualell"), ("{} is a city in", "Qualell", "Elvania"),
         ("{} lies on the river", "Eruessa", "Teme")]


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    """Runs the program on one ledger; returns (exit code, standard output, standard error)."""
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ledger", str(tmp_path / "ledger"), *map(str, arguments)])
        code = 0
        try:
            run_program(ledger.command)
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()
    return run


def test_from_facts_to_an_edit(program, tmp_path):
    (tmp_path / "facts.json").write_text(json.dumps([dict(zip(("prompt", "subject", "target"), fact)) for fact in FACTS[:2]]))
    hparams, edit = tmp_path / "hparams.json", tmp_path / "edit.safetensors"
    shipped = json.loads((ROOT / "hparams/MEMIT/world.json").read_text())
    hparams.write_text(json.dumps(shipped | {"mom2_n_samples": 200, "v_num_grad_steps": 5}))
    of_world = ("--model_name", "world", "--alg_name", "MEMIT", "--hparams_fname", hparams)
    assert "an empty ledger of MEMIT for world" in program("--create", *of_world)[1]
    assert "2 facts added, 0 there before; 2 in all" in program("--add", tmp_path / "facts.json")[1]
    assert "1 facts added, 0 there before; 3 in all" in program("--fact", *FACTS[2])[1]
    assert program("--remove", 1)[1] == "removed 1: Qualell is a city in -> Elvania\n"
    listed = program("--list")[1]
    assert listed.splitlines() == ["2 facts, MEMIT, world", "     0  Naluelo has its head office in -> Qualell",
                                   "     2  Eruessa lies on the river -> Teme"]
    code, out, _ = program("--apply", edit)
    assert code == 0 and f"written: {edit} (2 facts" in out and Edit.load(edit).info["requests"] == 2
    code, _, error = program("--apply", edit)
    assert code == 2 and error.startswith(f"error: {edit}: is there already") and error.count("\n") == 1


@pytest.mark.parametrize("arguments, message", [
    (("--list",), "holds no ledger"), (("--create",), "--create needs --alg_name and --model_name"),
    (("--list", "--alg_name", "MEMIT"), "--alg_name has no effect without --create"),
    (("--list", "--replace"), "--replace has no effect without --add or --fact"),
    (("--create", "--model_name", "world", "--alg_name", "ROME"), "a ledger solves all facts at once"),
    (("--add", "nowhere.csv"), "nowhere.csv: no such file"), ((), "one of the arguments"),
])
def test_mistakes(program, tmp_path, arguments, message):
    code, out, error = program(*arguments)
    assert code == 2 and message in error and error.count("\n") == 1 and not out
    assert not (tmp_path / "ledger" / "ledger.json").exists()
