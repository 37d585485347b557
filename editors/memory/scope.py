"""SERAC's scope classifier: the probability that an input falls under each edit (Mitchell et al. 2022b, section 3.2).

Either both are encoded by themselves, and the probability falls with the distance of their vectors (edits are then searched by
the thousands), or an encoder reads each pair.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.errors import UserError
from editors.core.budget import ENCODER_TOKENS
from editors.core.fingerprint import model_fingerprint, tokenizer_fingerprint
from editors.core.prompts import pad_batch, pad_id
from .form import Form
from .store import EditStore, Entry
from .tokens import encode, window

BLOCK = 65536
"""Edits that are compared with the queries together."""
POOLINGS = ("cls", "pooler", "mean")


def log_similarity(
    queries: Float[Tensor, "queries width"], edits: Float[Tensor, "edits width"], heads: int = 1, square: bool = True,
    cos: bool = False, bound: bool = False,
) -> Float[Tensor, "queries edits"]:
    """log p = -distance, of the head (an equal part of the vector) in which the two are nearest.

    The distance is |q - e|^2 (an RBF kernel), |q - e| without `square`, or 1 - cosine with `cos`. bound: tanh comes first.
    """
    q, e = _by_head(queries, heads, bound), _by_head(edits, heads, bound)
    return -_distance(q[:, None], e[None], square, cos).amin(-1)


def nearest(
    queries: Float[Tensor, "queries width"], edits: Float[Tensor, "edits width"], heads: int = 1, square: bool = True,
    cos: bool = False, bound: bool = False,
) -> tuple[Float[Tensor, " queries"], Int[Tensor, " queries"]]:
    """(log p of the nearest edit, which one it is): `log_similarity(...).max(1)`, in matrix products of blocks of edits."""
    q = _by_head(queries, heads, bound)
    best = torch.full((len(q), heads), float("inf"), device=q.device)
    places_by_head = torch.zeros((len(q), heads), dtype=torch.long, device=q.device)
    for start in range(0, len(edits), BLOCK):
        block = _by_head(edits[start:start + BLOCK], heads, bound)
        for head in range(heads):
            # The same order as the distance: |e|^2 - 2 q.e, or -q.e / |e|.
            e = block[:, head]
            lengths, dots = _length(e), q[:, head] @ e.T
            values, places = (-dots / lengths if cos else lengths.square() - 2 * dots).min(-1)
            closer = values < best[:, head]
            best[:, head] = torch.where(closer, values, best[:, head])
            places_by_head[:, head] = torch.where(closer, places + start, places_by_head[:, head])
    # Again, without the cancellation of the shorter formula.
    chosen = _by_head(edits[places_by_head.flatten()], heads, bound).view(len(q), heads, heads, -1)
    edits_by_head = chosen[:, torch.arange(heads), torch.arange(heads)]
    distance, head = _distance(q, edits_by_head, square, cos).min(-1)
    return -distance, places_by_head.gather(1, head[:, None])[:, 0]


def _by_head(x: Tensor, heads: int, bound: bool) -> Float[Tensor, "rows heads part"]:
    return (x.tanh() if bound else x).unflatten(-1, (heads, -1))


def _length(x: Tensor) -> Tensor:
    return x.norm(dim=-1).clamp(min=1e-8)


def _distance(q: Tensor, e: Tensor, square: bool, cos: bool) -> Tensor:
    if cos:
        return (1 - (q * e).sum(-1) / (_length(q) * _length(e))).clamp(min=0)
    squared = (q - e).square().sum(-1)
    # The root has no gradient at 0, where there is nothing to gain.
    return squared if square else torch.where(squared > 0, squared.clamp(min=1e-30).sqrt(), squared)


class ScopeClassifier(ABC):
    """Scores texts against a memory. `encoder` is what is trained."""

    def __init__(self, encoder: nn.Module, tok: Any, form: Form):
        self.encoder, self.tok, self.form = encoder, tok, form
        if tok.sep_token is None:
            raise UserError("the scope classifier's tokenizer has no separator token ([SEP])")
        self._whose: str | None = None

    @abstractmethod
    def log_similarities(self, texts: Sequence[str], entries: Sequence[Entry]) -> Float[Tensor, "texts edits"]:
        """log p of each text under each edit; differentiable in training mode."""

    @abstractmethod
    def best(self, texts: Sequence[str], memory: EditStore) -> tuple[Float[Tensor, " texts"], Int[Tensor, " texts"]]:
        """(log p, place in the memory) of the edit under which each text falls most likely. The memory is not empty."""

    def prepare(self, memory: EditStore) -> None:
        """Whatever `best` needs of a memory and can know beforehand."""

    def contexts(self, entries: Sequence[Entry]) -> list[str]:
        """What the classifier reads of each edit."""
        return [self.form.context(entry, self.tok.sep_token) for entry in entries]

    @property
    def whose(self) -> str:
        """What tells this encoder, as it is now, from others."""
        if self._whose is None:
            self._whose = f"{model_fingerprint(self.encoder)}-{tokenizer_fingerprint(self.tok)}-{self._reading()}"
        return self._whose

    def _reading(self) -> str:
        """How vectors are read from the encoder."""
        return ""

    def changed(self) -> None:
        """The encoder's weights may be others now."""
        self._whose = None

    def _encoder_inputs(self, texts: Sequence[str], fixed: Sequence[str] | None = None) -> dict[str, Tensor]:
        rows = encode(self.tok, texts, window(self.encoder, self.tok), fixed)
        batch = pad_batch(rows, pad_id(self.tok), next(self.encoder.parameters()).device)
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def _grad(self):
        return nullcontext() if self.encoder.training else torch.no_grad()


