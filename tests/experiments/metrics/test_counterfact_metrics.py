"""CounterFact's metrics equal the published ones, whatever is batched together."""

import json

import pytest
import torch

import data
from data.counterfact import parse
from experiments.metrics import incremental, scoring
from experiments.metrics.counterfact import counterfact_metrics


@pytest.fixture(scope="module")
def records(golden):
    return data.load(golden / "multi_counterfact.json")


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_gptj"])
def test_equal_to_the_published_metrics(name, request, golden, records):
    model, tok = request.getfixturevalue(name)
    expected = json.loads((golden / f"metrics_{name.replace('_', '-')}.json").read_text())["cf_pre"]
    metrics = counterfact_metrics(model, tok, records)
    assert len(metrics) == len(expected) == 12
    for ours, theirs in zip(metrics, expected):
        for group in ("rewrite", "paraphrase", "neighborhood"):
            assert ours[f"{group}_prompts_correct"] == theirs[f"{group}_prompts_correct"]
            for a, b in zip(ours[f"{group}_prompts_probs"], theirs[f"{group}_prompts_probs"], strict=True):
                assert a == pytest.approx(b, rel=1e-4)


def test_a_case_alone_is_a_case_among_others(tiny_gpt2, records):
    model, tok = tiny_gpt2
    together = counterfact_metrics(model, tok, records)[3]
    alone = counterfact_metrics(model, tok, records[3:4])[0]
    for key, values in together.items():
        if key.endswith("probs"):
            for a, b in zip(values, alone[key], strict=True):
                assert a == pytest.approx(b, rel=1e-4)
        else:
            assert values == alone[key]


def test_small_batches_and_logits_in_pieces_change_nothing(tiny_gpt2, records, monkeypatch):
    model, tok = tiny_gpt2
    whole = counterfact_metrics(model, tok, records)
    monkeypatch.setattr("experiments.metrics.incremental.token_budget", lambda model: 40)
    monkeypatch.setattr("experiments.metrics.scoring.logit_rows", lambda model: 1)
    pieces = counterfact_metrics(model, tok, records)
    for a, b in zip(whole, pieces):
        assert a["rewrite_prompts_generated"] == b["rewrite_prompts_generated"]
        for x, y in zip(a["neighborhood_prompts_probs"], b["neighborhood_prompts_probs"], strict=True):
            assert x == pytest.approx(y, rel=1e-4)


def test_neighbourhood_expects_the_true_target_and_attributes_the_new_one(tiny_gpt2, golden):
    model, tok = tiny_gpt2
    raw = json.loads((golden / "multi_counterfact.json").read_text())[0]
    raw["neighborhood_prompts"] = raw["attribute_prompts"] = ["Orla Venn lives in the city of"]  # Lutmere, as the model knows
    (metrics,) = counterfact_metrics(model, tok, list(parse([raw], "test")))
    assert metrics["neighborhood_prompts_correct"] == [True] and metrics["neighborhood_prompts_generated_starts"] == [True]
    assert metrics["attribute_prompts_correct"] == [False] and metrics["attribute_prompts_generated_starts"] == [False]
    assert metrics["attribute_prompts_probs"] == metrics["neighborhood_prompts_probs"]


def test_correct_predictions_are_what_the_model_generates(tiny_gpt2, records):
    """Greedy decoding follows the teacher as long as the teacher is right; so correct implies that generation starts right."""
    model, tok = tiny_gpt2
    correct = 0
    for case in counterfact_metrics(model, tok, records):
        for group in ("rewrite", "paraphrase", "neighborhood", "attribute"):
            lists = (case[f"{group}_prompts_{key}"] for key in ("correct", "generated_starts", "generated_exact"))
            for right, starts, exact in zip(*lists, strict=True):
                assert starts >= exact
                correct += right
                assert not right or starts
    assert correct > 0


def test_the_same_prompt_runs_once(tiny_gpt2, records, monkeypatch):
    model, tok = tiny_gpt2
    rows, read = [], incremental.read
    monkeypatch.setattr(scoring, "read", lambda model, batch, pad: rows.extend(batch) or read(model, batch, pad))
    counterfact_metrics(model, tok, [*records, *records])
    prompts_in_all = sum(1 + len(r.paraphrase_prompts) + len(r.neighborhood_prompts) + len(r.attribute_prompts)
                         for r in records)
    assert len(rows) == len(set(rows)) < prompts_in_all  # even within the golden records neighbours repeat


def test_what_a_long_continuation_contains(tiny_gpt2, golden):
    """The target anywhere in so many greedy tokens, as a plain loop finds it; the other figures stay what they were."""
    model, tok = tiny_gpt2
    raw = json.loads((golden / "multi_counterfact.json").read_text())[0]
    raw["attribute_prompts"] = []
    raw["neighborhood_prompts"] = ["Orla Venn lives in the city of", "The river that flows past Orla Venn, who lives in"]
    (record,) = parse([raw], "test")
    for length in (12, 30):
        plain, longer = (counterfact_metrics(model, tok, [record], contains_length=n)[0] for n in (0, length))
        assert longer == plain | {key: value for key, value in longer.items() if key.endswith("contains")}
        for group, expected in (("rewrite", record.target_new), ("neighborhood", record.target_true)):
            prompts = record.neighborhood_prompts if group == "neighborhood" else [record.prompt.format(record.subject)]
            contained = [expected.str in greedy(model, tok, prompt, length) for prompt in prompts]
            assert longer[f"{group}_prompts_generated_contains"] == contained
    assert longer["neighborhood_prompts_generated_contains"][0]


def greedy(model, tok, prompt, length):
    ids = start = tok(prompt, return_tensors="pt").input_ids
    while ids.shape[1] < length:
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return tok.decode(ids[0, start.shape[1]:], skip_special_tokens=True)
