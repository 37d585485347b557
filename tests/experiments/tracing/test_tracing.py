"""Causal tracing: scores equal the published program's, and those of a run a cell on every architecture."""

import json

import numpy as np
import pytest
import torch
from transformers import GPT2TokenizerFast

from common.errors import UserError
from data.known import KnownFact
from editors.core.decoder import Decoder
from editors.core.sites import find_sites
from experiments.bench import trace as bench
from editors.core.tracing.averages import CLASSES, LAST_SUBJECT, FactScores, averages, proposal, token_classes
from experiments.tracing.facts import load_facts
from editors.core.tracing.noise import Noise, calibrate, embedding_moments, embedding_std, parse
from editors.core.tracing.passes import Passes
from editors.core.tracing.prompts import TracePrompt, trace_prompts
from editors.core.tracing.scores import KINDS, SEVERED, blocks, default_window, trace, window
from tests.conftest import GOLDEN, golden_models, relative
from tests.models import tiny_model, tiny_tokenizer


def published():
    for name in golden_models("trace"):
        for case in json.loads((GOLDEN / f"trace_{name}.json").read_text())["cases"]:
            yield pytest.param(name, case, id=f"{name}-{case}")


@pytest.mark.parametrize("name, case", list(published()))
def test_scores_equal_published(golden_model, name, case):
    about = json.loads((GOLDEN / f"trace_{name}.json").read_text())
    arrays = np.load(GOLDEN / f"trace_{name}.npz", allow_pickle=False)
    model, tok = golden_model(name)
    assert relative(embedding_std(model, tok, about["subjects_for_std"]), arrays["embedding_std"]) < 1e-6
    published = about["cases"][case]
    prompts = trace_prompts(tok, [KnownFact(0, published["subject"], published["answer"].strip(), published["prompt"])], None)
    assert prompts[0].ids == arrays[f"{case}/input_ids"].tolist()
    assert [prompts[0].start, prompts[0].end] == published["subject_range"]
    scale = about["noise_factor"] * float(arrays["embedding_std"])
    noise = Noise("uniform" if published["uniform_noise"] else "gaussian", scale)
    kind, sites = published["kind"] or "state", find_sites(model)
    (traced,) = trace(Decoder(model, tok, sites), prompts, noise, published["replace"], [kind], published["window"])
    assert traced.correct and tok.decode([traced.answer]) == published["answer"]
    assert relative(traced.scores[kind], arrays[f"{case}/scores"]) < 1e-5
    assert relative(traced.high, published["high_score"]) < 1e-5
    with torch.no_grad():  # published: noise is added in the run that restores nothing, also where it replaces elsewhere
        low = float(Passes(Decoder(model, tok, sites), prompts, noise, False).low[0])
    assert relative(low, published["low_score"]) < 1e-5
    assert relative(traced.low, low) < 1e-6 or published["replace"]


def test_another_answer_is_not_traced(tiny_gpt2):
    model, tok = tiny_gpt2
    prompts = trace_prompts(tok, [KnownFact(0, "Orla Venn", "Lutmere", "Orla Venn lives in the city of"),
                                  KnownFact(1, "Orla Venn", "Nyvia", "Orla Venn lives in the city of")], 128)
    right, wrong = trace(Decoder.of(model, tok), prompts, Noise("gaussian", 0.3))
    assert right.correct and set(right.scores) == set(KINDS) and not wrong.correct and not wrong.scores


FACTS = [KnownFact(0, "Orla Venn", "N", "The native language of Orla Venn is the one"),
         KnownFact(1, "Tamsin", "c", "Tamsin works as a"), KnownFact(2, "Nyvian", "c", "In the city they speak Nyvian")]