class EmbeddingScopeClassifier(ScopeClassifier):
    """Texts and edits are encoded apart."""

    def __init__(self, encoder: nn.Module, tok: Any, form: Form, heads: int = 1, square: bool = True, cos: bool = False,
                 bound: bool = False, pooling: str = "cls"):
        super().__init__(encoder, tok, form)
        if pooling not in POOLINGS:
            raise UserError(f"pooling: {pooling!r} is none of {', '.join(POOLINGS)}")
        width = encoder.config.hidden_size
        if heads < 1 or width % heads:
            raise UserError(f"dist_heads: {heads} does not divide the encoder's width {width}")
        self.kernel = {"heads": heads, "square": square, "cos": cos, "bound": bound}
        self.pooling = pooling

    def _reading(self) -> str:
        return self.pooling

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        """One encoder pass for up to ENCODER_TOKENS tokens."""
        with self._grad():
            parts = [self._pass(part) for part in self._parts(texts)]
        return torch.cat(parts)

    def _parts(self, texts: Sequence[str]) -> list[Sequence[str]]:
        if self.encoder.training:
            return [texts]
        size = max(1, ENCODER_TOKENS // max(1, *(len(text.encode()) for text in texts)))  # a token is a byte at least
        return [texts[i:i + size] for i in range(0, len(texts), size)]

    def _pass(self, texts: Sequence[str]) -> Tensor:
        batch = self._encoder_inputs(texts)
        output = self.encoder(**batch)
        if self.pooling == "pooler":
            if getattr(output, "pooler_output", None) is None:
                raise UserError('pooling: this encoder has no pooler; use "cls" or "mean"')
            return output.pooler_output.float()
        hidden = output.last_hidden_state.float()
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = batch["attention_mask"].unsqueeze(-1)
        return (hidden * mask).sum(1) / mask.sum(1)

    def log_similarities(self, texts: Sequence[str], entries: Sequence[Entry]) -> Tensor:
        with self._grad():
            return log_similarity(self.embed(texts), self.embed(self.contexts(entries)), **self.kernel)

    def prepare(self, memory: EditStore) -> None:
        self._vectors(memory)

    def _vectors(self, memory: EditStore) -> Float[Tensor, "edits width"]:
        """Those that the memory keeps, but in training, where the encoder changes."""
        if self.encoder.training:
            return self.embed(self.contexts(list(memory)))
        return memory.vectors(lambda entries: self.embed(self.contexts(entries)), self.whose)

    def best(self, texts: Sequence[str], memory: EditStore) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            vectors = self._vectors(memory)
            return nearest(self.embed(texts), vectors, **self.kernel)


class CrossScopeClassifier(ScopeClassifier):
    """An encoder with two classes reads edit and text together; class 0 means "in scope"."""

    def log_similarities(self, texts: Sequence[str], entries: Sequence[Entry]) -> Tensor:
        contexts = self._opened(entries)
        return self._read([(context, text) for text in texts for context in contexts]).view(len(texts), len(entries))

    def some(
        self, texts: Sequence[str], entries: Sequence[Entry], columns: Int[Tensor, "texts pairs"]
    ) -> Float[Tensor, "texts edits"]:
        """As `log_similarities` for those edits that each text is read with, -inf for the others."""
        contexts = self._opened(entries)
        values = self._read([(contexts[column], text) for text, row in zip(texts, columns.tolist()) for column in row])
        return values.new_full((len(texts), len(entries)), -torch.inf).scatter(1, columns, values.view(columns.shape))

    def _opened(self, entries: Sequence[Entry]) -> list[str]:
        return [context + self.tok.sep_token for context in self.contexts(entries)]

    def _read(self, pairs: Sequence[tuple[str, str]]) -> Float[Tensor, " pairs"]:
        longest = max(len((context + text).encode()) for context, text in pairs)
        size = len(pairs) if self.encoder.training else max(1, ENCODER_TOKENS // longest)
        with self._grad():
            parts = []
            for start in range(0, len(pairs), size):
                fixed, free = zip(*pairs[start:start + size])
                parts.append(self.encoder(**self._encoder_inputs(free, fixed)).logits.float().log_softmax(-1)[:, 0])
        return torch.cat(parts)

    def best(self, texts: Sequence[str], memory: EditStore) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            values, places = self.log_similarities(texts, list(memory)).max(1)
        return values, places
