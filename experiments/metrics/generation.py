"""Metrics of sampled texts: are they fluent, and do they fit the new fact?"""

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from nltk.tokenize import NLTKWordTokenizer
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.records import Record
from data.snippets import Snippets
from editors.core import ranks
from editors.core.budget import token_budget
from editors.core.modules import longest_context
from editors.core.prompts import pad_id, prompt_ids

from experiments.metrics.incremental import check_length, continue_rows, read, shortened
from experiments.metrics.scoring import ask, Plan

TOP_K = 5
MAX_LENGTH = 100
"""Tokens of a text, its prompt included; also of the essence texts."""

# nltk's word_tokenize, with a sentence splitter that needs no download: Punkt's rules, told the commonest abbreviations.
_punkt = PunktParameters()
_punkt.abbrev_types = {"dr", "mr", "mrs", "ms", "prof", "st", "jr", "sr", "vs", "e.g", "i.e", "u.s", "u.k", "inc", "co"}
_sentences = PunktSentenceTokenizer(_punkt)
_words = NLTKWordTokenizer()


def generation_metrics(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    records: Sequence[Record],
    snippets: Snippets,
    vectorizer: TfidfVectorizer,
    seed: int = 0,
    top_k: int = TOP_K,
) -> list[dict[str, Any]]:
    """Metrics of each record's sampled texts (fluency, consistency, essence drift):

    * ``text``: one sampled continuation of every generation prompt (with the prompt), of :data:`MAX_LENGTH` tokens.
    * ``ngram_entropy``: mean of :func:`ngram_entropy` over the texts, in bits.
    * ``reference_score``: cosine of the tf-idf vectors of all its texts and of all snippets on entities that have the new
      target as their attribute. Raises ``UserError`` if there are none.
    * ``essence_score``: :func:`perplexities` of the snippets on the subject itself (``essence_text``); without such
      snippets both are left out.

    Definitions: Meng et al. 2022, ROME, as the evaluation of MEMIT computes them.
    Records without generation prompts get an empty result.
    """
    texts = sample(model, tok, [(r.case_id, r.generation_prompts) for r in records], seed, top_k)
    results: list[dict[str, Any]] = []
    for record, record_texts in zip(records, texts):
        if not record_texts:
            results.append({})
            continue
        reference = snippets.samples(record.relation_id, record.target_new.id)
        metrics = {
            "ngram_entropy": sum(map(ngram_entropy, record_texts)) / len(record_texts),
            "reference_score": cosine(vectorizer, " ".join(record_texts), " ".join(s.text for s in reference)),
            "text": record_texts,
        }
        essence = [s.text for s in reference if s.name == record.subject]
        if " ".join(essence).strip():
            metrics["essence_text"] = essence
        results.append(metrics)
    with_essence = [metrics for metrics in results if "essence_text" in metrics]
    scores = perplexities(model, tok, [" ".join(metrics["essence_text"]) for metrics in with_essence])
    for metrics, score in zip(with_essence, scores):
        metrics["essence_score"] = score
    return results


def sample(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    cases: Sequence[tuple[int, Sequence[str]]],
    seed: int = 0,
    top_k: int = TOP_K,
    max_length: int = MAX_LENGTH,
) -> list[list[str]]:
    """For each (case id, prompts) one sampled text a prompt, of ``max_length`` tokens with the prompt's, by top-k sampling.

    Seed and case id alone decide a case's random numbers, so its texts do not depend on which other cases run. As
    published, the end-of-text token does not end a text, and is left out of it.
    """
    max_length = min(max_length, longest_context(model) or max_length)
    rows, draws = [], []
    for case_id, prompts in cases:
        generator = torch.Generator().manual_seed(_seed_of(seed, case_id))
        for prompt in prompts:
            rows.append(prompt_ids(tok, prompt))
            draws.append(torch.rand(max_length, generator=generator))
            check_length(model, rows[-1], f"the generation prompt {shortened(prompt)}")
    ids = [list(row) for row in rows]
    order = sorted((i for i, row in enumerate(rows) if len(row) < max_length), key=lambda i: -len(rows[i]))
    group_size = max(1, token_budget(model, most=16384) // max_length)

    def continuations(group: list[int]) -> list[list[int]]:
        prefix, logits = read(model, [rows[i] for i in group], pad_id(tok))
        uniform = torch.stack([draws[i] for i in group]).to(logits.device)

        def choose(logits, alive, step):
            likeliest, tokens = logits.softmax(-1).topk(top_k)
            below = (likeliest / likeliest.sum(-1, keepdim=True)).cumsum(-1)
            drawn = (below < uniform[alive, step, None]).sum(-1, keepdim=True).clamp(max=top_k - 1)
            return tokens.gather(-1, drawn)[:, 0]

        def finished(row, new):
            return len(rows[group[row]]) + len(new) >= max_length

        return continue_rows(model, prefix, logits, choose, finished)

    groups = [order[start:start + group_size] for start in range(0, len(order), group_size)]
    with tqdm(total=len(order), desc="generate", unit="text", leave=False, disable=None) as bar:

        def with_progress(group: list[int]) -> list[list[int]]:
            new_tokens = continuations(group)
            bar.update(len(group))
            return new_tokens

        for group, new_tokens in zip(groups, ranks.each(with_progress, groups)):
            for i, new in zip(group, new_tokens):
                ids[i] += new
    texts = iter([_clean(tok.decode(row, skip_special_tokens=True)) for row in ids])
    return [[next(texts) for _ in prompts] for _, prompts in cases]


def perplexities(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int = MAX_LENGTH
) -> list[float]:
    """The perplexity exp(-(1/N) sum log p) of the first N <= ``max_length`` tokens of each text, at most e^700.

    The sum has N - 1 terms, since nothing predicts the first token; dividing by N is the published definition, and is kept.
    """
    limit = min(max_length, longest_context(model) or max_length)
    rows = [prompt_ids(tok, text)[:limit] for text in texts]
    plan = Plan()
    for row in rows:
        if len(row) > 1:
            plan.score(row[:1], row[1:])
    scores = ask(model, tok, plan).scores
    sums = [scores[row[:1], row[1:]].nll * (len(row) - 1) if len(row) > 1 else 0.0 for row in rows]
    return [math.exp(min(total / len(row), 700)) for total, row in zip(sums, rows)]


def ngram_entropy(text: str) -> float:
    """The n-gram entropy (2/3 H_2 + 4/3 H_3) / 2, H_n that of the n-grams of words (nltk's), in bits; high means varied."""
    words = [word for sentence in _sentences.tokenize(text) for word in _words.tokenize(sentence)]
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def cosine(vectorizer: TfidfVectorizer, text: str, other: str) -> float:
    """Cosine of two texts' tf-idf vectors; 0 if a text has no word of the vocabulary."""
    a, b = vectorizer.transform([text, other])
    return float((a @ b.T).toarray()[0, 0])  # the vectorizer's rows have length 1


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[i:] for i in range(n)))).values()
    total = sum(counts)
    return -sum(count / total * math.log2(count / total) for count in counts)


def _clean(text: str) -> str:
    return unicodedata.normalize("NFKD", text).replace("\n\n", " ")


def _seed_of(seed: int, case_id: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {case_id}".encode()).digest()[:7], "big")
