"""Records whose prompts agree with the object: scored as published, and paired rightly."""

import json

import pytest

import data
from experiments.metrics.counterfact import counterfact_metrics
from tests.conftest import load_tiny

GROUPS = ("rewrite", "paraphrase", "neighborhood")


@pytest.fixture(scope="module")
def falcon():
    return load_tiny("memat/tiny-falcon")


@pytest.fixture(scope="module")
def evaluation(golden):
    return json.loads((golden / "memat" / "h_evaluation.json").read_text())


def records(golden, language):
    return data.load(golden / "memat" / f"records_{language}.json", language=language)


@pytest.mark.parametrize("language", ["english", "catalan"])
def test_legacy_pairing_is_the_published_evaluation(falcon, golden, evaluation, language):
    metrics = counterfact_metrics(*falcon, records(golden, language), generated=False, pairing="legacy")
    for ours, theirs in zip(metrics, evaluation[f"clean/{language}/published"], strict=True):
        for group in GROUPS:
            assert ours[f"{group}_prompts_correct"] == theirs[f"{group}_prompts_correct"]
            for a, b in zip(ours[f"{group}_prompts_probs"], theirs[f"{group}_prompts_probs"], strict=True):
                assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("language", ["english", "catalan"])
def test_matched_pairing_asks_each_object_in_its_own_wording(falcon, golden, evaluation, language):
    metrics = counterfact_metrics(*falcon, records(golden, language))
    prefixes = ("", "") if language == "english" else ("new_variant_", "true_variant_")
    for ours, table in zip(metrics, evaluation[f"clean/{language}/full_table"], strict=True):
        for group in GROUPS:
            for_new, for_true = (table[prefix + group] for prefix in prefixes)
            for j, probs in enumerate(ours[f"{group}_prompts_probs"]):
                expected = {"target_new": for_new["nll_new"][j], "target_true": for_true["nll_true"][j]}
                assert probs == pytest.approx(expected, rel=1e-3, abs=1e-5)
            correct = for_true["greedy_true"] if group == "neighborhood" else for_new["greedy_new"]
            assert ours[f"{group}_prompts_correct"] == correct
            assert len(ours[f"{group}_prompts_generated"]) == len(correct)


def test_the_two_pairings_differ_where_the_wording_does(falcon, golden):
    some = [record for record in records(golden, "catalan") if record.prompt != record.true_variant.prompt]
    assert some
    matched, legacy = (counterfact_metrics(*falcon, some, generated=False, pairing=pairing)
                       for pairing in ("matched", "legacy"))
    for a, b in zip(matched, legacy):
        assert a["rewrite_prompts_probs"] != b["rewrite_prompts_probs"]
        assert [len(a[f"{group}_prompts_correct"]) for group in GROUPS] == [1, 2, 10] == [
            len(b[f"{group}_prompts_correct"]) for group in GROUPS]
