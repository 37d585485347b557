"""Perplexity of a language model on a running text, as language modelling reports it."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from editors.core.corpus import Corpus
from editors.core.modules import longest_context
from editors.core.prompts import Ids, prompt_ids

from experiments.metrics.scoring import ask, Plan

MOST_WINDOW = 2048
"""Tokens of a window of a model that reads more, or names no limit."""
HUB_TOKENS = 500_000
"""Read of a data set of the hub, which may have no end, where no number is asked for."""
_CHARACTERS = 8
"""Of a token, more than which the texts of no corpus have on average."""


@dataclass(frozen=True)
class StreamPerplexity:
    """exp of the mean negative log-probability, in nats, of all tokens of a stream but the first."""

    perplexity: float
    """At most e^700."""
    tokens: int
    """Of the stream, special ones in front included."""


def stream_ids(tok: PreTrainedTokenizerBase, corpus: Corpus, most: int | None = None) -> Ids:
    """Token ids of a corpus as one text: a .txt file as it is, other texts joined by blank lines.

    most: the first so many tokens; None: all of a file, :data:`HUB_TOKENS` of a data set of the hub.
    Raises UserError for a corpus without two tokens.
    """
    if most is None and corpus.identity.startswith("hub:"):
        most = HUB_TOKENS
    pieces = corpus.stream()
    if most is not None:
        lengths: list[int] = []
        pieces = itertools.takewhile(lambda piece: sum(lengths) < _CHARACTERS * most and not lengths.append(len(piece)), pieces)
    ids = prompt_ids(tok, "".join(pieces))[:most]
    if len(ids) < 2:
        raise UserError(f"corpus {corpus.name}: a perplexity needs two tokens at least, and it has fewer")
    return ids


def stream_perplexity(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, ids: Sequence[int], length: int | None = None,
    stride: int | None = None,
) -> StreamPerplexity:
    """The perplexity of a stream of tokens, read in windows, every token scored once, behind what its window has before it.

    length: tokens of a window; None: the model's own length, :data:`MOST_WINDOW` at most. stride: tokens from one window's
    start to the next; None: half of the window.
    """
    own = longest_context(model) or MOST_WINDOW
    length = min(length or MOST_WINDOW, own)
    stride = max(1, length // 2) if stride is None else stride
    if not 1 <= stride <= max(1, length - 1):
        raise ValueError(f"a stride of {stride} leaves tokens of windows of {length} unscored")
    ids = tuple(ids)
    plan, scored = Plan(), 1
    pairs: list[tuple[Ids, Ids]] = []
    for start in range(0, len(ids), stride):
        end = min(start + length, len(ids))
        pairs.append((ids[start:scored], ids[scored:end]))
        plan.score(*pairs[-1])
        scored = end
        if end == len(ids):
            break
    scores = ask(model, tok, plan).scores
    total = sum(scores[pair].nll * len(pair[1]) for pair in pairs)
    return StreamPerplexity(math.exp(min(total / (len(ids) - 1), 700)), len(ids))
