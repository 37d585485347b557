"""Objective values that are kept with an edit, against their definitions."""

import pytest
import torch

import editors
from editors.changes import Dense, LowRank
from editors.closed_form.objective import Goal, objective_distances
from editors.core import covariance
from editors.core.decoder import Decoder
from editors.core.keys import compute_keys
from editors.core.prompts import parse_requests
from editors.core.sites import find_sites, weight_of
from tests.editors.test_contract import HPARAMS, REQUESTS


@pytest.fixture(autouse=True)
def _stats(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KE_STATS_DIR", str(tmp_path_factory.getbasetemp() / "contract_stats"))


@pytest.mark.parametrize("in_first", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_definitions(in_first, dense):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight, corpus_keys, keys, residual, adjusted = random(7, 24), random(24, 90), random(24, 3), random(7, 3), random(24, 3)
    targets, current = random(3, 7), random(3, 7)
    change = LowRank(adjusted, residual) if in_first else LowRank(residual, adjusted)
    change = Dense(change.dense()) if dense else change
    goal = Goal.of(keys, residual, adjusted, targets, current)
    distances = objective_distances(goal, change, weight.T if in_first else weight, in_first, corpus_keys @ corpus_keys.T / 90)
    new = weight + residual @ adjusted.T
    expected = {
        "preservation_distance": ((new - weight) @ corpus_keys).square().sum(0).mean().sqrt(),
        "new_edit_distance": (new @ keys - (weight @ keys + residual)).norm(dim=0).mean(),
        "old_edit_distance": residual.norm(dim=0).mean(),
        "delta_norm": (new - weight).norm(), "new_weights_norm": new.norm(), "original_weights_norm": weight.norm(),
    }
    expected = {key: float(value) for key, value in expected.items()}
    assert {key: distances[key] for key in expected} == pytest.approx(expected, rel=1e-9)
    assert distances["inside_norms"] == pytest.approx({
        "zs_norm": float(targets.norm(dim=1).mean()), "cur_zs_norm": float(current.norm(dim=1).mean()),
        "layer_ks_norm": float(keys.norm(dim=0).mean()), "residual_norm": float(residual.norm(dim=0).mean()),
        "adj_norm": float(adjusted.norm(dim=0).mean())}, rel=1e-9)
    assert objective_distances(goal, change, weight.T if in_first else weight, in_first)["preservation_distance"] is None


def test_what_edits_tell(tiny_gpt2):
    """The exact constraint has distance 0, a soft one less than no edit at all; RECT's is that of what it writes."""
    model, tok = tiny_gpt2
    tell = {"layers": [2], "calculate_objective_value": True}
    distances_of = {}
    for name, requests, more in (("EMMET", REQUESTS[:1], {}), ("EMMET", REQUESTS, {"emmet_lambda": 0}), ("EMMET", REQUESTS, {}),
                                 ("AlphaEdit", REQUESTS, {}), ("MEMIT_rect", REQUESTS, {})):
        edit = editors.load(name, HPARAMS[name] | tell | more).edit(model, tok, requests, progress=False)
        (distances,) = edit.info["objective_distances"].values()
        (delta,) = edit.deltas().values()
        distances_of[name, len(requests), *more] = distances
        assert distances["delta_norm"] == pytest.approx(float(delta.norm()), rel=1e-5)
        # The definition, on the keys themselves.
        sites = find_sites(model)
        moment = covariance.collect(
            Decoder(model, tok, sites), [2], covariance.MomentSpec(HPARAMS[name]["mom2_dataset"], 400))[2].matrix.double()
        change = delta.double().T if weight_of(model, sites, 2)[2] else delta.double()
        moved = float(torch.trace(change @ moment @ change.T).sqrt())
        assert distances["preservation_distance"] == pytest.approx(moved, rel=1e-4)
    for exact in (("EMMET", 1), ("EMMET", 2, "emmet_lambda")):
        assert distances_of[exact]["new_edit_distance"] < 1e-4 * distances_of[exact]["old_edit_distance"]
    for soft in (("EMMET", 2), ("AlphaEdit", 2), ("MEMIT_rect", 2)):
        assert 1e-3 < distances_of[soft]["new_edit_distance"] / distances_of[soft]["old_edit_distance"] < 1


def test_keys_and_norms_are_the_layers(tiny_gpt2):
    model, tok = tiny_gpt2
    editor = editors.load("MEMIT", HPARAMS["MEMIT"])
    contexts = [["{}"], ["So. {}"]]
    distances = editor.edit(model, tok, REQUESTS, context_templates=contexts, progress=False).info["objective_distances"]
    assert list(distances) == ["1", "2"] and all(of_layer["preservation_distance"] is None for of_layer in distances.values())
    requests = parse_requests(REQUESTS, tok)
    keys = compute_keys(Decoder.of(model, tok), requests, [1], contexts, "subject_last")[1]
    assert distances["1"]["inside_norms"]["layer_ks_norm"] == pytest.approx(float(keys.norm(dim=1).mean()), rel=1e-6)
    weight = weight_of(model, find_sites(model), 1)[1]
    assert distances["1"]["original_weights_norm"] == pytest.approx(float(weight.norm()), rel=1e-6)
