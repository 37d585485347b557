"""Requests of the value optimisation as rows of tokens: what runs together, and where the targets are predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from .budget import allowance, consecutive
from .decoder import Decoder
from .modules import get_module
from .prompts import Request, continued, fill, locate
from .replay import Replay

MOST, MOST_CPU = 64, 16
"""Requests that run together at the most: more are hardly faster, and what runs together is one process's share."""


@dataclass(frozen=True)
class TokenisedRequest:
    """One request, tokenised: a row for each context (prompt + target but its last token) and the KL prompt."""

    number: int
    rows: list[list[int]]
    lookups: list[int]
    target: list[int]
    kl_row: list[int]
    kl_lookup: int

    @staticmethod
    def build(
        tok, number: int, request: Request, fact_token: str, templates: Sequence[str], kl_prompt: str,
        target_tokens: str = "ids", end_of_text: bool = False,
    ) -> TokenisedRequest:
        """The request's token rows in these contexts. Raises UserError as `prompts.locate` and `encode_target` do."""
        target = request.target_ids(tok, end_of_text)
        prompts = [fill(t, request.prompt) for t in templates]
        located = [locate(tok, prompt, request.subject, fact_token) for prompt in prompts]
        rows = [continued(tok, fill(p, request.subject), x.ids, target, target_tokens) for p, x in zip(prompts, located)]
        kl = locate(tok, kl_prompt, request.subject, fact_token)
        # Nothing after the looked-up token can reach the KL term.
        return TokenisedRequest(number, rows, [x.index for x in located], target, kl.ids[: kl.index + 1], kl.index)

    @property
    def columns(self) -> int:
        """Columns of a replay."""
        return max(len(row) - lookup for row, lookup in zip(self.rows, self.lookups))

    @property
    def width(self) -> int:
        """Tokens of its longest row, with the padding of a replay."""
        return max(self.lookups) + self.columns


class ReplayRows:
    """The rows of some requests in one Replay, and where in them the targets are predicted and the KL term is read.

    The KL prompt needs a row of its own only where the bare prompt does not begin like it.
    """

    def __init__(self, decoder: Decoder, requests: list[TokenisedRequest], start: int, with_kl: bool):
        rows, lookups, owner, first, kl, places = [], [], [], [], [], []
        for i, tokenised in enumerate(requests):
            first.append(len(rows))
            for row, lookup in zip(tokenised.rows, tokenised.lookups):
                share = 1 / (len(tokenised.rows) * len(tokenised.target))
                start_of_target = len(row) + 1 - len(tokenised.target) - lookup
                places += [(i, len(rows), start_of_target - 1 + t, token, share) for t, token in enumerate(tokenised.target)]
                rows.append(row)
                lookups.append(lookup)
                owner.append(i)
            kl.append(first[-1])
            if with_kl and tokenised.rows[0][: tokenised.lookups[0] + 1] != tokenised.kl_row:
                kl[-1] = len(rows)
                rows.append(tokenised.kl_row)
                lookups.append(tokenised.kl_lookup)
                owner.append(i)
        request, row, column, token, share = zip(*places)
        self.requests, self.with_kl = len(requests), with_kl
        # Of a row: its request. Of a request: its row of the bare prompt, and the one whose column 0 is the KL prompt's.
        self.owner, self.first, self.kl = map(torch.tensor, (owner, first, kl))
        # Of each target token: request, row, column counted from the looked-up token, the token, its share in the loss.
        self.request_of, self.row_of, self.column_of, self.token = map(torch.tensor, (request, row, column, token))
        self.share = torch.tensor(share, dtype=torch.float64)
        self.replay = Replay(decoder, rows, lookups, start)

    @property
    def read(self) -> Int[Tensor, " places"]:
        """The places of the flattened [rows * columns] that are read: of the targets, then of the KL term."""
        columns = self.replay.columns
        targets = self.row_of * columns + self.column_of
        return torch.cat([targets, self.kl * columns]) if self.with_kl else targets

    def keep(self, active: Int[Tensor, " kept"]) -> None:
        """Let the rows of all other requests go."""
        requests = torch.full((self.requests,), -1)
        requests[active] = torch.arange(len(active))
        kept = (requests[self.owner] >= 0).nonzero()[:, 0]
        rows = torch.full_like(self.owner, -1)
        rows[kept] = torch.arange(len(kept))
        self.replay.keep(kept)
        self.requests, self.owner = len(active), requests[self.owner[kept]]
        self.first, self.kl = rows[self.first[active]], rows[self.kl[active]]
        places = (rows[self.row_of] >= 0).nonzero()[:, 0]
        self.request_of, self.row_of = requests[self.request_of[places]], rows[self.row_of[places]]
        self.column_of, self.token, self.share = self.column_of[places], self.token[places], self.share[places]


def chunks(requests: list[TokenisedRequest], decoder: Decoder) -> Iterator[list[TokenisedRequest]]:
    """Consecutive requests, not too many, that fit into the memory together.

    Counted: some 40 floats a block, replayed token and channel, a quarter of that for a cached token, and the targets' logits.
    """
    vocabulary = decoder.model.config.get_text_config().vocab_size
    channels = decoder.sites.layers * decoder.sites.d_model
    device = get_module(decoder.model, decoder.sites.lm_head).weight.device

    def needed_bytes(chunk: list[TokenisedRequest]) -> int:
        floats = 0
        for tokenised in chunk:
            replayed = channels * (40 * tokenised.columns + 10 * tokenised.width)
            floats += len(tokenised.rows) * (replayed + 4 * len(tokenised.target) * vocabulary)
        return 4 * floats

    return consecutive(requests, needed_bytes, allowance(device, "values"), MOST_CPU if device.type == "cpu" else MOST)


def alike(requests: list[TokenisedRequest], device: torch.device) -> list[list[TokenisedRequest]]:
    """Consecutive requests of like length in one group: the split that costs least, with padding and a pass for each group."""
    a_pass = 32 if device.type == "cpu" else 4096  # tokens that take as long as what every pass costs besides
    best: list[tuple[int, int]] = [(0, 0)]  # of the first n requests: cost, and where the last group begins
    for end in range(1, len(requests) + 1):
        cost, rows, columns = [], 0, 0
        for begin in range(end - 1, -1, -1):
            rows, columns = rows + len(requests[begin].rows), max(columns, requests[begin].columns)
            cost.append((best[begin][0] + rows * columns + a_pass, begin))
        best.append(min(cost))
    groups, end = [], len(requests)
    while end:
        begin = best[end][1]
        groups.append(requests[begin:end])
        end = begin
    return groups[::-1]
