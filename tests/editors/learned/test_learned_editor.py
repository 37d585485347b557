"""MEND, KE and ENN on requests: batches add up, statistics stay, step sizes go by name, edits follow one another."""

import copy

import pytest
import torch

from common.errors import UserError
from editors.core.recall import recall
from editors.learned.algorithms import algorithm
from editors import EditSequence
import editors
from editors.learned import checkpoint
from editors.learned.learned_editor import LearnedHParams, trained_folder
from tests.conftest import relative
from tests.editors.learned.trained import INNER, OPTIONS, trained
from tests.editors.test_contract import bits, REQUESTS, same

NAMES = {"MEND": "mend", "KE": "efk", "ENN": "enn"}


@pytest.fixture(scope="module")
def trained_editors(tiny_gpt2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("editors")
    return {name: trained(alg, *tiny_gpt2, folder, iterations=20) for name, alg in NAMES.items()}


def load(trained_editors, name, **options):
    return editors.load(name, {"checkpoint": str(trained_editors[name][1]), **options})


def many(n):
    return [
        {
            "prompt": "{} number " + str(i) + " lives in",
            "subject": f"Orla {i}",
            "target_new": {"str": "Castavel" if i % 3 else "Nyv"},
        }
        for i in range(n)
    ]


def test_three_hundred_requests_are_one_batch(trained_editors, tiny_gpt2):
    """In parts of 128, and all of them count; the published code kept the last part only."""
    requests, statistics = many(300), trained_editors["MEND"][0].state()["mend.(256, 64).k"].clone()
    editor = load(trained_editors, "MEND")
    parts = editor.edit(*tiny_gpt2, requests).deltas()
    whole = load(trained_editors, "MEND", chunk=300).edit(*tiny_gpt2, requests).deltas()
    assert all(relative(parts[n], whole[n]) < 1e-4 for n in INNER)
    last = load(trained_editors, "MEND").edit(*tiny_gpt2, requests[256:]).deltas()
    published = load(trained_editors, "MEND", legacy_last_chunk_only=True).edit(*tiny_gpt2, requests).deltas()
    assert all(torch.equal(published[n], last[n]) and relative(last[n], whole[n]) > 0.1 for n in INNER)
    assert torch.equal(editor._loaded[1].net.mend["(256, 64)"].k, statistics)


def test_published_statistics_begin_anew(trained_editors, tiny_gpt2):
    editor = load(trained_editors, "MEND", legacy_train_mode_stats=True)
    editor.edit(*tiny_gpt2, REQUESTS)
    first = editor._loaded[1].net.mend["(256, 64)"].k.item()
    editor.edit(*tiny_gpt2, REQUESTS)
    trained_count = trained_editors["MEND"][0].state()["mend.(256, 64).k"].item()
    assert editor._loaded[1].net.mend["(256, 64)"].k.item() == 2 * first < trained_count


def test_step_sizes_belong_to_names(tiny_gpt2, tmp_path):
    """The order of inner_params is not the model's own: each weight moves by the step size that stands for it."""
    model, tok = tiny_gpt2
    assert [n for n, _ in model.named_parameters() if n in INNER] != INNER
    alg = algorithm("mend").build(model, INNER, {"norm": False, "rank": 2})
    with torch.no_grad():
        alg.net.edit_lrs.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))
    checkpoint.save(tmp_path / "one.safetensors", alg, {})
    deltas = editors.load("MEND", {"checkpoint": str(tmp_path / "one.safetensors")}).edit(model, tok, REQUESTS).deltas()
    assert [name for name, delta in deltas.items() if delta.any()] == [INNER[1]]


@pytest.mark.parametrize("name", NAMES)
def test_the_edit_is_the_trained_editor_s(trained_editors, tiny_gpt2, name):
    """Applied to the model, the Edit gives the logits of the edited Editable; factors where there are any."""
    model, tok = tiny_gpt2
    editor, alg = load(trained_editors, name), trained_editors[name][0]
    edit = editor.edit(model, tok, REQUESTS)
    batch, condition = editor._batches(model, tok, alg, editors.core.prompts.parse_requests(REQUESTS, tok))
    with torch.no_grad():
        expected = alg.eval().edit(batch, condition, detach_history=True)[0](batch)
    with edit.applied(model), torch.no_grad():
        assert relative(model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits, expected) < 1e-5
        recalled = recall(model, tok, editors.core.prompts.parse_requests(REQUESTS, tok))
    assert edit.info["target_probability"] == recalled.probability and edit.info["reached"] == recalled.said
    if name != "ENN":
        assert all(isinstance(edit.changes[n], editors.LowRank) for n in INNER if "c_fc" in n)
    half = load(trained_editors, name, lr_scale=0.5).edit(model, tok, REQUESTS)
    if name != "ENN":
        assert all(relative(half.deltas()[n], 0.5 * edit.deltas()[n]) < 1e-5 for n in INNER)