@pytest.mark.parametrize("arch", ["llama", "gemma3", "falcon", "opt", "bloom"])
def test_batched_equals_a_run_a_cell(arch):
    model, tok = tiny_model(arch), tiny_tokenizer()
    sites, noise = find_sites(model), Noise("gaussian", 0.5, samples=3)
    prompts = trace_prompts(tok, FACTS, None)
    traced = trace(Decoder(model, tok, sites), prompts, noise, kinds=(*KINDS, *SEVERED), size=2, known_only=False)
    for fact in traced:
        for kind, scores in fact.scores.items():
            last = fact.prompt.end - 1
            assert scores.shape == (len(fact.prompt.ids), sites.layers)
            assert np.isnan(scores).any(1).tolist() == [kind in SEVERED and token != last for token in range(len(scores))]
            for token in {last} if kind in SEVERED else {0, fact.prompt.start, last, len(scores) - 1}:
                for layer in range(sites.layers):
                    low, high = window(layer, 2, sites.layers) if kind in ("mlp", "attn") else (layer, layer + 1)
                    cell = bench.Restored(kind, token, low, high)
                    plain = bench.plain_score(Decoder(model, tok, sites), fact.prompt, noise, fact.answer, cell)
                    assert scores[token, layer] == pytest.approx(plain, rel=2e-5), (kind, token, layer)
        plain = bench.plain_score(Decoder(model, tok, sites), fact.prompt, noise, fact.answer, None)
        assert fact.low == pytest.approx(plain, rel=1e-5)


def test_noise_that_replaces(tiny_gpt2):
    model, tok = tiny_gpt2
    sites, noise = find_sites(model), Noise("gaussian", 0.4)
    prompts = trace_prompts(tok, FACTS[:1], None)
    (traced,) = trace(Decoder(model, tok, sites), prompts, noise, replace_embedding=True, known_only=False)
    place = traced.prompt.end - 1
    cell = bench.Restored("mlp", place, 0, 1)
    plain = bench.plain_score(Decoder(model, tok, sites), traced.prompt, noise, traced.answer, cell, replace=True)
    assert traced.scores["mlp"][place, 0] == pytest.approx(plain, rel=1e-5)
    plain = bench.plain_score(Decoder(model, tok, sites), traced.prompt, noise, traced.answer, None, replace=True)
    assert traced.low == pytest.approx(plain, rel=1e-5)


def test_one_token_alone(tiny_gpt2):
    model, tok = tiny_gpt2
    sites, noise, prompts = find_sites(model), Noise("gaussian", 0.4), trace_prompts(tok, FACTS, None)
    every = trace(Decoder(model, tok, sites), prompts, noise, known_only=False)
    alone = trace(Decoder(model, tok, sites), prompts, noise, kinds=("mlp", "state"), known_only=False, subject_last=True)
    for single, all_tokens in zip(alone, every):
        last = single.prompt.end - 1
        for kind, scores in single.scores.items():
            assert np.allclose(scores[last], all_tokens.scores[kind][last], rtol=1e-5)
            assert np.isnan(np.delete(scores, last, 0)).all()


def test_the_model_is_left_alone(tiny_gpt2):
    model, tok = tiny_gpt2
    before, hooks = [p.clone() for p in model.parameters()], sum(len(m._forward_hooks) for m in model.modules())
    model.train()
    trace(Decoder.of(model, tok), trace_prompts(tok, FACTS, None), Noise("gaussian", 0.4), known_only=False)
    assert model.training and all(map(torch.equal, before, model.parameters()))
    assert sum(len(m._forward_hooks) for m in model.modules()) == hooks
    model.eval()


def test_windows():
    assert [window(layer, 10, 48) for layer in (0, 4, 20, 45, 47)] == [(0, 5), (0, 9), (15, 25), (40, 48), (42, 48)]
    assert window(2, 3, 6) == (1, 4) and window(2, 1, 6) == (2, 3)
    assert [default_window(layers) for layers in (2, 6, 12, 24, 28, 48)] == [1, 1, 3, 10, 10, 10]


