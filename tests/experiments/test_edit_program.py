"""The program that edits one's own facts: its table, what it tells of the cost, what it keeps, and its exit codes."""

import json
import runpy
import shutil
import sys

import pytest

from editors import Edit
from experiments.metrics.answers import _end
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules", "ignore:.*without effect")
FACTS = "prompt,subject,target\n{} plays the,Astrid Skezurd,drum\n{} plays the,Bo,drum\n"
TEMPLATE = ("{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}<answer>{% endif %}")


@pytest.fixture
def start(monkeypatch, capsys, tmp_path):
    """Runs the program on the world's model with FT; returns (exit code, standard output, standard error)."""
    def run(*argv, model="world", **changes):
        values = json.loads((ROOT / "hparams/FT/world.json").read_text())
        (tmp_path / "FT.json").write_text(json.dumps(values | changes))
        flags = ["--model_name", model, "--alg_name", "FT", "--hparams_fname", tmp_path / "FT.json"]
        monkeypatch.setattr(sys, "argv", ["edit", *map(str, [*flags, *argv])])
        code = 0
        try:
            runpy.run_module("experiments.edit", run_name="__main__")
        except SystemExit as ending:
            code = ending.code
        return code, *capsys.readouterr()
    return run


@pytest.fixture
def facts(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text(FACTS)
    return path


def test_a_line_a_fact_and_the_cost(start, facts, tmp_path):
    code, out, _ = start(facts, "--out", tmp_path / "edit.safetensors", "--strict")
    lines = out.splitlines()
    assert code == 0 and lines[0].split("  ")[0] == "prompt" and lines[-1] == f"written: {tmp_path / 'edit.safetensors'}"
    assert lines[1].startswith("Astrid Skezurd plays the") and lines[1].endswith("yes") and "drum" in lines[1]
    assert "2 of 2 facts reached" in lines
    assert "of 192 likeliest next tokens in the model's own texts are others now" in out
    assert "perplexity of the model's own texts: " in out
    info = Edit.load(tmp_path / "edit.safetensors").info
    assert [fact["subject"] for fact in info["facts"]] == ["Astrid Skezurd", "Bo"] and info["chat"] is False


def test_what_was_not_reached(start, facts):
    few = {"num_steps": 1, "lr": 1e-9}
    code, out, _ = start(facts, "--strict", **few)
    assert code == 1 and "0 of 2 facts reached" in out
    assert start(facts, **few)[0] == 0


def test_facts_that_shall_stay_and_a_text(start, facts, tmp_path):
    (tmp_path / "stay.jsonl").write_text(json.dumps({"prompt": "{} is", "subject": "Cy", "target": "tall"}))
    (tmp_path / "text.txt").write_text("All is well in the end of it.")
    code, out, _ = start(facts, "--check", tmp_path / "stay.jsonl", "--text", tmp_path / "text.txt")
    assert code == 0 and "nearby: of 1 facts to be kept the model said 0 before, and still says 0 of these" in out
    assert "perplexity of the text: " in out


def test_chat(start, tmp_path):
    chatty = tmp_path / "chatty"
    shutil.copytree(ROOT / "data/world/checkpoint", chatty)
    fact = ("--fact", "What does {} play?", "Ann", "drum")
    code, _, err = start(*fact, "--chat", model=chatty)
    assert code == 2 and f"--chat: the tokenizer of {chatty} has no chat template" in err
    config = json.loads((chatty / "tokenizer_config.json").read_text())
    (chatty / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    code, out, _ = start(*fact, "--chat", "--out", tmp_path / "edit.safetensors", model=chatty)
    assert code == 0 and "What does Ann play?" in out and "<answer>" not in out
    info = Edit.load(tmp_path / "edit.safetensors").info
    assert info["chat"] is True and info["facts"][0]["prompt"] == "What does {} play?"


@pytest.mark.parametrize("argv, message", [
    ((), "no facts: name a file, or give --fact"),
    (("--fact", "{} is", "Ann", " "), "the target is empty"),
    (("--fact", "Ann is", "Ann", "tall"), "needs exactly one"),
    (("--fact", "{} is", "Ann", "tall", "--fact", "{} is", "Ann", "tall"), "'Ann is' is there twice"),
    (("--fact", "{} is", "Ann", "tall", "--fact", "{} is", "Ann", "old"), "'Ann is' says 'tall' and 'old'"),
    (("none.csv",), "none.csv: no such file"),
    (("--fact", "{} is", "Ann", "tall", "--text", "none.txt"), "--text none.txt: can't be read"),
    (("--fact", "{} is", "Ann", "tall", "--out", "/dev/null"), "is there already"),
    (("--fact", "{} is", "Ann", "tall", "--alg_name", "MEMET"), "did you mean 'MEMIT'?"),
])
def test_mistakes(start, argv, message):
    code, out, err = start(*argv)
    assert code == 2 and message in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize("before, text, answer", [
    ("drum", "drum.", None), ("drum.", "drum. She", "drum."), ("D.", "D.C", None), ("3.", "3.5", None),
    ("drum", "drum\nShe", "drum"),
    ("东京", "东京。", None), ("东京。", "东京。他", "东京。"), ("", "\n", None), ("\n", "\ndrum", None), ("\ndrum", "\ndrum\n", "\ndrum"),
])
def test_the_natural_end(before, text, answer):
    assert (None if _end(before, text) is None else text[: _end(before, text)]) == answer
