"""Whether a model says the targets of requests: how likely they are behind their prompts, and whether it would say them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from .budget import logit_rows, token_budget
from .modules import evaluating, hooked, input_device
from .prompts import Request, pack, pad_batch, pad_id, prompt_ids


class TargetNotReached(UserWarning):
    """An edit after which the model does not say a target, or whose states stayed far from what they should become."""


@dataclass(frozen=True)
class Recall:
    """What a model makes of the targets, one entry a request."""

    probability: list[float]
    """Of the whole target behind its prompt."""
    said: list[bool]
    """Whether every token of the target is the likeliest one, after those before it."""


def recall(model: nn.Module, tok, requests: Sequence[Request]) -> Recall:
    """Of a causal model as it is; each distinct row of prompt and target runs once, the head at the targets' places alone."""
    targets = [request.target_ids(tok) for request in requests]
    rows = [(*prompt_ids(tok, request.text), *target) for request, target in zip(requests, targets)]
    requests_of: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        requests_of.setdefault(row, []).append(i)
    probability, said = [0.0] * len(rows), [False] * len(rows)
    with torch.no_grad(), evaluating(model):
        longest = max(map(len, targets), default=1)
        budget = max(1, logit_rows(model) // longest) * max(map(len, rows), default=1)
        for batch in pack(list(requests_of), min(token_budget(model), budget)):
            inputs = pad_batch([row[:-1] for row in batch], pad_id(tok), input_device(model))
            # Of every row as many places as its longest target has tokens: those that predict its last tokens.
            lengths = [max(len(targets[i]) for i in requests_of[row]) for row in batch]
            ends = [len(row) - 1 for row in batch]
            places = [(n, ends[n] - length + k) for n, length in enumerate(lengths) for k in range(length)]
            logits = _logits_at(model, inputs, places)
            for row, of_row in zip(batch, logits.split(lengths)):
                for i in requests_of[row]:
                    behind, target = of_row[-len(targets[i]):], torch.tensor(targets[i], device=of_row.device)
                    chances = behind.float().log_softmax(-1).gather(-1, target[:, None])
                    probability[i] = float(f"{chances.sum().exp().item():.6g}")
                    said[i] = bool((behind.argmax(-1) == target).all())
    return Recall(probability, said)


def not_said(requests: Sequence[Request], recalled: Recall) -> str | None:
    """The line about the requests whose targets the model does not say; None if it says all."""
    failed = [i for i, said in enumerate(recalled.said) if not said]
    if not failed:
        return None
    examples = [f"{requests[i].text + requests[i].target_new!r} (probability {recalled.probability[i]:.2g})"
                for i in failed[:3]]
    named = ", ".join(examples) + (", ..." if len(failed) > 3 else "")
    return f"{len(failed)} of {len(requests)} targets were not reached, the edited model would say something else: {named}"


def _logits_at(model: nn.Module, inputs: dict[str, torch.Tensor], places: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Logits [places, vocabulary] behind the tokens (row, column)."""
    row, column = torch.tensor(places).T

    def gather(head, args):
        hidden = args[0]
        return (hidden[row.to(hidden.device), column.to(hidden.device)][None], *args[1:])

    with _once(model.get_output_embeddings(), gather) as seen:
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
    return logits[0] if seen else logits[row.to(logits.device), column.to(logits.device)]


@contextmanager
def _once(head: nn.Module | None, gather) -> Iterator[list]:
    """Inside, the head reads what `gather` makes of its input; yields a list that has an entry once it did."""
    seen: list[bool] = []

    def hook(module, args):
        seen.append(True)
        return gather(module, args)

    with hooked([] if head is None else [head.register_forward_pre_hook(hook)]):
        yield seen
