"""Targets behind prompts: their probabilities, and what the model says there by itself.

Each distinct prompt runs once. The first token of every target, and of the model's own continuation, comes from that one
pass; the rest continues from the prompt's cache. The head is applied at target positions only.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editors.core import ranks
from editors.core.budget import logit_rows
from editors.core.modules import longest_context
from editors.core.prompts import pad_id

from experiments.metrics.incremental import (
    batches, check_length, continue_rows, extend, Prefix, read, shortened,
)

Ids = tuple[int, ...]

EXTRA_TOKENS = 4
"""Tokens generated beyond a target's length, to see whether the model stops there."""

_STOPS = ".!?…"
_NATURAL_STOP = re.compile(rf"""\s*$|[ \t]*\n|[{_STOPS}]+["'”’»)\]]*(\s|$)""")


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


def prompt_ids(tok: PreTrainedTokenizerBase, text: str) -> Ids:
    """Token ids of a text to be continued: with the BOS that a tokenizer puts before it, without an EOS put behind it."""
    ids = tok(text, verbose=False)["input_ids"]
    if tok.eos_token and len(ids) > 1 and ids[-1] == tok.eos_token_id and not text.endswith(tok.eos_token):
        ids = ids[:-1]
    return tuple(ids)


def compare(continuation: str, target: str) -> tuple[bool, bool]:
    """(exact, starts): whether a continuation is the target and then comes to a natural stop (end of the sentence, the line
    or the text), and whether it starts with the target as whole words."""
    text, target = continuation.lstrip(), target.strip()
    rest = text[len(target):]
    starts = text.startswith(target) and not re.match(r"\w", rest)
    ends_itself = target[-1:] in _STOPS and rest[:1].isspace()  # "Washington, D.C." needs no second full stop
    return starts and (ends_itself or bool(_NATURAL_STOP.match(rest))), starts


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
    def stops(token: int) -> bool:
        text = tok.decode([token])
        return "\n" in text or text.rstrip("\"'”’»)]")[-1:] in tuple(_STOPS)

    def finished(row: int, ids: list[int]) -> bool:
        target_length, length = plan.target_lengths[prompts[row]], len(prompts[row]) + len(ids)
        full = len(ids) >= target_length + EXTRA_TOKENS or length >= limit
        if full or ids[-1] in ends or (len(ids) > target_length and stops(ids[-1])):
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