def test_blocks_do_not_depend_on_what_is_left(tiny_gpt2, monkeypatch):
    model, tok = tiny_gpt2
    prompts = trace_prompts(tok, FACTS * 30, None)
    whole = list(blocks(prompts, Decoder.of(model, None), 10))
    assert [len(block) for block in whole] == [64, 26] and sum(whole, []) == prompts
    monkeypatch.setattr("editors.core.budget.total_bytes", lambda device: 1)
    assert all(len(block) == 1 for block in blocks(prompts, Decoder.of(model, None), 10))


def test_moments_of_embeddings(tiny_gpt2):
    model, tok = tiny_gpt2
    texts = [tok(text).input_ids for text in ("Orla Venn lives in Lutmere", "Orla Venn", "the city of the city")]
    rows = torch.cat([model.transformer.wte(torch.tensor(ids)) for ids in texts]).double().detach()
    mean, covariance, tokens = embedding_moments(model, texts)
    assert tokens == len(rows) and torch.allclose(mean, rows.mean(0)) and torch.allclose(covariance, rows.T.cov())
    assert embedding_std(model, tok, ["Orla Venn", "Orla Venn"]) == pytest.approx(
        float(model.transformer.wte(torch.tensor(tok("Orla Venn").input_ids * 2)).detach().double().std()))


@pytest.mark.filterwarnings("ignore:the corpus has 312 documents")
@pytest.mark.parametrize("level", ["m", "t5", "u0.5", "0.5", "s2"])
def test_noise_has_the_moments_it_should(tiny_gpt2, golden, level):
    model, tok = tiny_gpt2
    subjects, corpus = ["Orla Venn", "Tamsin Brackholt"], str(golden / "corpus.jsonl")
    noise, measured = calibrate(level, model, tok, subjects, corpus, samples=20000)
    drawn = noise.draw(1, 64)[:, 0]
    assert torch.equal(drawn, noise.draw(1, 64)[:, 0])
    if level in "mt5":
        texts = [json.loads(line)["text"] for line in (golden / "corpus.jsonl").read_text().splitlines()]
        mean, covariance, tokens = embedding_moments(model, (tok(text).input_ids[:128] for text in texts if text.strip()))
        assert measured["tokens"] == tokens
        assert torch.allclose(drawn.mean(0), mean, atol=0.02)
        assert relative(drawn.T.cov(), covariance) < 0.15
        kurtosis = float(((drawn - mean) ** 4).mean() / ((drawn - mean) ** 2).mean() ** 2)
        assert kurtosis > 4 if level == "t5" else kurtosis < 4
    else:
        std = {"u0.5": 0.5 / 3**0.5, "0.5": 0.5}.get(level, 2 * measured.get("embedding_std", 0))
        assert float(drawn.std()) == pytest.approx(std, rel=0.01)
        assert level != "u0.5" or float(drawn.abs().max()) <= 0.5


@pytest.mark.parametrize("level", ["", "x3", "s", "s-1", "s0", "t2", "t", "u", "m3", "0", "nan", "inf", "3s"])
def test_noise_levels(level):
    if level == "s":
        assert parse(level) == ("s", 1.0)
    else:
        with pytest.raises(UserError, match=f"noise level '{level}'"):
            parse(level)


def test_tokens_are_of_one_class():
    assert token_classes((0, 3), 7) == [[0], [1], [2], [3], [4, 5], [6]]
    assert token_classes((1, 2), 3) == [[], [], [1], [], [], [2]]
    assert token_classes((2, 4), 4) == [[2], [], [3], [], [], []]
    for subject, tokens in (((0, 5), 9), ((2, 3), 4)):
        places = sum(token_classes(subject, tokens), [])
        assert sorted(places) == list(range(subject[0], tokens))


