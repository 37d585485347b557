"""Target hidden states: the vector that, put in place of the subject's, makes the model say the new target.

MEMIT's z is sought at a block's output, ROME's v at the output of the down-projection; the loss is the same (memit spec,
"compute_z" and "compute_v"; MEMIT eq. 16, ROME eq. 4):

    NLL of the target, averaged over the contexts
    + kl_factor * KL(now || unedited) of the next token after the subject in "{subject} is a"
    + v_weight_decay * |delta| / |z_0|^2

All requests of a batch are optimised together. Their losses do not touch each other and Adam works element by element, so
the rows of one [n, d] delta move exactly as n separate optimisations would. A row whose loss falls below 0.05 is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from .memory import total_bytes
from .prompts import Request, encode_target, fill, locate, pad_id
from .replay import Replay
from .sites import Sites, by_row, first, get_module, head_logits

KL_PROMPT = "{} is a"
LOSS_GOAL = 0.05
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam's published settings


class ValueSettings(Protocol):
    """What of the hyper-parameters the optimisation reads."""

    fact_token: str
    v_num_grad_steps: int
    v_lr: float
    v_loss_layer: int | None
    v_weight_decay: float
    clamp_norm_factor: float
    kl_factor: float


@dataclass(frozen=True)
class Values:
    """initial: the hidden state of the unedited model at the bare prompt; target = initial + delta."""

    initial: Float[Tensor, "n d_model"]
    delta: Float[Tensor, "n d_model"]

    @property
    def target(self) -> Float[Tensor, "n d_model"]:
        return self.initial + self.delta


# Called once a step: step, numbers of the active requests, their delta as it enters, their loss terms by name.
Watcher = Callable[[int, list[int], Tensor, dict[str, Tensor]], None]


def optimise(
    model: nn.Module,
    tok,
    requests: Sequence[Request],
    layer: int,
    settings: ValueSettings,
    sites: Sites,
    templates: Sequence[str],
    site: Literal["block", "down_proj"],
    watch: Watcher | None = None,
    progress: bool = True,
) -> Values:
    """The target hidden state of each request at `site` of block `layer`.

    templates: contexts, each with one "{}"; the first is the bare "{}" whose hidden state is the starting point.
    The model is left as it was; results are float32 at least, on the CPU.
    Raises EditingError for a target without tokens or a subject that cannot be located.
    """
    jobs = [_Job.build(tok, number, request, settings.fact_token, templates) for number, request in enumerate(requests)]
    jobs.sort(key=lambda job: (job.columns, job.width))  # alike rows together: little padding
    done: dict[int, tuple[Tensor, Tensor]] = {}
    trained = [p for p in model.parameters() if p.requires_grad]
    bar = tqdm(total=len(jobs), desc=f"values at block {layer}", unit="request", leave=False, disable=None if progress else True)
    try:
        for p in trained:  # no gradients for weights: only delta moves
            p.requires_grad_(False)
        for chunk in _chunks(jobs, model, sites):
            optimiser = _Optimiser(model, tok, chunk, layer, settings, sites, site)
            for number, initial, delta in optimiser.run(watch):
                done[number] = (initial.cpu(), delta.cpu())
                bar.update()
    finally:
        bar.close()
        for p in trained:
            p.requires_grad_(True)
    initial, delta = (torch.stack([done[i][part] for i in range(len(jobs))]) for part in (0, 1))
    return Values(initial, delta)


@dataclass(frozen=True)
class _Job:
    """One request, tokenised: a row for each context (prompt + target but its last token) and the KL prompt."""

    number: int
    rows: list[list[int]]
    lookups: list[int]
    target: list[int]
    kl_row: list[int]
    kl_lookup: int

    @staticmethod
    def build(tok, number: int, request: Request, fact_token: str, templates: Sequence[str]) -> _Job:
        target = encode_target(tok, request.target_new)
        located = [locate(tok, fill(t, request.prompt), request.subject, fact_token) for t in templates]
        kl = locate(tok, KL_PROMPT, request.subject, fact_token)
        # Nothing after the looked-up token can reach the KL term.
        return _Job(
            number, [x.ids + target[:-1] for x in located], [x.index for x in located], target, kl.ids[: kl.index + 1], kl.index
        )

    @property
    def columns(self) -> int:
        """Columns of a replay."""
        return max(len(row) - lookup for row, lookup in zip(self.rows, self.lookups))

    @property
    def width(self) -> int:
        return max(self.lookups) + self.columns


def _chunks(jobs: list[_Job], model: nn.Module, sites: Sites) -> Iterator[list[_Job]]:
    """Consecutive jobs that fit into an eighth of the memory together.

    Counted: some 40 floats a block, replayed token and channel, a quarter of that for a cached token, and the targets' logits.
    From the memory that there is, not that is free now, so that the same command makes the same chunks.
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


