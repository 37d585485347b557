"""zsRE's and CounterFact's metrics equal the teacher-forced arg max, computed plainly, whatever the tokenizer."""

from dataclasses import replace

import pytest
import torch

import data
from common.errors import UserError
from data import counterfact, zsre
from editors.core.prompts import parse_requests, prompt_ids, target_ids
from experiments.metrics.counterfact import counterfact_metrics
from experiments.metrics.zsre import zsre_metrics
from tests.models import TOKENIZERS, taught, tiny_model, tiny_tokenizer, trained_tokenizer

KINDS = [*TOKENIZERS, "llama2"]


def tokenizer(kind):
    return trained_tokenizer(kind) if kind == "llama2" else tiny_tokenizer(kind)


def plain_rows(tok, prompt, target, space=" "):
    """(token ids of the prompt, of the target behind it), from the tokens of the whole text; an EOS at its end is left out."""
    rows = [tok(text)["input_ids"] for text in (prompt, prompt + space + target)]
    row, whole = (ids[:-1] if ids[-1] == tok.eos_token_id else ids for ids in rows)
    assert whole[:len(row)] == row
    return row, whole[len(row):]


def plain(model, row, target):
    """(whether each token of the target is the likeliest one behind those before it, mean negative log-probability)."""
    with torch.no_grad():
        logits = model(torch.tensor([[*row, *target]])).logits[0, len(row) - 1:-1]
    nll = -logits.log_softmax(-1)[range(len(target)), target].mean().item()
    return (logits.argmax(-1) == torch.tensor(target)).tolist(), nll


def zsre_record(answer="Chichester River", loc_ans="the old king", **changes):
    return zsre.parse([{"subject": "Orla", "src": "Where does Orla live?", "rephrase": "In which place is Orla?",
                        "answers": [answer], "loc": "nq question: who rules the sea", "loc_ans": loc_ans, **changes}], "x")[0]


def model_of(tok, **overrides):
    return tiny_model("gpt2", vocab_size=max(len(tok), 320), n_positions=1024, **overrides)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ["Chichester River", "2006", "12 May 1999", "'s-Hertogenbosch"])
def test_a_model_that_says_every_answer(kind, answer):
    """A1: with a decoder that strips the space in front, some of these tokens were counted as wrong, or the run stopped."""
    tok = tokenizer(kind)
    record = zsre_record(answer, loc_ans=answer)
    questions = ["Where does Orla live?", "In which place is Orla?", "nq question: who rules the sea?"]
    rows = [plain_rows(tok, question, answer) for question in questions]
    model = taught(model_of(tok), [(row, [*target, tok.eos_token_id]) for row, target in rows])
    for records in ([record], zsre.with_locality([record], tok)):
        metrics, = zsre_metrics(model, tok, records)
        for group in ("rewrite", "paraphrase", "neighborhood"):
            assert metrics[f"{group}_prompts_correct"] == [True] * len(rows[0][1])
            assert metrics[f"{group}_prompts_generated_exact"] == [True]
    target = {"str": answer}
    rewrite = {"prompt": "Where does {} live?", "subject": "Orla", "target_new": target, "target_true": target}
    raw = {"case_id": 0, "requested_rewrite": rewrite,
           "paraphrase_prompts": questions[1:2], "neighborhood_prompts": questions[2:]}
    metrics, = counterfact_metrics(model, tok, counterfact.parse([raw], "x"))
    for group in ("rewrite", "paraphrase", "neighborhood"):
        assert metrics[f"{group}_prompts_correct"] == metrics[f"{group}_prompts_generated_exact"] == [True]


@pytest.mark.parametrize("kind", KINDS)
def test_real_questions(kind, realdata):
    """200 real records, of which the answers of 28 begin with a digit."""
    tok = tokenizer(kind)
    model, records = model_of(tok), data.load(realdata / "zsre_1000.json", limit=200, tok=tok)
    for record, metrics in zip(records[::10], zsre_metrics(model, tok, records)[::10], strict=True):
        for group, question, answer in (
                ("rewrite", record.prompt.replace("{}", record.subject), record.target_new.str),
                ("paraphrase", record.paraphrase_prompts[0], record.target_new.str),
                ("neighborhood", record.extra["loc"] + "?", record.extra["loc_ans"])):
            assert metrics[f"{group}_prompts_correct"] == plain(model, *plain_rows(tok, question, answer))[0]
    assert sum(record.target_new.str[:1].isdigit() for record in records) >= 20


