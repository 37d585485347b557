"""Metrics of sampled texts equal the published ones; sampling is reproducible case by case."""

import json
from unicodedata import normalize

import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

import data
from data import snippets as attribute_snippets
from data import tfidf
from experiments.metrics import generation


@pytest.fixture(scope="module")
def snippets(golden):
    return attribute_snippets.from_records(json.loads((golden / "attribute_snippets.json").read_text()), "golden")


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_gptj"])
def test_equal_to_the_published_metrics(name, request, golden, snippets):
    """With greedy decoding, the golden files' choice."""
    model, tok = request.getfixturevalue(name)
    expected = json.loads((golden / f"metrics_{name.replace('_', '-')}.json").read_text())["gen_pre"]
    records = data.load(golden / "multi_counterfact.json", limit=len(expected))
    vectorizer = tfidf.fitted(snippets).vectorizer
    for ours, theirs in zip(generation.generation_metrics(model, tok, records, snippets, vectorizer, top_k=1), expected):
        assert ours["text"] == theirs["text"]
        assert ours.get("essence_text") == theirs.get("essence_text")
        scores = {key for key in theirs if key in ("ngram_entropy", "reference_score", "essence_score")}
        assert scores == ours.keys() - {"text", "essence_text"}
        for key in scores:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5)


def test_pieces(tiny_gpt2, golden, snippets):
    model, tok = tiny_gpt2
    expected = json.loads((golden / "metrics_tiny-gpt2.json").read_text())
    texts = [piece["text"] for piece in expected["text_pieces"]]
    for key, length in (("perplexity", 100), ("perplexity_len8", 8)):
        computed = generation.perplexities(model, tok, texts, length)
        assert computed == pytest.approx([piece[key] for piece in expected["text_pieces"]], rel=1e-5)
    assert [generation.ngram_entropy(text) for text in texts] == pytest.approx(
        [piece["compute_n_gram_entropy"] for piece in expected["text_pieces"]], rel=1e-12)
    vectorizer = tfidf.fitted(snippets).vectorizer
    for pair in expected["tfidf"]:
        assert generation.cosine(vectorizer, pair["a"], pair["b"]) == pytest.approx(pair["sim"], abs=1e-12)
    greedy = expected["generate_topk1"]
    computed = generation.sample(model, tok, [(0, greedy["prompts"])], top_k=1, max_length=greedy["max_out_len"])
    assert computed == [greedy["texts"][::2]]


def test_texts_of_a_case_depend_on_seed_and_case_alone(tiny_gpt2):
    model, tok = tiny_gpt2
    prompts = ["Orla Venn lives in", "The ferry"]
    together = generation.sample(model, tok, [(3, prompts), (4, prompts), (5, ["Rain fell on Grauwald for"])], seed=7)
    assert generation.sample(model, tok, [(4, prompts)], seed=7) == [together[1]]
    assert together[0] != together[1]
    assert generation.sample(model, tok, [(4, prompts)], seed=8) != [together[1]]
    for text, prompt in zip(together[0], prompts):
        assert text.startswith(prompt)
        assert len(tok(text)["input_ids"]) == pytest.approx(generation.MAX_LENGTH, abs=3)  # tokenised again it may differ


def test_samples_follow_the_model_probabilities(tiny_gpt2):
    """Frequencies of the first sampled token against the renormalised top-k probabilities."""
    model, tok = tiny_gpt2
    prompt, n = "The workshop of", 4000
    ids = tok(prompt)["input_ids"]
    with torch.no_grad():
        top = model(torch.tensor([ids])).logits[0, -1].softmax(-1).topk(5)
    expected = dict(zip(top.indices.tolist(), (top.values / top.values.sum()).tolist()))
    texts = generation.sample(model, tok, [(case, [prompt]) for case in range(n)], max_length=len(ids) + 1)
    counts = dict.fromkeys(expected, 0)
    for (text,) in texts:
        counts[next(token for token in expected if text == normalize("NFKD", prompt + tok.decode([token])))] += 1
    for token, share in expected.items():
        assert counts[token] / n == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5 + 1e-3)


def test_sentences_split_without_a_download():
    """Abbreviations and numbers don't end a sentence; so their full stop stays with the word."""
    entropy = generation.ngram_entropy
    assert entropy("Dr. No met Mr. Bond at 3.5 miles. They ran.") == entropy("Dr. No met Mr. Bond at 3.5 miles . They ran .")


def test_prompt_without_room_is_left_as_it_is(tiny_gpt2):
    model, tok = tiny_gpt2
    ((long, short),) = generation.sample(model, tok, [(0, ["The ferry between Nyvik and", "The"])], max_length=3)
    assert long == "The ferry between Nyvik and" and short != "The"


def test_no_vocabulary_in_common():
    vectorizer = TfidfVectorizer().fit(["one two", "three four"])
    assert generation.cosine(vectorizer, "one", "three") == generation.cosine(vectorizer, "unknown", "one") == 0


def test_blank_snippets_have_no_essence(tiny_gpt2, golden):
    (record,) = data.load(golden / "multi_counterfact.json", limit=1)
    samples = [{"name": record.subject, "text": " "}, {"name": "Nyvik", "text": "a port in the north"}]
    pair = {"relation_id": record.relation_id, "target_id": record.target_new.id}
    snippets = attribute_snippets.from_records([{**pair, "samples": samples}], "made up")
    (metrics,) = generation.generation_metrics(*tiny_gpt2, [record], snippets, tfidf.fitted(snippets).vectorizer)
    assert "reference_score" in metrics and not {"essence_text", "essence_score"} & metrics.keys()
