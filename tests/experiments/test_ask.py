"""The program that asks a model with and without edits: once, and line by line."""

import io
import json
import runpy
import shutil
import sys

import pytest
import torch

import editors
from experiments.ask import _names, command_line, separated, Session
from experiments.run.models import load_model
from tests.conftest import ROOT
from tests.experiments.test_edit_program import TEMPLATE

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules", "ignore:.*without effect")
FACT = {"prompt": "{} plays the", "subject": "Astrid Skezurd", "target_new": "drum"}


@pytest.fixture(scope="module")
def world():
    return load_model("world")


@pytest.fixture(scope="module")
def saved(world, tmp_path_factory):
    """Files of an edit by FT and of one by LU."""
    folder = tmp_path_factory.mktemp("edits")
    for name in ("FT", "LU"):
        edit = editors.load(name, ROOT / f"hparams/{name}/world.json").edit(*world, [FACT])
        edit.save(folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def session(world, monkeypatch, saved):
    """Makes a session on the model that is in memory already."""
    monkeypatch.setattr("experiments.ask.load_model", lambda *_: world)
    return lambda *argv: Session(separated(command_line().parse_args([*map(str, argv), "--alg_name", "FT"])))


@pytest.fixture
def start(monkeypatch, capsys):
    """Runs the program; returns (exit code, standard output, standard error)."""
    def run(*argv, lines=""):
        monkeypatch.setattr(sys, "argv", ["ask", *map(str, argv)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code = 0
        try:
            runpy.run_module("experiments.ask", run_name="__main__")
        except SystemExit as ending:
            code = ending.code
        return code, *capsys.readouterr()
    return run


@pytest.mark.parametrize("name", ["FT", "LU"])
def test_side_by_side(start, saved, name):
    code, out, _ = start("--edit", saved / f"{name}.safetensors", "Astrid Skezurd plays the", "Liv plays the")
    head, first, second = [[cell.strip() for cell in line.split("  ") if cell] for line in out.splitlines()]
    assert code == 0 and head == ["prompt", "answer", "with the edits"]
    assert first[0] == "Astrid Skezurd plays the" and first[1] != first[2] and first[2].startswith("drum")
    assert second[0] == "Liv plays the"


def test_the_model_stays_what_it_was(session, saved, world):
    before = {name: weight.clone() for name, weight in world[0].state_dict().items()}
    asked = session("--edit", saved / "FT.safetensors", saved / "LU.safetensors")
    assert "drum" in asked.respond("Astrid Skezurd plays the")
    asked.respond("/edit {} plays the | Liv Moren | drum")
    assert all(torch.equal(weight, before[name]) for name, weight in world[0].state_dict().items())


def test_lines(session, tmp_path):
    asked = session()
    plain = asked.respond("Astrid Skezurd plays the")
    assert "without" not in plain and "drum" not in plain
    assert asked.respond("/why") == "no edit: the model answers by itself"
    assert asked.respond("/edit {} plays the | Astrid Skezurd | drum") == "edit 1: FT of 1 fact"
    assert asked.respond("Astrid Skezurd plays the").splitlines() == [f"without: {plain}", "with 1 edit: drum."]
    assert asked.respond("/why") == "edit 1, FT of 1 fact: Astrid Skezurd plays the -> drum"
    assert asked.respond("/why Bo is") == "no edit is about what 'Bo is' names"
    assert asked.respond("/edit {} plays the | Liv Moren | drum") == "edit 2: FT of 1 fact"
    assert asked.respond(f"/save {tmp_path / 'both.safetensors'}") == f"written: {tmp_path / 'both.safetensors'}"
    assert asked.respond("/undo") == "taken out: FT of 1 fact; 1 left"
    again = session("--edit", tmp_path / "both.safetensors")
    assert "with 1 edit: drum" in again.respond("Liv Moren plays the")
    assert again.respond("/why") == "edit 1, FT of 2 facts: Liv Moren plays the -> drum"


def test_scope_of_a_memory(session, saved):
    asked = session("--edit", saved / "LU.safetensors")
    assert asked.respond("/why Astrid Skezurd plays the").startswith(
        "edit 1, LU of 1 fact: in the scope of Astrid Skezurd plays the -> drum (distance 0.0")
    assert ": not in the scope of " in asked.respond("/why The capital of the north lies far from here")


@pytest.mark.parametrize("line, message", [
    ("/nonsense", "no command /nonsense; there are /edit, /undo, /save, /why and /quit"),
    ("/edit Ann is tall", "/edit needs a prompt with {}"),
    ("/edit {} is | Ann | ", "the target is empty"),
    ("/undo", "/undo: there is no edit"),
    ("/save", "/save needs a file's name"),
    ("/save x.safetensors", "/save: there is no edit"),
    ("/why", "/why needs a prompt"),
])
def test_a_mistake_is_a_line_and_the_next_is_read(start, line, message):
    code, out, err = start(lines=f"{line}\nAstrid Skezurd plays the\n/quit\nnever read\n")
    assert code == 0 and err.splitlines()[-1].startswith("error: ") and message in err.splitlines()[-1]
    assert len(out.splitlines()) == 1


def test_chat(start, saved, tmp_path):
    chatty = tmp_path / "chatty"
    shutil.copytree(ROOT / "data/world/checkpoint", chatty)
    code, _, err = start("--chat", "Who?", "--model_name", chatty)
    assert code == 2 and "has no chat template" in err
    config = json.loads((chatty / "tokenizer_config.json").read_text())
    (chatty / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    code, out, _ = start("--chat", "Who?", "--model_name", chatty)
    assert code == 0 and out.splitlines()[1].startswith("Who?")


@pytest.mark.parametrize("argv, message", [
    (("--edit", "none.safetensors", "Who?"), "none.safetensors: no such edit file"),
    (("--edit", "none", "Who?"), "--edit none: no such edit file"),
    ((" ",), "a prompt is empty"),
])
def test_mistakes(start, argv, message):
    code, out, err = start(*argv)
    assert code == 2 and f"error: {message}" in err and not out


def test_an_edit_of_another_model(start, saved, golden):
    code, out, err = start("--edit", saved / "FT.safetensors", "Who?", "--model_name", golden / "tiny-gpt2")
    assert code == 2 and not out and "it was made for another model" in err.splitlines()[-1]
    code, out, err = start("--edit", saved / "LU.safetensors", "Who?", "--model_name", golden / "tiny-gpt2")
    assert code == 2 and not out and "the edit was made for a model of" in err.splitlines()[-1]


@pytest.mark.parametrize("prompt, subject, named", [
    ("Where does ANN live?", "Ann", True), ("Annabel lives", "Ann", False), ("Annabel and Ann", "Ann", True),
    ("", "Ann", False),
])
def test_subjects_are_whole_words(prompt, subject, named):
    assert _names(prompt, subject) is named
