"""Hard negatives: for each edit the unrelated inputs that read most like it."""
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from common.errors import UserError
from data.episodes.options import DataOptions
from data.episodes.types import Neighbours

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
Encoder = Callable[[Sequence[str]], np.ndarray]
"""Texts -> one vector a row, of any length."""
_BLOCK = 1024


def encoder(name: str) -> Encoder:
    """The encoder of this name: "words", or a sentence encoder of the hub or a folder (mean of its last hidden states)."""
    return _word_vectors if name == "words" else lambda texts: _sentence_vectors(name, texts)


def nearest(edits: Sequence[str], candidates: Sequence[str], encode: Encoder, options: DataOptions, exclude: int,
            owners: Sequence[int | None] | None = None) -> Neighbours:
    """The hard negatives of each edit: its ``hard_neg_neighbors`` candidates of largest cosine similarity, without the first
    ``exclude``, to be drawn with odds exp(similarity / hard_neg_temp).

    owners: the edit row of each candidate, which is never its own neighbour. Raises UserError when there are too few, or the
    encoder does not load.
    """
    if len(candidates) <= exclude + 1:
        raise UserError(f"hard negatives leave out the {exclude} nearest of {len(candidates)} candidates, which leaves none; "
                        "lower data.hard_neg_exclude")
    vectors = _normed(encode([*edits, *candidates]))
    edit_vectors, candidate_vectors = vectors[:len(edits)], vectors[len(edits):]
    owner = np.full(len(candidates), -1) if owners is None else np.array([-1 if i is None else i for i in owners])
    indices, probabilities = [], []
    for start in range(0, len(edits), _BLOCK):
        block = edit_vectors[start:start + _BLOCK] @ candidate_vectors.T
        for row, similarity in enumerate(block, start):
            similarity[owner == row] = -np.inf
            count = min(options.hard_neg_neighbors, int(np.isfinite(similarity).sum()))
            nearest_first = np.argpartition(-similarity, count - 1)[:count]
            nearest_first = nearest_first[np.lexsort((nearest_first, -similarity[nearest_first]))][exclude:]
            if not len(nearest_first):
                raise UserError(f"data.hard_neg_neighbors {options.hard_neg_neighbors} and data.hard_neg_exclude {exclude} "
                                "leave no hard negatives")
            weights = np.exp((similarity[nearest_first] - similarity[nearest_first[0]]) / options.hard_neg_temp)
            indices.append(nearest_first)
            probabilities.append(weights / weights.sum())
    return Neighbours(indices, probabilities, options.hard_neg_prob)


def _normed(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _word_vectors(texts: Sequence[str]) -> np.ndarray:
    """tf-idf of lower-case words, folded into 1,024 directions by fixed random signs (so that names of any number fit)."""
    word_counts = [Counter(re.findall(r"\w+", text.casefold())) for text in texts]
    document_frequency = Counter(word for counts in word_counts for word in counts)
    rng = np.random.default_rng(0)
    direction = {word: rng.choice((-1.0, 1.0), 1024) for word in sorted(document_frequency)}
    vectors = np.zeros((len(texts), 1024), dtype=np.float32)
    for row, counts in enumerate(word_counts):
        for word, count in counts.items():
            vectors[row] += count * np.log((1 + len(texts)) / (1 + document_frequency[word])) * direction[word]
    return vectors


def _sentence_vectors(name: str, texts: Sequence[str]) -> np.ndarray:
    """Mean over the tokens of an encoder's last hidden states, in batches."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tok = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModel.from_pretrained(name, dtype=torch.float32, trust_remote_code=False).eval()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"sentence encoder {name} did not load ({reason}); fetch it beforehand, name a folder with "
                        'data.hard_neg_encoder, or use "words" there') from error
    vectors = []
    with torch.no_grad():
        for start in tqdm(range(0, len(texts), 64), desc="neighbours", unit="batch", leave=False, disable=None):
            batch = tok(list(texts[start:start + 64]), padding=True, truncation=True, return_tensors="pt")
            hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
            vectors.append(((hidden * mask).sum(1) / mask.sum(1)).numpy())
    return np.concatenate(vectors)
