"""Targets behind prompts: their probabilities, and what the model says there by itself.

Each distinct prompt runs once. The first token of every target, and of the model's own continuation, comes from that one
pass; the rest continues from the prompt's cache. The head is applied at target positions only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common import orthography
from common.errors import UserError
from editors.core import ranks
from editors.core.budget import logit_rows
from editors.core.modules import longest_context
from editors.core.prompts import encode_target, Ids, pad_id, prompt_ids

from experiments.metrics.incremental import (
    batches, check_length, continue_rows, extend, Prefix, read, shortened,
)

EXTRA_TOKENS = 4
"""Tokens generated beyond a target's length, to see whether the model stops there."""

TAIL = 8
"""Tokens that are decoded together where one alone is only a part of a character."""


@dataclass(frozen=True)
class Score:
    """How likely a target is behind a prompt, every token after the true ones before it (teacher forcing)."""

    nll: float
    """Mean negative log-probability of the target's tokens, in nats."""
    predicted: Ids
    """The most probable token at each place."""


@dataclass
class Plan:
    """The targets to score and the prompts to continue, each once, however often it is asked for."""

    targets: dict[Ids, set[Ids]] = field(default_factory=dict)
    """prompt -> targets to score behind it."""
    target_lengths: dict[Ids, int] = field(default_factory=dict)
    """prompt -> length of the longest target that its continuation will be compared with."""
    length: int = 0
    """Tokens, with the prompt's, to which every prompt that is continued at all is continued besides."""

    def score(self, prompt: Ids, target: Ids) -> None:
        """Score the target behind the prompt."""
        self.targets.setdefault(prompt, set()).add(target)

    def generate(self, prompt: Ids, target: Ids) -> None:
        """Continue the prompt greedily, far enough to compare with the target."""
        self.target_lengths[prompt] = max(self.target_lengths.get(prompt, 0), len(target))


@dataclass(frozen=True)
class Answers:
    """What the model makes of a :class:`Plan`."""

    scores: Mapping[tuple[Ids, Ids], Score]
    """By prompt and target."""
    texts: Mapping[Ids, str]
    """The greedy continuation of a prompt."""
    long_texts: Mapping[Ids, str]
    """The same up to the plan's ``length``, whatever ends there."""


def ask(model: PreTrainedModel, tok: PreTrainedTokenizerBase, plan: Plan) -> Answers:
    """The answers to everything in the plan, in batches of prompts of similar length.

    Raises UserError for a prompt that is empty or, with its target, longer than the model's positions.
    """
    prompts = sorted(plan.targets.keys() | plan.target_lengths.keys())
    for prompt in prompts:
        longest = max(plan.targets.get(prompt, {()}), key=len)
        check_length(model, prompt and prompt + longest, f"the prompt {shortened(tok.decode(prompt))} with its target")
    scores: dict[tuple[Ids, Ids], Score] = {}
    texts: dict[Ids, str] = {}
    long_texts: dict[Ids, str] = {}
    with tqdm(total=len(prompts), desc="evaluate", unit="prompt", leave=False, disable=None) as bar:

        def answer(group: list[int]) -> tuple[dict[tuple[Ids, Ids], Score], list[tuple[Ids, str, str]]]:
            rows = [prompts[i] for i in group]
            prefix, logits = read(model, rows, pad_id(tok))
            group_scores = score_targets(model, prefix, logits, rows, plan.targets, pad_id(tok))
            bar.update(len(rows))
            return group_scores, list(_generate(model, tok, prefix, logits, rows, plan))

        for group_scores, continued in ranks.each(answer, batches(model, prompts)):
            scores.update(group_scores)
            for prompt, text, long_text in continued:
                texts[prompt], long_texts[prompt] = text, long_text
    return Answers(scores, texts, long_texts)


class Tokens:
    """A tokenizer's ids of prompts, and of targets behind them, each found once."""

    def __init__(self, tok: PreTrainedTokenizerBase):
        self.tok = tok
        self._prompts: dict[str, Ids] = {}
        self._targets: dict[tuple[str, str], Ids] = {}

    def prompt(self, text: str) -> Ids:
        """Of a prompt without the spaces at its end."""
        if text not in self._prompts:
            self._prompts[text] = prompt_ids(self.tok, orthography.without_space(text))
        return self._prompts[text]

    def target(self, prompt: str, target: str, joined: bool | None) -> Ids:
        """Of a target as it continues the prompt. Raises UserError for one that the tokenizer has nothing for."""
        prompt, text = orthography.continuation(prompt, target, joined)
        key = ("" if text.startswith(" ") else prompt, text)  # behind a space the prompt does not matter
        if key not in self._targets:
            self._targets[key] = tuple(encode_target(self.tok, text, prompt))
        return self._targets[key]


def compare(continuation: str, target: str) -> tuple[bool, bool]:
    """(exact, starts): whether a continuation is the target and then comes to a natural stop (end of the sentence, the line
    or the text), and whether it starts with the target as whole words. See :mod:`common.orthography`."""
    text, target = continuation.lstrip(), target.strip()
    rest = text[len(target):]
    starts = text.startswith(target) and orthography.ends_word(target, rest)
    return starts and (orthography.is_complete(target, rest) or orthography.stops(rest)), starts


