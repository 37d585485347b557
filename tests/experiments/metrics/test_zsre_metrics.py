"""zsRE's metrics equal the published ones, although an answer's tokens are read in one pass."""

import json

import pytest

import data
from experiments.metrics import incremental, scoring
from experiments.metrics.zsre import zsre_metrics


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_gptj"])
def test_equal_to_the_published_metrics(name, request, golden):
    model, tok = request.getfixturevalue(name)
    expected = json.loads((golden / f"metrics_{name.replace('_', '-')}.json").read_text())["zsre_pre"]
    records = data.load(golden / "zsre_mend_eval.json", tok=tok)
    for ours, theirs in zip(zsre_metrics(model, tok, records), expected, strict=True):
        assert {key: ours[key] for key in theirs} == theirs


def test_generated_is_one_a_question(tiny_gpt2, golden):
    model, tok = tiny_gpt2
    records = data.load(golden / "zsre_mend_eval.json", tok=tok)
    for record, metrics in zip(records, zsre_metrics(model, tok, records)):
        assert len(metrics["neighborhood_prompts_generated"]) == len(metrics["neighborhood_prompts_generated_exact"]) == 1
        assert len(metrics["neighborhood_prompts_correct"]) == len(record.neighborhood_prompts) >= 1


def test_half_a_character_is_read_as_text(tiny_gpt2, golden, monkeypatch):
    """An answer whose tokens split a character: its later prompts hold U+FFFD, so they are rows of their own, and the whole
    characters share the first row again."""
    model, tok = tiny_gpt2
    (record,) = [r for r in data.load(golden / "zsre_mend_eval.json", tok=tok) if "crêpes" in r.extra["loc_ans"]]
    rows, read = [], incremental.read
    monkeypatch.setattr(scoring, "read", lambda model, batch, pad: rows.extend(batch) or read(model, batch, pad))
    zsre_metrics(model, tok, [record])
    broken = [prompt for prompt in record.neighborhood_prompts if "�" in prompt.prompt]
    assert broken
    assert len(rows) < 2 + len(record.neighborhood_prompts)
    assert {tuple(tok(prompt.prompt)["input_ids"]) for prompt in broken} <= set(rows)


def test_equal_to_one_prompt_at_a_time(tiny_gpt2, realdata):
    """On real questions: the published definition, literally."""
    model, tok = tiny_gpt2
    records = data.load(realdata / "zsre_1000.json", limit=8, tok=tok)
    records = [record for record in records if len(tok(record.extra["loc"])["input_ids"]) < 100]
    for record, metrics in zip(records, zsre_metrics(model, tok, records)):
        ids = tok(" " + record.target_new.str)["input_ids"]
        questions = [record.prompt.replace("{}", record.subject), *record.paraphrase_prompts]
        steps = [(q + tok.decode(ids[:i]), tok.decode(ids[i])) for q in questions for i in range(len(ids))]
        steps += [(p.prompt, p.target) for p in record.neighborhood_prompts]
        literal = [model(**tok(text, return_tensors="pt")).logits[0, -1].argmax().item() == tok(token)["input_ids"][0]
                   for text, token in steps]
        assert sum((metrics[f"{group}_prompts_correct"] for group in ("rewrite", "paraphrase", "neighborhood")), []) == literal