@pytest.mark.parametrize("name", NAMES)
def test_sequences(trained_editors, tiny_gpt2, name):
    """Each edit is made on what the earlier ones left, and a restored sequence goes on."""
    model, tok = copy.deepcopy(tiny_gpt2[0]), tiny_gpt2[1]
    before = bits(model)
    sequence = EditSequence(load(trained_editors, name), model, tok)
    for request in REQUESTS:
        sequence.edit([request])
    after = bits(model)
    second = load(trained_editors, name).edit(model, tok, REQUESTS[:1])
    assert second.changes.keys() == set(INNER)
    alone = load(trained_editors, name).edit(tiny_gpt2[0], tok, REQUESTS[1:]).deltas()
    moved = {n: after[n] - before[n] for n in INNER}
    assert any(relative(moved[n], alone[n]) > 1e-3 for n in INNER)
    sequence.revert()
    assert same(model, before)


def test_wrong_checkpoints(trained_editors, tiny_gpt2, tmp_path, monkeypatch):
    model, tok = tiny_gpt2
    cases = [
        ("KE", {"checkpoint": str(trained_editors["MEND"][1])}, "a trained MEND, not a KE"),
        ("MEND", {"checkpoint": "none.safetensors"}, "no .*MEND/none.safetensors: train .*experiments.train ... export=.*none"),
        ("MEND", {"model_name": "gpt2-xl", "n_toks": 10},
         "no .*/mend-10tok-gpt2-xl.safetensors nor .*/gpt2-xl.safetensors: .*export=.*mend-10"),
        ("MEND", {"model_name": "gpt2-xl", "n_toks": 1, "counterfact": True}, "mend-1tok-counterfact-gpt2-xl.safetensors"),
        ("MEND", {"model_name": "EleutherAI/gpt-j-6B", "n_toks": 10}, "mend-10tok-gpt-j-6b.safetensors"),
        ("KE", {"model_name": "gpt2-xl", "zsre": True}, "efk-1tok-zsre-gpt2-xl.safetensors"),
    ]
    for name, hparams, message in cases:
        with pytest.raises(UserError, match=message) as error:
            editors.load(name, hparams).edit(model, tok, REQUESTS)
        assert "\n" not in str(error.value)
    for hparams, message in (
        ({}, "give checkpoint"),
        ({"checkpoint": "x", "chunk": 0}, "chunk"),
        ({"chekpoint": "x"}, "checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            editors.load("MEND", hparams)
    other = copy.deepcopy(model)
    other.transformer.wpe.weight.data += 1
    for name in NAMES:
        with pytest.raises(UserError, match="another model"):
            load(trained_editors, name).edit(other, tok, REQUESTS)
    monkeypatch.setenv("KE_DATA_DIR", str(tmp_path))
    assert trained_folder() == tmp_path / "learned"
    (tmp_path / "learned" / "MEND").mkdir(parents=True)
    (tmp_path / "learned" / "MEND" / "mine.safetensors").write_bytes(trained_editors["MEND"][1].read_bytes())
    assert editors.load("MEND", {"checkpoint": "mine.safetensors"}).edit(model, tok, REQUESTS).changes
    assert LearnedHParams.of({"checkpoint": "x"}).lr_scale == 1 and OPTIONS


def test_places_of_trained_editors(trained_editors, tmp_path, monkeypatch):
    """A name: among trained editors, then in the shipped folder, never in the current one; a path: there alone."""
    trained, shipped = tmp_path / "learned", tmp_path / "shipped"
    for folder in (tmp_path, shipped):
        folder.mkdir(exist_ok=True)
        (folder / "mine.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    mine = LearnedHParams(checkpoint="mine.safetensors")
    assert mine.file("MEND", trained, [shipped]) == shipped / "mine.safetensors"
    with pytest.raises(UserError, match="MEND/mine.safetensors: train"):
        mine.file("MEND", trained)
    assert LearnedHParams(checkpoint="./mine.safetensors").file("MEND", trained, [shipped]).samefile("mine.safetensors")
    (trained / "MEND").mkdir(parents=True)
    (trained / "MEND" / "mine.safetensors").touch()
    assert mine.file("MEND", trained, [shipped]).parent == trained / "MEND"
    published = LearnedHParams(model_name="EleutherAI/gpt-j-6B", n_toks=10)
    for name in ("EleutherAI_gpt-j-6B.safetensors", "mend-10tok-gpt-j-6b.safetensors"):
        (trained / "MEND" / name).touch()
        assert published.file("MEND", trained, [shipped]).name == name


@pytest.mark.parametrize("name", NAMES)
def test_any_attention_will_do(trained_editors, tiny_gpt2, name):
    """Models load with sdpa, which can't be differentiated twice."""
    model, tok = copy.deepcopy(tiny_gpt2[0]), tiny_gpt2[1]
    model.set_attn_implementation("sdpa")
    deltas = load(trained_editors, name).edit(model, tok, REQUESTS).deltas()
    eager = load(trained_editors, name).edit(*tiny_gpt2, REQUESTS).deltas()
    assert all(relative(deltas[n], eager[n]) < 1e-4 for n in INNER)
