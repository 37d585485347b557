"""Noise for the embeddings of a subject: as strong as asked, or measured on the model.

    0.1   Gaussian of this standard deviation
    s3    Gaussian of 3 times the standard deviation of the embeddings of all tokens of all subjects
    m     Gaussian with the mean and covariance of the embeddings of the tokens of 1,000 texts
    t<d>  Student's t with d > 2 degrees of freedom, of that mean and covariance
    u0.2  uniform between -0.2 and 0.2

Embeddings do not depend on the position, so tokens are counted and looked up, and no text runs through the model.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.errors import UserError
from editors.core.corpus import document_order, find_corpus
from editors.core.prompts import tokenize
from editors.core.modules import longest_context

TEXTS = 1000
WITHOUT_LIMIT = 100
"""Tokens read of a text where the model's configuration names no longest context."""
KINDS = "a number, s<factor>, m, t<degrees> or u<bound>"


@dataclass(frozen=True)
class Noise:
    """Draws the same noise for every subject of the same length: the random numbers start anew each time."""

    kind: str
    """"gaussian", "uniform" or "student"."""
    scale: float = 1.0
    """Standard deviation of gaussian, bound of uniform; 1 where mean and covariance are given."""
    mean: Float[Tensor, " d_model"] | None = None
    root: Float[Tensor, "d_model d_model"] | None = None
    """Symmetric square root of the covariance."""
    degrees: float = math.inf
    """Of Student's t."""
    samples: int = 10
    seed: int = 1

    def draw(self, length: int, d_model: int) -> Float[Tensor, "samples length d_model"]:
        """The noise for a subject of ``length`` tokens; float64, on the CPU."""
        random = np.random.RandomState(self.seed)
        shape = (self.samples, length, d_model)
        drawn = torch.from_numpy(random.uniform(-1, 1, shape) if self.kind == "uniform" else random.randn(*shape))
        if self.root is None:
            return self.scale * drawn
        drawn = drawn @ self.root
        if self.kind == "student":  # a normal vector over sqrt(chi2 / d) has d / (d - 2) times the covariance
            chi2 = torch.from_numpy(random.chisquare(self.degrees, shape[:2]))
            drawn = drawn * ((self.degrees - 2) / chi2).sqrt()[..., None]
        return self.mean + drawn


def parse(level: str) -> tuple[str, float]:
    """(form, value) of a noise level: form is "", "s", "m", "t" or "u". Raises UserError."""
    form = level[:1] if level[:1] in ("s", "m", "t", "u") else ""
    text = level[len(form):]
    try:
        value = 1.0 if form in ("s", "m") and not text else float(text)
    except ValueError:
        value = math.nan
    if form == "m" and text or not 0 < value < math.inf or form == "t" and value <= 2:
        raise UserError(f"noise level {level!r}: should be {KINDS}; degrees above 2, all others above 0")
    return form, value


def calibrate(
    level: str, model: nn.Module, tok, subjects: Sequence[str], corpus: str, samples: int = 10, seed: int = 1
) -> tuple[Noise, dict]:
    """(the noise of this level, what was measured for it). corpus: whose texts ``m`` and ``t`` read.

    Raises UserError for a level that is none, or a corpus that does not load.
    """
    form, value = parse(level)
    if form == "u":
        return Noise("uniform", value, samples=samples, seed=seed), {"bound": value}
    if form in ("", "s"):
        measured = {} if not form else {"embedding_std": embedding_std(model, tok, subjects)}
        std = value * measured.get("embedding_std", 1.0)
        return Noise("gaussian", std, samples=samples, seed=seed), {"std": std, **measured}
    texts = find_corpus(corpus).texts()
    limit = longest_context(model) or WITHOUT_LIMIT
    chosen = (texts[i] for i in document_order(len(texts), TEXTS))
    mean, covariance, tokens = embedding_moments(model, (ids[:limit] for text in chosen for ids, _ in tokenize(tok, [text])))
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    kind, degrees = ("student", value) if form == "t" else ("gaussian", math.inf)
    return Noise(kind, 1.0, mean, root, degrees, samples, seed), {"corpus": corpus, "tokens": tokens}


def embedding_std(model: nn.Module, tok, subjects: Sequence[str]) -> float:
    """The standard deviation of all components of the embeddings of all tokens of these subjects, repetitions counted."""
    rows, counts = _embeddings(model, (ids for ids, _ in tokenize(tok, list(subjects), add_special_tokens=False)))
    size = float(counts.sum()) * rows.shape[1]
    mean = float((counts @ rows).sum() / size)
    return math.sqrt(float((counts @ (rows - mean) ** 2).sum()) / (size - 1))


def embedding_moments(
    model: nn.Module, texts: Iterable[Sequence[int]]
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "d_model d_model"], int]:
    """(mean, covariance, tokens) of the embeddings of the texts' tokens."""
    rows, counts = _embeddings(model, texts)
    tokens = float(counts.sum())
    mean = counts @ rows / tokens
    centred = rows - mean
    return mean, (centred.T * counts) @ centred / (tokens - 1), int(tokens)


def _embeddings(model: nn.Module, texts: Iterable[Sequence[int]]) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, " n"]]:
    """(embeddings of the different tokens, how often each comes), float64, on the CPU."""
    counts = Counter(token for ids in texts for token in ids)
    if not counts:
        raise UserError("no tokens to measure embeddings of")
    embed = model.get_input_embeddings()
    with torch.no_grad():
        rows = embed(torch.tensor([list(counts)], device=embed.weight.device))[0].double().cpu()
    return rows, torch.tensor(list(counts.values()), dtype=torch.float64)
