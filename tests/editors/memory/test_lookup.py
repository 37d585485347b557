"""LU: keys, distances and routed rows are the published ones where those are not artefacts; edits accumulate."""

import pytest
import torch

from common.errors import UserError
from editors.learned.algorithms import algorithm
from editors.learned.losses import IGNORED
from editors.memory.lookup import Lookup
from tests.conftest import relative
from tests.editors.learned.conftest import arrays, batch, check_logits, learned_model

MODELS = ["t5-tiny", "bart-tiny", "bert-tiny"]


@pytest.mark.parametrize("name", MODELS)
def test_golden(name):
    z, about = arrays("lu_cache")
    batches = {part: batch(ids) for part, ids in about["batches"][name].items()}
    for run, expected in about["runs"].items():
        if not run.startswith(name):
            continue
        options = {"threshold": expected["threshold"], "onehot_logit": expected["onehot_logit"], "mean_over_padding": True}
        alg = Lookup(learned_model(name), options=options)
        edited, _ = alg.edit(batches["edit_inner"])
        assert relative(edited.keys, z[f"{name}/memory_keys"]) < 1e-5
        distance, place = edited.find(edited.key(batches["edit_outer"]))
        assert distance.tolist() == pytest.approx(expected["min_distance"], rel=1e-5) and place.tolist() == expected["nearest"]
        assert (distance < expected["threshold"]).tolist() == expected["routed"]
        check_logits(alg(batches["edit_outer"]), z, f"{name}/base_logits")
        ours = edited(batches["edit_outer"])
        if name == "bert-tiny":
            if f"{run}/logits" in z:
                check_logits(ours, z, f"{run}/logits")
            continue
        for row, routed in enumerate(expected["routed"]):
            if not routed:
                assert torch.equal(ours[row], alg(batches["edit_outer"])[row])
                continue
            # Published, label -100 is token V - 100, and BART's first label comes round to the last place.
            n = int((batches["edit_inner"]["labels"][place[row]] != IGNORED).sum()) - (name == "bart-tiny")
            n = min(n, ours.shape[1] - (name == "bart-tiny"))
            triples = [t for t in expected["nonzero_time_token_value"][row] if t[0] < n]
            where = [place for place in ours[row].nonzero().tolist() if place[0] < n]
            assert [[time, token, ours[row, time, token].item()] for time, token in where] == triples


def words(texts, answers, kind="t5"):
    """A batch of made-up ids."""
    width = max(map(len, texts))
    ids = torch.tensor([[*t, *[0] * (width - len(t))] for t in texts])
    mask = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in texts])
    longest = max(map(len, answers))
    labels = torch.tensor([[*a, *[IGNORED] * (longest - len(a))] for a in answers])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def test_edits_accumulate_and_padding_does_not_count():
    alg = algorithm("lu").build(learned_model("t5-tiny"), [], {"threshold": 0.01})
    one, two = words([[5, 6, 7]], [[11, 12]]), words([[8, 9, 10, 3, 4]], [[13]])
    edited = alg.edit(one)[0].edit(two)[0]
    both = words([[5, 6, 7], [8, 9, 10, 3, 4]], [[11, 12], [13]])  # the first is padded now
    assert edited(both)[0].argmax(-1).tolist() == [11, 12] and edited(both)[1, 0].argmax() == 13
    other = words([[20, 30, 40]], [[11, 12]])
    assert torch.equal(edited(other), alg(other))
    assert alg.keys is None


def test_decoders_get_the_answer_behind_the_prompt():
    alg = Lookup(learned_model("gpt2-tiny"), options={"threshold": 0.01})
    batch = {"input_ids": torch.tensor([[5, 6, 7, 11, 12]]), "attention_mask": torch.ones(1, 5, dtype=torch.long),
             "labels": torch.tensor([[IGNORED, IGNORED, IGNORED, 11, 12]])}
    edited = alg.edit(batch)[0]
    assert edited(batch)[0, 2:4].argmax(-1).tolist() == [11, 12]
    assert float(edited.score(edited(batch), batch).acc) == 1


def test_bad_options():
    with pytest.raises(UserError, match="threshold"):
        Lookup(learned_model("t5-tiny"), options={"threshold": -1})
