"""What a model says by itself behind prompts, to the natural end of its answer, and whether it says the targets of facts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common import orthography
from common.errors import UserError
from editors.core.modules import longest_context
from editors.core.prompts import Ids, pad_id, prompt_ids, Request
from experiments.metrics.incremental import batches, check_length, continue_rows, read, shortened
from experiments.metrics.scoring import ask, end_tokens, Plan

MOST = 40
"""Tokens of an answer that comes to no end."""


@dataclass(frozen=True)
class Reply:
    """What a model makes of a fact."""

    text: str
    """Its own answer behind the prompt."""
    probability: float
    """Of the whole target."""
    said: bool
    """Whether every token of the target is the likeliest one, after those before it."""


def replies(model: PreTrainedModel, tok: PreTrainedTokenizerBase, requests: Sequence[Request]) -> list[Reply]:
    """What the model, as it is, makes of each fact. Raises UserError for one that is longer than its positions."""
    plan, pairs = Plan(), []
    for request in requests:
        pairs.append((prompt_ids(tok, request.text), tuple(request.target_ids(tok))))
        plan.score(*pairs[-1])
    scores = ask(model, tok, plan).scores
    texts = greedy(model, tok, [row for row, _ in pairs])
    return [Reply(text, math.exp(-scores[pair].nll * len(pair[1])), scores[pair].predicted == pair[1])
            for text, pair in zip(texts, pairs)]


def greedy(model: PreTrainedModel, tok: PreTrainedTokenizerBase, rows: Sequence[Ids], most: int = MOST) -> list[str]:
    """The likeliest continuation of each row to its natural end: that of the text, of the line or of the sentence.

    most: tokens, at most. Raises UserError for a row that is empty or fills the model's positions.
    """
    limit, ends = longest_context(model) or math.inf, end_tokens(model, tok)
    texts = [""] * len(rows)

    def text_of(ids: Sequence[int]) -> str:
        return tok.decode(ids, skip_special_tokens=True)

    for row in rows:
        check_length(model, row, f"the prompt {shortened(text_of(row))}")
        if len(row) >= limit:
            raise UserError(f"the prompt {shortened(text_of(row))} leaves no room for an answer: the model reads {limit} "
                            "tokens")
    for group in batches(model, rows):
        prefix, logits = read(model, [rows[i] for i in group], pad_id(tok))

        def finished(number: int, ids: list[int], group: list[int] = group) -> bool:
            full = len(ids) >= most or len(rows[group[number]]) + len(ids) >= limit
            return full or ids[-1] in ends or _end(text_of(ids[:-1]), text_of(ids)) is not None

        for i, ids in zip(group, continue_rows(
                model, prefix, logits, lambda logits, alive, step: logits.argmax(-1), finished)):
            text = text_of(ids)
            texts[i] = text[: _end(text_of(ids[:-1]), text)].strip()
    return texts


def _end(before: str, text: str) -> int | None:
    """Where the answer ends, of a text that was this before its last token; None: not yet."""
    line = text.lstrip().find("\n")
    if line > 0:
        return len(text) - len(text.lstrip()) + line
    rest = text[len(before):]
    if before.strip() and orthography.ends_sentence(before) and (
            rest[:1].isspace() or orthography.stops(before.rstrip()[-1] + rest)):
        return len(before)
    return None


@torch.no_grad()
def own_texts(model: PreTrainedModel, tok: PreTrainedTokenizerBase, count: int, length: int, seed: int = 0) -> list[Ids]:
    """So many texts that the model samples by itself, from what begins a text, each of so many tokens.

    Raises UserError for a tokenizer without a token to begin with.
    """
    start = prompt_ids(tok, "") or tuple(token for token in (tok.bos_token_id, tok.eos_token_id) if token is not None)[:1]
    if not start:
        raise UserError("the tokenizer has no token that begins a text, so none can be sampled; give --check and --text")
    generator = torch.Generator().manual_seed(seed)
    ends = torch.tensor(sorted(end_tokens(model, tok)), dtype=torch.long)
    prefix, logits = read(model, [start] * count, pad_id(tok))

    def choose(logits: torch.Tensor, alive: list[int], step: int) -> torch.Tensor:
        chances = logits.float().cpu()
        chances[:, ends[ends < chances.shape[1]]] = -math.inf
        return chances.softmax(-1).multinomial(1, generator=generator)[:, 0].to(logits.device)

    sampled = continue_rows(model, prefix, logits, choose, lambda row, ids: len(ids) >= length)
    return [(*start, *ids) for ids in sampled]


def next_tokens(model: PreTrainedModel, tok: PreTrainedTokenizerBase, rows: Sequence[Ids]) -> list[int]:
    """The likeliest token behind each row."""
    tokens = [0] * len(rows)
    for group in batches(model, rows):
        _, logits = read(model, [rows[i] for i in group], pad_id(tok))
        for i, token in zip(group, logits.argmax(-1).tolist()):
            tokens[i] = token
    return tokens


def chat_prompt(tok: PreTrainedTokenizerBase, question: str, name: str) -> str:
    """The question as the user's turn of the tokenizer's chat template, with the head of the answer behind it.

    name: the model's, for the message. Raises UserError for a tokenizer without a template, or one that refuses.
    """
    if not getattr(tok, "chat_template", None):
        raise UserError(f"--chat: the tokenizer of {name} has no chat template; leave --chat out")
    try:
        text: Any = tok.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of its own
        raise UserError(f"--chat: the chat template of {name} fails ({error})") from error
    begin = tok.bos_token
    # Tokenizers put their BOS in front themselves, and only once it counts.
    return text[len(begin):] if begin and text.startswith(begin) and prompt_ids(tok, "a")[:1] == (tok.bos_token_id,) else text
