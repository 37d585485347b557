"""Context templates: texts that a model puts before a prompt, so that an edit holds whatever stands there.

Published code samples them once a process from the global random state; here they are seeded, belong to one model and leave
the global random state alone.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from common.errors import UserError
from . import ranks
from .fingerprint import tokenizer_fingerprint
from .kept import kept
from .prompts import split_template, tokenize
from .modules import evaluating, input_device, longest_context

MEMIT_STARTS = ("The", "Therefore", "Because", "I", "You")
MEMIT_LENGTH = 10
GREEDY_STARTS = ("The", "Therefore", "Because", "She", "I love")
GREEDY_NEW_TOKENS = 10
ROME_LENGTH_PARAMS = ((5, 10), (10, 10))
TOP_K = 5


def context_templates(
    model: nn.Module, tok, kind: Literal["memit", "rome", "greedy"], length_params: Sequence[Sequence[int]] | None = None,
    seed: int = 0, starts: Sequence[str] | None = None,
) -> list[list[str]]:
    """Groups of templates with one ``{}`` each, sampled from ``model`` (top-k 5) and kept by tokenizer while it lives.

    * "memit": [["{}"], [5 texts]], one of 10 tokens (start and BOS included) from each of ``starts``, by default The,
      Therefore, Because, I, You.
    * "greedy": [["{}"], [text], [text], ...], each of ``starts`` (by default MEMAT's The, Therefore, Because, She, I love)
      followed by the 10 likeliest tokens: MEMAT's, in the language of the starts.
    * "rome": [["{}" + texts]]: for each [length, n] of ``length_params`` n texts of ``length`` tokens, BOS included
      (default [[5, 10], [10, 10]]: 21 templates).
    Special tokens are left out, braces become spaces, as does other white space but in "greedy" texts, which MEMAT leaves as
    they are; ". {}" is appended. The same seed, model and tokenizer give the same texts. Raises UserError for lengths that the
    model has no positions for, and for a model whose logits are not finite.
    """
    if kind not in ("memit", "rome", "greedy"):
        raise UserError(f"unknown kind of context templates {kind!r}; known: memit, rome, greedy")
    lengths = tuple(tuple(pair) for pair in (ROME_LENGTH_PARAMS if length_params is None else length_params))
    if kind == "rome" and any(len(pair) != 2 or min(pair) < 1 for pair in lengths):
        raise UserError(f"length_params must be pairs [length, number], both at least 1, not {length_params}")
    positions, longest = longest_context(model), max((length for length, _ in lengths), default=0)
    if kind == "rome" and positions is not None and longest > positions:
        raise UserError(f"contexts of {longest} tokens can't be sampled: the model has {positions} positions")
    start = _bos(tok) if kind == "rome" else None
    texts = tuple(starts or (GREEDY_STARTS if kind == "greedy" else MEMIT_STARTS)) if kind != "rome" else lengths
    key = (kind, 0 if kind == "greedy" else seed, texts, tokenizer_fingerprint(tok), start)
    drawn = kept(model, "contexts")
    if key not in drawn:
        generator = torch.Generator().manual_seed(seed)
        rows = [ids for ids, _ in tokenize(tok, texts)] if kind != "rome" else []
        if kind == "memit":
            sampled = [["{}"], _templates(tok, _sample(model, rows, MEMIT_LENGTH, generator))]
        elif kind == "greedy":
            ids = _sample(model, rows, max(map(len, rows)) + GREEDY_NEW_TOKENS, generator, top_k=1)
            ends = [len(row) + GREEDY_NEW_TOKENS for row in rows]
            continuations = [_until_end(tok, row[:end], end - GREEDY_NEW_TOKENS) for row, end in zip(ids.tolist(), ends)]
            sampled = [["{}"], *([template] for template in _templates(tok, continuations, as_it_is=True))]
        else:
            by_length = [_templates(tok, _sample(model, [[start]] * n, length, generator)) for length, n in lengths]
            sampled = [["{}", *(template for templates in by_length for template in templates)]]
        drawn[key] = ranks.same(sampled)
    return [list(group) for group in drawn[key]]


def contexts_fingerprint(groups: Sequence) -> str:
    """Sixteen hexadecimal digits that tell groups of templates (or a list of them) from others."""
    return hashlib.sha256(json.dumps(groups).encode()).hexdigest()[:16]


def as_groups(templates: Sequence) -> list[list[str]]:
    """Templates given by a user as groups: a flat list is one group. Each template must hold exactly one ``{}``."""
    if isinstance(templates, str) or not isinstance(templates, Sequence) or not templates:
        raise UserError("context templates must be a list of texts, or a list of such lists, and not empty")
    groups = [list(templates)] if all(isinstance(t, str) for t in templates) else templates
    for group in groups:
        if isinstance(group, str) or not isinstance(group, Sequence) or not group:
            raise UserError("context templates mix texts and lists, or hold an empty list")
        for template in group:
            if not isinstance(template, str):
                raise UserError(f"context template {template!r} is not a text")
            split_template(template)
    return [list(group) for group in groups]


def _bos(tok) -> int:
    start = next((i for i in (tok.bos_token_id, tok.eos_token_id) if i is not None), None)
    if start is None:
        raise UserError("the tokenizer has neither a BOS nor an EOS token to sample contexts from: give context templates")
    return start


def _sample(
    model: nn.Module, starts: Sequence[Sequence[int]], length: int, generator: torch.Generator, top_k: int = TOP_K
) -> Int[Tensor, "starts length"]:
    """Token ids that begin with the starts and go on by top-k sampling to ``length`` in all.

    Rows of unequal starts advance together, token by token from the first: where a row's start goes on, its own token is
    taken, else a sampled one. So no padding is needed.
    """
    device = input_device(model)
    rows = [list(start) for start in starts]
    begin = min(map(len, rows))
    ids, cache = torch.tensor([row[:begin] for row in rows]), None
    with torch.no_grad(), evaluating(model):
        for position in range(begin, max(length, *map(len, rows))):
            fresh = ids if cache is None else ids[:, -1:]
            mask = torch.ones_like(ids)
            output = model(input_ids=fresh.to(device), attention_mask=mask.to(device), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits, tokens = output.logits[:, -1].float().cpu().topk(top_k)
            if not logits.isfinite().all():
                raise UserError("no contexts can be sampled: the model's logits are not finite; check its weights or dtype")
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            sampled = tokens.gather(1, drawn)[:, 0].tolist()
            column = [row[position] if position < len(row) else token for row, token in zip(rows, sampled)]
            ids = torch.cat([ids, torch.tensor(column)[:, None]], 1)
    return ids


def _until_end(tok, row: list[int], start: int) -> list[int]:
    """The row up to an end-of-sequence token that was generated, behind `start`."""
    end = next((i for i in range(start, len(row)) if row[i] == tok.eos_token_id), len(row))
    return row[:end]


def _templates(tok, ids: Int[Tensor, "texts length"] | list[list[int]], as_it_is: bool = False) -> list[str]:
    texts = (text.replace("{", " ").replace("}", " ") for text in tok.batch_decode(ids, skip_special_tokens=True))
    return [(text if as_it_is else " ".join(text.split())) + ". {}" for text in texts]