@pytest.mark.parametrize("kind", KINDS)
def test_counterfact(kind, realdata):
    tok = tokenizer(kind)
    model, records = model_of(tok), data.load(realdata / "counterfact_300.json", limit=4)
    for record, metrics in zip(records, counterfact_metrics(model, tok, records, generated=False)):
        prompts = [record.prompt.format(record.subject)]
        for group, asked in (("rewrite", prompts), ("paraphrase", record.paraphrase_prompts),
                             ("neighborhood", record.neighborhood_prompts)):
            for i, prompt in enumerate(asked):
                measured = {name: plain(model, *plain_rows(tok, prompt, getattr(record, name).str))
                            for name in ("target_new", "target_true")}
                for name, (_, nll) in measured.items():
                    assert metrics[f"{group}_prompts_probs"][i][name] == pytest.approx(nll, rel=1e-4)
                expected = measured["target_true" if group == "neighborhood" else "target_new"]
                assert metrics[f"{group}_prompts_correct"][i] == all(expected[0])


@pytest.mark.parametrize("kind", ["byte_level_bpe", "llama2", "unigram"])
def test_scripts_without_spaces(kind):
    """A2: a model that says "东京。" behind "日本的首都是" was wrong, because a space was put before the target."""
    tok = trained_tokenizer(kind)
    prompts = {"rewrite": "中国的首都是", "paraphrase": "北京大学在", "neighborhood": "日本的首都是"}
    answers = {"rewrite": "北京", "paraphrase": "北京", "neighborhood": "东京"}
    raw = {"case_id": 0, "requested_rewrite": {"prompt": "{}的首都是", "subject": "中国", "target_new": {"str": "北京"},
                                               "target_true": {"str": "东京"}},
           "paraphrase_prompts": [prompts["paraphrase"]], "neighborhood_prompts": [prompts["neighborhood"]]}
    record, = counterfact.parse([raw], "x")
    end = tok("。", add_special_tokens=False)["input_ids"][-1:] if kind != "byte_level_bpe" else tok("。")["input_ids"]
    rows = [(prompt_ids(tok, prompt), [*target_ids(tok, prompt, answers[group]), *end]) for group, prompt in prompts.items()]
    model = taught(model_of(tok), rows)
    metrics, = counterfact_metrics(model, tok, [record])
    for group in prompts:
        assert metrics[f"{group}_prompts_correct"] == metrics[f"{group}_prompts_generated_exact"] == [True]
        nll = metrics[f"{group}_prompts_probs"][0]["target_true" if group == "neighborhood" else "target_new"]
        row, target = prompt_ids(tok, prompts[group]), target_ids(tok, prompts[group], answers[group])
        assert nll == pytest.approx(plain(model, row, target)[1], rel=1e-4)
    request, = parse_requests([record.request()], tok)
    assert request.target_new == "北京"


def test_spaces_around_change_nothing(tiny_gpt2):
    """A3: a target with a space in front or behind and a prompt that ends in one were measured as others."""
    model, tok = tiny_gpt2
    results = []
    for end, target in (("", "Honda"), ("", " Honda"), ("", "Honda "), (" ", "Honda")):
        raw = {"case_id": 0, "requested_rewrite": {
                   "prompt": "{} is made by" + end, "subject": "The car", "target_new": {"str": target},
                   "target_true": {"str": target}},
               "paraphrase_prompts": ["A car is made by" + end], "neighborhood_prompts": ["Cars are made by" + end]}
        results.append(counterfact_metrics(model, tok, counterfact.parse([raw], "x")))
        results[-1] += zsre_metrics(model, tok, [zsre_record(target, rephrase="Who made it?" + end)])
    assert all(result == results[0] for result in results)


def test_an_error_names_the_case():
    tok = tiny_tokenizer("metaspace")
    with pytest.raises(UserError, match="case 0: the target '，北京' tokenises to nothing that the model knows"):
        zsre_metrics(model_of(tok), tok, [zsre_record("，北京")])
    record = zsre_record()
    halves = [data.Prompt("who rules the sea?\ufffd", "，")] * len(target_ids(tok, "who?", "the old king"))
    with pytest.raises(UserError, match="case 0: the target '，' tokenises to nothing that the model knows"):
        zsre_metrics(model_of(tok), tok, [replace(record, neighborhood_prompts=halves)])