def test_averages_and_their_bands():
    rng = np.random.default_rng(0)
    facts = [FactScores((1, 3), 0.9, 0.1 * i, {"mlp": rng.random((5, 4))}) for i in range(6)]
    averaged = averages(facts)
    effects = np.array([fact.scores["mlp"][2] - fact.low for fact in facts])
    assert averaged["indirect_effect"]["mlp"]["mean"][LAST_SUBJECT] == pytest.approx(effects.mean(0))
    assert averaged["indirect_effect"]["mlp"]["band"][LAST_SUBJECT] == pytest.approx(1.96 * effects.std(0, ddof=1) / 6**0.5)
    assert averaged["total_effect"]["mean"] == pytest.approx(0.65) and averaged["facts"] == 6
    assert averaged["facts_of_class"] == [6, 0, 6, 6, 0, 6] and averaged["indirect_effect"]["mlp"]["mean"][1] is None
    assert averages(facts[:1])["total_effect"]["band"] is None
    with pytest.raises(UserError, match="knows none of the facts"):
        averages([])


@pytest.mark.parametrize("curve, peak, around", [
    ([0.4, 0.01, 0.0, 0.0], 0, [0]),
    ([0.1, 0.3, 0.5, 0.4, 0.3, 0.2, 0.1], 2, [1, 2, 3, 4]),
    ([0.3, 0.4, 0.45, 0.5, 0.48, 0.46, 0.44, 0.3], 3, [2, 3, 4, 5, 6]),
    ([0.5, 0.1, 0.4], 0, [0]),
])
def test_proposed_layers(curve, peak, around):
    mean = [curve if place == LAST_SUBJECT else None for place in range(len(CLASSES))]
    assert proposal({"indirect_effect": {"mlp": {"mean": mean}}}) == {"peak": peak, "range": around}


def test_subjects_of_the_published_facts(realdata):
    """The published program decodes token by token and looks for the subject in what that gives."""
    folder = realdata / "gpt2_tokenizer"
    tok = GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    facts = load_facts(str(realdata / "known_1000.json"))
    for fact, prompt in zip(facts, trace_prompts(tok, facts, 1024)):
        ends = np.cumsum([len(tok.decode([i])) for i in prompt.ids])
        if ends[-1] == len(fact.prompt):  # a character of several tokens is not decoded alone
            first = fact.prompt.index(fact.subject)
            assert prompt.start == int(np.argmax(ends > first))
            assert prompt.end == int(np.argmax(ends >= first + len(fact.subject))) + 1


@pytest.mark.parametrize("fact, message", [
    (KnownFact(7, "\u200b", "x", "a \u200bb"), None),
    (KnownFact(7, "Orla", " ", "Orla is"), "known fact 7: its attribute is empty"),
    (KnownFact(7, "Orla", "x", "Orla is " + "very " * 200), "known fact 7: its prompt takes .* but the model has 64 positions"),
])
def test_facts_that_cannot_be_traced(fact, message):
    if message is None:
        assert isinstance(trace_prompts(tiny_tokenizer(), [fact], 64)[0], TracePrompt)
    else:
        with pytest.raises(UserError, match=message):
            trace_prompts(tiny_tokenizer(), [fact], 64)


def test_not_finite(tiny_gpt2):
    model, tok = tiny_gpt2
    with pytest.raises(UserError, match="not finite under noise"):
        prompts = trace_prompts(tok, FACTS[:1], None)
        trace(Decoder.of(model, tok), prompts, Noise("gaussian", float("inf")), known_only=False)


def test_benchmark_compares_what_it_says(capsys, monkeypatch):
    threads = torch.get_num_threads()
    result = bench.main(["--tiny", "--prompts", "1", "--cells", "20", "--threads", "1"])
    assert result["difference"] < 1e-5 and "ratio" in capsys.readouterr().out
    score = bench.plain_score
    monkeypatch.setattr(bench, "plain_score", lambda *args, **kwargs: 1.001 * score(*args, **kwargs))
    with pytest.raises(SystemExit, match="differ by more than"):
        bench.main(["--tiny", "--prompts", "1", "--cells", "2", "--threads", "1"])
    torch.set_num_threads(threads)
