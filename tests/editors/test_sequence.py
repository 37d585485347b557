"""A sequence of edits: each builds on the last, nothing is forgotten over a restart, the beginning comes back bit by bit."""

import copy
import shutil
from pathlib import Path

import pytest
import torch

from common.errors import UserError
import editors
from editors.core import covariance
from editors.core.key_memory import KeyMemory
from editors.core.solve import factorise
from editors.sequence import EditSequence
from tests.editors.test_contract import bits, HPARAMS, REQUESTS, same, VALUES

IDENTITY = {"of": "this test"}


@pytest.fixture(autouse=True)
def _stats(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KE_STATS_DIR", str(tmp_path_factory.getbasetemp() / "contract_stats"))


@pytest.fixture(params=[*sorted(HPARAMS), "AlphaEdit published"])
def editor(request):
    name, _, solve = request.param.partition(" ")
    return editors.load(name, HPARAMS[name] | ({"solve": solve} if solve else {}))


def sequence_of(editor, loaded):
    return EditSequence(editor, *loaded, progress=False)


def test_a_restart_goes_on_with_the_same_bits(editor, tiny_gpt2, tmp_path):
    before = bits(tiny_gpt2[0])
    whole = sequence_of(editor, tiny_gpt2)
    for request in (*REQUESTS, REQUESTS[0]):
        whole.edit([request])
    whole.close()
    expected = bits(tiny_gpt2[0])
    assert whole.batches == 3 and not same(tiny_gpt2[0], before)
    whole.revert()
    assert same(tiny_gpt2[0], before)

    part = sequence_of(editor, tiny_gpt2)
    part.edit([REQUESTS[0]])
    part.edit([REQUESTS[1]])
    part.save(tmp_path / "checkpoint.safetensors", IDENTITY)
    part.revert()

    # Another process: contexts and statistics of the model are not in memory.
    model, tok = copy.deepcopy(tiny_gpt2[0]), copy.deepcopy(tiny_gpt2[1])
    again = sequence_of(editors.load(editor.name, editor.hparams), (model, tok))
    again.restore(tmp_path / "checkpoint.safetensors", IDENTITY)
    assert again.batches == 2
    again.edit([REQUESTS[0]])
    again.close()
    assert same(model, expected)


def test_distances(tiny_gpt2):
    model, _ = tiny_gpt2
    before = bits(model)
    sequence = sequence_of(editors.load("MEMIT", HPARAMS["MEMIT"]), tiny_gpt2)
    sequence.edit(REQUESTS)
    for name, distances in sequence.distances().items():
        away = (model.get_parameter(name) - before[name]).double().norm().item()
        assert distances["distance_from_original"] == pytest.approx(away / before[name].numel(), rel=1e-6)
        assert distances["relative_distance"] == pytest.approx(away / before[name].double().norm().item(), rel=1e-6)
    assert len(sequence.distances()) == 2
    sequence.revert()


def test_memory_changes_what_comes_after(tiny_gpt2):
    """MEMIT_seq begins like MEMIT; its second edit keeps off the key of the first."""
    moved = {}
    for name in ("MEMIT", "MEMIT_seq"):
        editor = editors.load(name, HPARAMS[name] | {"layers": [2], "mom2_update_weight": 0.01})
        sequence = sequence_of(editor, tiny_gpt2)
        first = sequence.edit([REQUESTS[0]]).deltas()
        second = sequence.edit([REQUESTS[1]]).deltas()
        sequence.revert()
        (parameter,) = first
        moved[name] = first[parameter], second[parameter]
    assert torch.equal(moved["MEMIT"][0], moved["MEMIT_seq"][0])
    assert (moved["MEMIT"][1] - moved["MEMIT_seq"][1]).norm() > 1e-3 * moved["MEMIT"][1].norm()


def test_an_edit_that_is_not_applied_is_not_remembered():
    memory = KeyMemory()
    moment = torch.eye(4, dtype=torch.float64)
    start = memory.at(0, lambda: factorise(moment))
    memory.stage({0: torch.ones(4, 1)})
    memory.stage({0: torch.full((4, 1), 2.0)})
    assert memory.at(0, None) is start
    memory.commit()
    memory.commit()
    lower = memory.at(0, None).lower
    assert torch.allclose(lower @ lower.T, moment + 4, atol=1e-12)


def test_prune_at_the_end(tiny_gpt2):
    """The sequence's whole change is dampened, once, and stands on the original weight."""
    model, _ = tiny_gpt2
    before = bits(model)
    strong = {"layers": [2], "mom2_update_weight": 1e-4, "clamp_norm_factor": 40}
    editor = editors.load("MEMIT_prune", HPARAMS["MEMIT_prune"] | strong)
    sequence = sequence_of(editor, tiny_gpt2)
    sequence.edit(REQUESTS)
    (name,) = sequence.distances()
    change = (model.get_parameter(name).detach() - before[name]).double()
    most = torch.linalg.matrix_norm(before[name].double(), 2)
    values = torch.linalg.svdvals(change)
    assert values[0] > most, "the test needs an edit that is strong enough"
    sequence.close()
    dampened = torch.linalg.svdvals((model.get_parameter(name).detach() - before[name]).double())
    expected = torch.where(values > most, (values / most).log() + most, values)
    assert torch.allclose(dampened[:2], expected.sort(descending=True).values[:2], rtol=1e-4)
    sequence.revert()


def test_wrong_checkpoints(tiny_gpt2, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    sequence = sequence_of(editors.load("FT", HPARAMS["FT"]), tiny_gpt2)
    sequence.edit(REQUESTS)
    sequence.save(path, IDENTITY)
    with pytest.raises(UserError, match="is not what the sequence began with"):
        sequence_of(sequence.editor, tiny_gpt2).restore(path, IDENTITY)
    sequence.revert()
    with pytest.raises(UserError, match="another sequence"):
        sequence_of(sequence.editor, tiny_gpt2).restore(path, {"of": "another"})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated or damaged"):
        sequence_of(sequence.editor, tiny_gpt2).restore(path, IDENTITY)


@pytest.mark.parametrize("alg, other", [("MEMIT", "statistics of block 1"), ("ROME", "statistics of block 2"), ("FT", None)])
def test_other_statistics_are_refused(alg, other, tiny_gpt2, tmp_path, monkeypatch):
    """The corpus has changed since the checkpoint was written."""
    texts = Path(VALUES["mom2_dataset"]).read_text().splitlines()
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(texts[:60]) + "\n")
    hparams = HPARAMS[alg] | ({"mom2_dataset": str(corpus), "mom2_n_samples": 60} if other else {})
    monkeypatch.setenv("KE_STATS_DIR", str(tmp_path / "stats"))

    def begin():
        model, tok = copy.deepcopy(tiny_gpt2[0]), tiny_gpt2[1]  # another process
        return EditSequence(editors.load(alg, hparams), model, tok, progress=False)

    sequence = begin()
    sequence.edit(REQUESTS[:1])
    sequence.save(tmp_path / "checkpoint", IDENTITY)
    begin().restore(tmp_path / "checkpoint", IDENTITY)
    corpus.write_text("\n".join(texts[60:120]) + "\n")
    shutil.rmtree(tmp_path / "stats", ignore_errors=True)
    if other:
        with pytest.raises(UserError, match=f"began with other {other}; put back"):
            begin().restore(tmp_path / "checkpoint", IDENTITY)
    else:
        begin().restore(tmp_path / "checkpoint", IDENTITY)


def test_other_contexts_are_refused(tiny_gpt2, tmp_path):
    editor = editors.load("MEMIT", HPARAMS["MEMIT"])
    sequence = EditSequence(editor, *tiny_gpt2, context_templates=[["{}"], ["So. {}"]], progress=False)
    sequence.save(tmp_path / "checkpoint", IDENTITY)
    with pytest.raises(UserError, match="began with other contexts"):
        sequence_of(editor, tiny_gpt2).restore(tmp_path / "checkpoint", IDENTITY)


def test_dynamic_statistics_follow_the_edits(tiny_gpt2, monkeypatch):
    """With `dynamic` each batch is solved with the moments of the model it meets, and none of them is kept."""
    second_moments = []
    collect_now = covariance.collect_now

    def noted(*args, **kwargs):
        moments = collect_now(*args, **kwargs)
        second_moments.append(moments[2].matrix)
        return moments

    monkeypatch.setattr(covariance, "collect_now", noted)
    hparams = HPARAMS["MEMIT"] | {"dynamic": True, "dynamic_multiplier": 2.5}
    sequence = sequence_of(editors.load("MEMIT", hparams), tiny_gpt2)
    infos = [sequence.edit(REQUESTS).info["statistics"]["2"] for _ in range(2)]
    sequence.revert()
    assert all(info["keys"] == 640 for info in infos)  # ceil(2.5 * 256)
    assert not torch.equal(*second_moments) and torch.allclose(*second_moments, atol=0.1)


@pytest.mark.parametrize("multiplier", [0, -1, float("nan")])
def test_multiplier_must_be_above_0(multiplier):
    with pytest.raises(UserError, match="dynamic_multiplier.*above 0"):
        editors.load("MEMIT", HPARAMS["MEMIT"] | {"dynamic_multiplier": multiplier})


@pytest.mark.parametrize("alg", ["MEMIT", "EMMET", "ROME"])
def test_fewer_keys_than_dimensions(alg, tiny_gpt2):
    few = HPARAMS[alg] | {"dynamic_multiplier": 0.5}
    with pytest.raises(UserError, match="128 keys has rank .* of 256.*relative_ridge"):
        editors.load(alg, few).edit(*tiny_gpt2, REQUESTS, progress=False)
    with pytest.warns(UserWarning, match="rank .* of 256; relative_ridge adds"):
        edit = editors.load(alg, few | {"relative_ridge": 1e-3}).edit(*tiny_gpt2, REQUESTS, progress=False)
    statistics = edit.info["statistics"]["2"]
    assert statistics["keys"] == 128 and statistics["rank"] <= 128 and statistics["ridge"] > 0 and statistics["condition"] > 1e6


def test_alphaedit_warns_of_an_artificial_null_space(tiny_gpt2):
    with pytest.warns(UserWarning, match="128 keys cannot span 256 dimensions"):
        editors.load("AlphaEdit", HPARAMS["AlphaEdit"] | {"dynamic_multiplier": 0.5}).edit(*tiny_gpt2, REQUESTS, progress=False)