class _Optimiser:
    """The optimisation of one chunk: state is one row a still active request."""

    def __init__(self, model, tok, jobs: list[_Job], layer: int, settings: ValueSettings, sites: Sites, site: str):
        self.model, self.sites, self.settings, self.layer, self.site = model, sites, settings, layer, site
        self.contexts = len(jobs[0].rows)
        self.numbers = [job.number for job in jobs]
        pad = pad_id(tok)
        start = layer + 1 if site == "block" else layer
        self.rows = Replay(model, sites, [r for j in jobs for r in j.rows], [x for j in jobs for x in j.lookups], start, pad)
        self.kl_rows = None
        if settings.kl_factor:
            self.kl_rows = Replay(model, sites, [j.kl_row for j in jobs], [j.kl_lookup for j in jobs], start, pad)
            self.kl_initial: Tensor | None = None

        # Where the targets are predicted: request, row, column (from the looked-up token on) and token of each.
        places = [
            (i, i * self.contexts + r, len(row) - len(job.target) - lookup + t, token)
            for i, job in enumerate(jobs)
            for r, (row, lookup) in enumerate(zip(job.rows, job.lookups))
            for t, token in enumerate(job.target)
        ]
        self.request_of, self.row_of, self.column_of, self.token = torch.tensor(places).T
        weight = torch.tensor([1 / (self.contexts * len(job.target)) for job in jobs], dtype=torch.float64)
        self.share = weight[self.request_of]

        last = sites.layers - 1
        self.loss_layer = max(last if settings.v_loss_layer is None else settings.v_loss_layer, layer)
        self.looks_ahead = site == "block" and self.loss_layer < last  # scored at an inner block, as published; ROME never does
        self.initial: Tensor | None = None

    def run(self, watch: Watcher | None):
        """Yields (number, initial, delta) of each request as it is done."""
        settings = self.settings
        with self._observed():
            width = self.sites.d_model
            device = next(get_module(self.model, self.sites.name("block", self.layer)).parameters()).device
            dtype = torch.promote_types(self.model.dtype, torch.float32)
            delta = torch.zeros(len(self.numbers), width, device=device, dtype=dtype)
            moment1, moment2 = torch.zeros_like(delta), torch.zeros_like(delta)
            for step in range(settings.v_num_grad_steps):
                delta.requires_grad_(True)
                terms = self._losses(delta)
                loss = sum(terms.values())
                if watch:
                    watch(step, list(self.numbers), delta.detach().clone(), {k: v.detach() for k, v in terms.items()})
                final = step == settings.v_num_grad_steps - 1
                finished = (loss.detach() < LOSS_GOAL) | final
                if not bool(finished.all()):
                    (gradient,) = torch.autograd.grad(loss.sum(), delta)
                delta = delta.detach()
                for i in finished.nonzero()[:, 0].tolist():
                    yield self.numbers[i], self.initial[i], delta[i]
                if bool(finished.all()):
                    return
                if bool(finished.any()):
                    active = (~finished).nonzero()[:, 0]
                    self._keep(active)
                    delta, moment1, moment2, gradient = (x[active] for x in (delta, moment1, moment2, gradient))

                moment1 = BETA1 * moment1 + (1 - BETA1) * gradient
                moment2 = BETA2 * moment2 + (1 - BETA2) * gradient**2
                scale = (moment2 / (1 - BETA2 ** (step + 1))).sqrt() + EPSILON
                delta = delta - settings.v_lr / (1 - BETA1 ** (step + 1)) * moment1 / scale
                radius = settings.clamp_norm_factor * self.initial.norm(dim=1, keepdim=True)
                norm = delta.norm(dim=1, keepdim=True)
                delta = torch.where(norm > radius, delta * (radius / norm), delta)

    def _losses(self, delta: Float[Tensor, "n d_model"]) -> dict[str, Float[Tensor, " n"]]:
        out = self._replayed(self.rows, delta.repeat_interleave(self.contexts, 0))
        if self.looks_ahead:
            out = get_module(self.model, self.sites.final_norm)(self._seen_at_loss_layer)
        picked = out[self.row_of.to(out.device), self.column_of.to(out.device)]
        log_p = head_logits(self.model, self.sites, picked).to(delta.dtype).log_softmax(-1)
        nll = -log_p.gather(1, self.token.to(log_p.device)[:, None])[:, 0].to(delta.device)
        share, request_of = self.share.to(delta), self.request_of.to(delta.device)
        terms = {"nll": torch.zeros_like(delta[:, 0]).index_add(0, request_of, nll * share)}
        if self.kl_rows is not None:
            out = self._replayed(self.kl_rows, delta)[:, 0]
            now = head_logits(self.model, self.sites, out).to(delta.dtype).log_softmax(-1)
            if self.kl_initial is None:
                self.kl_initial = now.detach()
            kl = (now.exp() * (now - self.kl_initial)).sum(-1)
            terms["kl"] = self.settings.kl_factor * kl.to(delta.device)
        terms["wd"] = self.settings.v_weight_decay * delta.norm(dim=1) / self.initial.norm(dim=1) ** 2
        return terms

    def _replayed(self, rows: Replay, delta: Float[Tensor, "rows d_model"]) -> Tensor:
        """The decoder's output with delta added at the looked-up column of the site."""
        if self.site == "block":
            if self.initial is None:
                self.initial = rows.hidden[:: self.contexts, 0].to(delta.dtype)
            changed = rows.hidden[:, :1] + delta[:, None].to(rows.hidden)
            return rows(torch.cat([changed, rows.hidden[:, 1:]], 1))

        def add(module, args, output):
            shaped = by_row(output, len(delta))
            if self.initial is None:
                self.initial = shaped[:: self.contexts, 0].detach().to(delta.dtype)
            changed = torch.cat([shaped[:, :1] + delta[:, None].to(shaped), shaped[:, 1:]], 1)
            return changed.reshape(output.shape)

        hook = get_module(self.model, self.sites.name("down_proj", self.layer)).register_forward_hook(add)
        try:
            return rows()
        finally:
            hook.remove()

    def _keep(self, active: Int[Tensor, " kept"]) -> None:
        """Let the rows of finished requests go."""
        index = active.cpu()
        rows = (index[:, None] * self.contexts + torch.arange(self.contexts)).flatten()
        self.rows.keep(rows)
        if self.kl_rows is not None:
            self.kl_rows.keep(index)
            self.kl_initial = self.kl_initial[index.to(self.kl_initial.device)]
        self.initial = self.initial[active]
        self.numbers = [self.numbers[i] for i in index.tolist()]
        new_request = torch.full((int(self.request_of.max()) + 1,), -1)
        new_request[index] = torch.arange(len(index))
        kept = new_request[self.request_of] >= 0
        self.row_of = (new_request[self.request_of] * self.contexts + self.row_of % self.contexts)[kept]
        self.request_of = new_request[self.request_of][kept]
        self.column_of, self.token, self.share = self.column_of[kept], self.token[kept], self.share[kept]

    @contextmanager
    def _observed(self):
        """Inside, the output of the loss layer is noted when the loss is read there."""
        if not self.looks_ahead:
            yield
            return

        def note(module, args, output):
            self._seen_at_loss_layer = first(output)

        block = get_module(self.model, self.sites.name("block", self.loss_layer))
        hook = block.register_forward_hook(note)
        try:
            yield
        finally:
            hook.remove()
