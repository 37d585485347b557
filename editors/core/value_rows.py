"""Requests of the value optimisation as rows of tokens: what runs together, and where the targets are predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from .memory import total_bytes
from .prompts import Request, encode_target, fill, locate
from .replay import Replay
from .sites import Sites, get_module

KL_PROMPT = "{} is a"


@dataclass(frozen=True)
class Job:
    """One request, tokenised: a row for each context (prompt + target but its last token) and the KL prompt."""

    number: int
    rows: list[list[int]]
    lookups: list[int]
    target: list[int]
    kl_row: list[int]
    kl_lookup: int

    @staticmethod
    def build(tok, number: int, request: Request, fact_token: str, templates: Sequence[str]) -> Job:
        target = encode_target(tok, request.target_new)
        located = [locate(tok, fill(t, request.prompt), request.subject, fact_token) for t in templates]
        kl = locate(tok, KL_PROMPT, request.subject, fact_token)
        # Nothing after the looked-up token can reach the KL term.
        return Job(
            number, [x.ids + target[:-1] for x in located], [x.index for x in located], target, kl.ids[: kl.index + 1], kl.index
        )

    @property
    def columns(self) -> int:
        """Columns of a replay."""
        return max(len(row) - lookup for row, lookup in zip(self.rows, self.lookups))

    @property
    def width(self) -> int:
        return max(self.lookups) + self.columns


class Rows:
    """The context rows of some requests in one Replay, and where in them the targets are predicted."""

    def __init__(self, model: nn.Module, sites: Sites, jobs: list[Job], start: int, pad: int):
        self.contexts, self.requests = len(jobs[0].rows), len(jobs)
        self.replay = Replay(model, sites, [r for j in jobs for r in j.rows], [x for j in jobs for x in j.lookups], start, pad)
        places = [  # request, row, column counted from the looked-up token, token, its share in the request's loss
            (i, i * self.contexts + r, len(row) - len(job.target) - lookup + t, token, 1 / (self.contexts * len(job.target)))
            for i, job in enumerate(jobs)
            for r, (row, lookup) in enumerate(zip(job.rows, job.lookups))
            for t, token in enumerate(job.target)
        ]
        request, row, column, token, share = zip(*places)
        self.request_of, self.row_of, self.column_of, self.token = map(torch.tensor, (request, row, column, token))
        self.share = torch.tensor(share, dtype=torch.float64)

    def keep(self, active: Int[Tensor, " kept"]) -> None:
        """Let the rows of all other requests go."""
        self.replay.keep((active[:, None] * self.contexts + torch.arange(self.contexts)).flatten())
        renumbered = torch.full((self.requests,), -1)
        renumbered[active] = torch.arange(len(active))
        self.requests = len(active)
        request = renumbered[self.request_of]
        kept = request >= 0
        self.row_of = (request * self.contexts + self.row_of % self.contexts)[kept]
        self.request_of = request[kept]
        self.column_of, self.token, self.share = self.column_of[kept], self.token[kept], self.share[kept]


def chunks(jobs: list[Job], model: nn.Module, sites: Sites) -> Iterator[list[Job]]:
    """Consecutive jobs that fit into an eighth of the memory together.

    Counted: some 40 floats a block, replayed token and channel, a quarter of that for a cached token, and the targets' logits.
    """
    vocabulary = model.config.get_text_config().vocab_size
    budget = total_bytes(get_module(model, sites.lm_head).weight.device) / 8
    chunk, spent = [], 0.0
    for job in jobs:
        floats_a_row = 40 * sites.layers * sites.d_model * (job.columns + job.width / 4) + 4 * len(job.target) * vocabulary
        cost = 4 * len(job.rows) * floats_a_row
        if chunk and spent + cost > budget:
            yield chunk
            chunk, spent = [], 0.0
        chunk.append(job)
        spent += cost
    if chunk:
        yield chunk


def alike(jobs: list[Job], device: torch.device) -> Iterator[list[Job]]:
    """Consecutive jobs of like length: a group of its own saves padding, but must be worth a pass of its own."""
    worth = 128 if device.type == "cpu" else 8192
    group: list[Job] = []
    for job in jobs:
        if group and job.columns > 1.15 * group[0].columns and len(group) * len(job.rows) * group[-1].columns >= worth:
            yield group
            group = []
        group.append(job)
    yield group
