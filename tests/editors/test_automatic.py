"""Editors for models without hyper-parameters of their own, from Python."""

from dataclasses import dataclass

import pytest

from common.errors import UserError
import editors
from editors import automatic


@dataclass
class Fact:
    known_id: int
    subject: str
    attribute: str
    prompt: str


@pytest.fixture
def facts(tiny_gpt2):
    """Two that the model knows."""
    model, tok = tiny_gpt2
    made = []
    for number, subject in enumerate(("Orla Venn", "Tamsin Brackholt")):
        ids = tok(f"{subject} lives in", return_tensors="pt")["input_ids"]
        made.append(Fact(number, subject, tok.decode(model(ids).logits[0, -1].argmax()), f"{subject} lives in"))
    return made


@pytest.mark.parametrize("name, several", [("MEMIT", True), ("MEMIT_seq", True), ("ROME", False), ("FT", False)])
def test_an_editor_for_a_model(tiny_gpt2, facts, monkeypatch, name, several):
    monkeypatch.setattr(automatic, "LEAST", 2)
    traced = automatic.propose(*tiny_gpt2, facts, "here")
    editor = editors.auto(name, *tiny_gpt2, facts)
    assert editor.name == name and editor.hparams.layers == (traced["range"] if several else [traced["peak"]])
    if name == "MEMIT":
        assert editor.hparams.mom2_update_weight == 235  # 256 * 15000 / 16384
        assert editors.auto(name, *tiny_gpt2, facts, v_lr=0.25).hparams.v_lr == 0.25


def test_given_layers_are_not_traced(tiny_gpt2, monkeypatch):
    monkeypatch.setattr(automatic, "propose", lambda *_: pytest.fail("traced"))
    assert editors.auto("MEMIT", *tiny_gpt2, layers=[2, 3]).hparams.layers == [2, 3]
    assert editors.auto("ROME", *tiny_gpt2, layers=[2]).hparams.layers == [2]


def test_the_published_facts_are_the_default(tiny_gpt2, facts, monkeypatch):
    monkeypatch.setattr("data.known_facts", lambda limit: facts[:limit])
    with pytest.raises(UserError, match="the model knows only 2 of the first 2 facts of known_1000, and 10 are needed; give"):
        editors.auto("FT", *tiny_gpt2)


@pytest.mark.parametrize("name, changes, message", [
    ("MENIT", {}, "unknown editor 'MENIT', did you mean 'MEMIT'"), ("SERAC", {}, "there are no values for SERAC, only for"),
    ("MEMIT", {"v_lrr": 1}, "unknown key 'v_lrr', did you mean 'v_lr'"), ("MEMIT", {"v_lr": "x"}, 'v_lr is "x", expected a'),
    ("MEMIT", {"mom2_dataset": "nowhere.txt"}, "corpus nowhere.txt: no such file"),
])
def test_mistakes_are_told_before_the_trace(tiny_gpt2, monkeypatch, name, changes, message):
    monkeypatch.setattr(automatic, "propose", lambda *_: pytest.fail("traced"))
    with pytest.raises(UserError, match=message):
        editors.auto(name, *tiny_gpt2, [], **changes)