def generated_metrics(group: str, texts: Sequence[str], targets: Sequence[str]) -> dict[str, list]:
    """The entries of a group of prompts on their greedy continuations: the texts, and :func:`compare` with the targets."""
    compared = [compare(text, target) for text, target in zip(texts, targets, strict=True)]
    return {f"{group}_prompts_generated": list(texts),
            f"{group}_prompts_generated_exact": [exact for exact, _ in compared],
            f"{group}_prompts_generated_starts": [starts for _, starts in compared]}


def score_targets(
    model: PreTrainedModel, prefix: Prefix, logits: Tensor, rows: Sequence[Ids], targets: Mapping[Ids, set[Ids]], pad: int
) -> dict[tuple[Ids, Ids], Score]:
    """{(row, target): score} of the targets behind these rows, from their prefix, which is left as it is, and last logits."""
    pairs = [(row, target) for row, prompt in enumerate(rows) for target in sorted(targets.get(prompt, ()))]
    if not pairs:
        return {}
    index, first = torch.tensor([(row, target[0]) for row, target in pairs], device=logits.device).T
    sums = (-logits.log_softmax(-1)[index, first]).tolist()
    predicted = [(token,) for token in logits.argmax(-1)[index].tolist()]

    # The other tokens of longer targets, in groups whose logits fit in memory.
    longer = sorted((k for k, (_, target) in enumerate(pairs) if len(target) > 1), key=lambda k: -len(pairs[k][1]))
    while longer:
        width = len(pairs[longer[0]][1]) - 1
        size = max(1, logit_rows(model) // width)
        group, longer = longer[:size], longer[size:]
        group_targets = [pairs[k][1] for k in group]
        tokens = torch.full((len(group), width), pad)
        mask = torch.zeros_like(tokens)
        for i, target in enumerate(group_targets):
            tokens[i, : len(target) - 1] = torch.tensor(target[:-1])
            mask[i, : len(target) - 1] = 1
        device = prefix.mask.device
        out = extend(model, prefix.select([pairs[k][0] for k in group]), tokens.to(device), mask.to(device))
        for k, nll, best, target in zip(group, *_at(out, group_targets), group_targets):
            sums[k] += sum(nll[: len(target) - 1])
            predicted[k] += tuple(best[: len(target) - 1])
    if not all(map(math.isfinite, sums)):
        raise UserError("the model's answers are not finite (NaN or infinity), so nothing can be measured: load it in a wider "
                        "dtype; where an edit made them so, edit less strongly")
    return {(rows[row], target): Score(sums[k] / len(target), predicted[k]) for k, (row, target) in enumerate(pairs)}


def _at(logits: Tensor, targets: Sequence[Ids]) -> tuple[list[list[float]], list[list[int]]]:
    """(-log p of the next token, arg max) at each column of logits [rows, columns, vocabulary], which stand behind all but the
    last token of a target a row. Columns behind a shorter target mean nothing."""
    next_tokens = torch.zeros(logits.shape[:2], dtype=torch.long)
    for i, target in enumerate(targets):
        next_tokens[i, : len(target) - 1] = torch.tensor(target[1:])
    nll = -logits.log_softmax(-1).gather(-1, next_tokens.to(logits.device)[..., None])[..., 0]
    return nll.tolist(), logits.argmax(-1).tolist()


def _generate(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, prefix: Prefix, logits: Tensor, rows: Sequence[Ids], plan: Plan
) -> list[tuple[Ids, str, str]]:
    """(prompt, text, long text) for each of these rows that the plan continues."""
    continued_rows = [i for i, prompt in enumerate(rows) if prompt in plan.target_lengths]
    if not continued_rows:
        return []
    if len(continued_rows) < len(rows):
        prefix, logits = prefix.select(continued_rows), logits[torch.tensor(continued_rows, device=logits.device)]
    prompts = [rows[i] for i in continued_rows]
    limit = longest_context(model) or float("inf")
    ends = end_tokens(model, tok)
    # A row's text ends where it has said enough; its long text, if one is asked for, goes on.
    lengths: dict[int, int] = {}

    @cache
    def text_of(token: int) -> str:
        return tok.decode([token])

    def stops(ids: list[int]) -> bool:
        text = text_of(ids[-1])
        if "\ufffd" in text:  # a part of a character
            return orthography.ends_sentence(tok.decode(ids[-TAIL:]))
        return "\n" in text or orthography.ends_sentence(text)

    def finished(row: int, ids: list[int]) -> bool:
        target_length, length = plan.target_lengths[prompts[row]], len(prompts[row]) + len(ids)
        full = len(ids) >= target_length + EXTRA_TOKENS or length >= limit
        if full or ids[-1] in ends or (len(ids) > target_length and stops(ids)):
            lengths.setdefault(row, len(ids))
        return row in lengths and length >= min(plan.length, limit)

    def decode(ids: Sequence[int]) -> str:
        return tok.decode(ids, skip_special_tokens=True)

    continued = continue_rows(model, prefix, logits, lambda logits, alive, step: logits.argmax(-1), finished)
    return [(prompt, decode(ids[: lengths[row]]), decode(ids[: max(0, plan.length - len(prompt))]))
            for row, (prompt, ids) in enumerate(zip(prompts, continued))]


def end_tokens(model: PreTrainedModel, tok: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a text."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    return {tok.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
