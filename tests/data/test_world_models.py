"""The small models of the world: tokenizers, a tiny training of each kind, resuming, first use."""
import json
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from data.world import CHECKPOINT, lessons, models, small, world
from data.world.generate import generate
from data.world.models import Recipe
from data.world.small import Shape

TINY = Recipe(Shape(1, 32, 64, 2), epochs=20, batch=64, muon_lr=2e-2, adam_lr=2e-2, facts=100, decay=0.3)
EXPECTED = {"t5": (30, 0.9), "bart": (3, 0.0), "bert": (8, 0.4), "blender": (6, 0.0),
            "distilbert": (10, 0.1), "bert-encoder": (6, 0.1)}
"""Kind -> epochs, and the least share that is right after them (chance: claims 1/2, encoders 1/12); little where
that takes longer than a test may."""


@pytest.mark.parametrize("framed", [True, False])
def test_tokenizers_keep_names_whole_and_round_trip(framed):
    tok = small.tokenizer(framed)
    bare, inside = tok("Jordi Delmal", add_special_tokens=False)["input_ids"], tok("It is Jordi Delmal")["input_ids"]
    assert len(bare) == 2 and any(inside[i:i + 2] == bare for i in range(len(inside)))
    assert tok.decode(tok("Què toca l'Ona?")["input_ids"], skip_special_tokens=True).strip() == "Què toca l'Ona?"
    ids = tok(["a b", "a"], padding=True)["input_ids"]
    assert ids[1][-1] == tok.pad_token_id and (ids[0][0] == tok.cls_token_id) == framed
    assert ids[0][-1] == (tok.sep_token_id if framed else tok.eos_token_id)


@pytest.mark.parametrize("kind", list(models.RECIPES))
def test_a_tiny_training_learns_the_facts(kind, tmp_path, capsys):
    epochs, least = EXPECTED[kind]
    shape = replace(TINY.shape, layers=2 if kind == "bert" else 1)
    models.train(kind, tmp_path / kind, replace(TINY, epochs=epochs, shape=shape))
    model, tok = small.load(kind, tmp_path / kind)
    log = json.loads((tmp_path / kind / "training_log.json").read_text())
    assert log["right"] == lessons.measure(kind, model, tok, generate(100)) >= least
    assert log["epochs"][-1]["loss"] < log["epochs"][0]["loss"]
    assert [epoch["epoch"] for epoch in log["epochs"]] == list(range(epochs))
    assert not (tmp_path / kind / "state.safetensors").exists() and '"right"' in capsys.readouterr().out


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path):
    recipe = replace(TINY, epochs=2, warm_epochs=1)
    models.train("t5", tmp_path / "whole", recipe)
    for stop in (1, 2, 3, None):  # the first at the end of an epoch
        models.train("t5", tmp_path / "parts", recipe, stop_after=stop)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    models.train("t5", tmp_path / "other", recipe, stop_after=1)
    with pytest.raises(UserError, match="other settings"):
        models.train("t5", tmp_path / "other", replace(recipe, batch=16))


def test_first_use_trains_and_the_second_finds(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(models.RECIPES, "bert", replace(TINY, epochs=1))
    folder = models.path("bert", tmp_path)
    assert "training the built-in world's bert model" in caplog.text and (folder / small.HEAD).is_file()
    caplog.clear()
    changed = (folder / "model.safetensors").stat().st_mtime_ns
    assert models.path("bert", tmp_path) == folder and not caplog.text
    assert (folder / "model.safetensors").stat().st_mtime_ns == changed
    assert models.path("gpt2") == CHECKPOINT


def test_lessons_are_true():
    base = world()
    subjects = set(base.subjects[:40])
    answers = {(f.subject.en, f.object.en) for f in base.facts}
    sentences = {f"{p.replace('{}', f.subject.en)} {f.object.en}." for f in base.facts for p in f.relation.statements("en")}
    questions = lessons.questions(base, subjects, random.Random(0))
    assert all(any((s.en, answer) in answers and s.en in text for s in subjects) for text, answer in questions)
    for text, label, obj in lessons.claims(base, subjects, random.Random(0)):
        assert (text in sentences) == bool(label) == text.endswith(f" {obj}.")
    for a, b, other, _ in lessons.paraphrases(base, subjects, random.Random(0)):
        assert len({a, b, other}) == 3


@pytest.mark.parametrize("argv, words", [
    (["t5", "--width", "30"], "can't be divided"), (["t5", "--epochs", "0"], "--epochs must be at least 1"),
    (["bert", "--warm_epochs", "99"], "--warm_epochs must be fewer"), (["bert", "--facts", "0"], "--facts must be at least 1")])
def test_bad_flags_end_in_one_line(argv, words, tmp_path):
    with pytest.raises(UserError, match=words):
        models.main([*argv, "--out", str(tmp_path / "m")])
    assert not (tmp_path / "m").exists()


def test_unknown_model():
    with pytest.raises(UserError, match="known are gpt2, t5"):
        models.path("t6")
