"""LocFT-BF: fine-tuning one layer breadth-first, with mini-batches and ends of text (Yang et al., ICLR 2026)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from editors.base import Task
from editors.configuration import Count, Natural, NotNegative, Positive
from editors.core.modules import input_device, longest_context
from editors.core.prompts import check_lengths, pad_batch, pad_id, prompt_ids, Request
from .ft import Batch, FT, FTHParams, log_p


@dataclass(frozen=True, kw_only=True)
class LocFTHParams(FTHParams):
    """FT's keys, and how each epoch goes over all requests."""

    num_steps: Count = 25
    """Epochs over the requests, at most."""
    weight_decay: NotNegative | Literal[False] = 0
    """Adam's L2 term, added to the gradient; false is 0."""
    norm_constraint: Positive | Literal[False] | None = None
    """Largest change of any element of a weight; false or null, as published: unconstrained."""
    batch_size: Count = 100
    """Requests a step."""
    end_of_text: bool = True
    """Whether the tokenizer's end-of-text token is learned behind the whole target, so that an answer stops there."""
    shuffle: bool = True
    """Draw the requests in a new order each epoch; false: as they come."""
    seed: Natural = 0
    """Of the orders."""
    loss_floor: NotNegative = 0.01
    """A batch whose loss is below it takes no step; an epoch whose mean is below it is the last."""


class LocFT(FT):
    """Fine-tuning as a language model is trained: every token of a target is scored behind those before it, and an epoch goes
    over all requests, in mini-batches, before any is seen again (breadth first)."""

    name = "LocFT"
    hparams_class = LocFTHParams

    @property
    def loss_floor(self) -> float:
        return self.hparams.loss_floor

    def epochs(self, task: Task) -> Iterator[Sequence[Batch]]:
        hp, requests, tok, device = self.hparams, task.requests, task.tok, input_device(task.model)
        check_lengths(tok, requests, ["{}"], longest_context(task.model), hp.end_of_text)
        rows = [_row(tok, request, hp.end_of_text) for request in requests]
        draw = torch.Generator().manual_seed(hp.seed)
        while True:
            order = torch.randperm(len(rows), generator=draw).tolist() if hp.shuffle else list(range(len(rows)))
            yield [_batch(tok, [rows[i] for i in order[start:start + hp.batch_size]], device)
                   for start in range(0, len(rows), hp.batch_size)]


def _row(tok, request: Request, ended: bool) -> tuple[list[int], list[int]]:
    """(what the model reads of a request, its target)."""
    target = request.target_ids(tok, ended)
    return [*prompt_ids(tok, request.text), *target[:-1]], target


def _batch(tok, rows: Sequence[tuple[list[int], list[int]]], device: torch.device) -> _Teacher:
    return _Teacher(pad_batch([ids for ids, _ in rows], pad_id(tok), device), [target for _, target in rows])


@dataclass(frozen=True)
class _Teacher(Batch):
    """Targets behind their prompts, scored token by token."""

    def loss(self, model: nn.Module) -> torch.Tensor:
        mask = self.inputs["attention_mask"]
        ends = (mask.shape[1] - mask.flip(1).argmax(1)).tolist()
        places = [(row, end - len(target) + k) for row, (end, target) in enumerate(zip(ends, self.targets))
                  for k in range(len(target))]
        row, column = torch.tensor(places, device=self.inputs["input_ids"].device).T
        logits = self.logits(model)
        tokens = torch.tensor([token for target in self.targets for token in target], device=logits.device)
        scores = log_p(logits, row, column).gather(1, tokens[:, None])[:, 0]
        return -torch.stack([part.mean() for part in scores.split([len(target) for target in self.targets])]).mean()
