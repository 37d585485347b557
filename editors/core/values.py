"""Target hidden states: the vector that, put in place of the subject's, makes the model say the new target.

MEMIT's z is sought at a block's output (MEMIT eq. 16), ROME's v at the output of the down-projection (ROME eq. 4); the loss is
the same:

    NLL of the target, averaged over the contexts
    + kl_factor * KL(now || unedited) of the next token after the subject in kl_prompt ("{subject} is a")
    + v_weight_decay * |delta| / |z_0|^2

All requests of a batch are optimised together. Their losses do not touch each other and Adam works element by element, so
the rows of one [n, d] delta move exactly as n separate optimisations would. A row whose loss falls below 0.05 is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from common.errors import UserError
from . import ranks
from .decoder import Decoder
from .modules import by_row, first, frozen, hooked
from .prompts import Request
from .replay import Replay, only_at
from .value_losses import target_losses
from .value_rows import ReplayRows, TokenisedRequest, alike, chunks

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
    kl_prompt: str
    target_tokens: str
    end_of_text: bool


@dataclass(frozen=True)
class Through:
    """In place of a site: the outputs of several down-projections at once, behind which a norm lets only some states through.

    delta is in units of the residual stream, so that step size, clamp and decay mean what they do where it is added there.
    """

    layers: Sequence[int]
    """Ascending."""
    scale: Float[Tensor, "n layers"]
    """What one unit of delta adds to each output."""
    length: Float[Tensor, " n"]
    """|z_0|: of the last block's output."""


Site = Literal["block", "down_proj"] | Through


@dataclass(frozen=True)
class Values:
    """initial: the hidden state of the unedited model at the bare prompt; target = initial + delta.

    Of several outputs (`Through`) one row is those of all layers, one after another.
    """

    initial: Float[Tensor, "n d_model"]
    delta: Float[Tensor, "n d_model"]

    @property
    def target(self) -> Float[Tensor, "n d_model"]:
        """z = z_0 + delta: the hidden state that says the new target."""
        return self.initial + self.delta


# Called once a step: step, numbers of the active requests, their delta as it enters, their loss terms by name.
Watcher = Callable[[int, list[int], Tensor, dict[str, Tensor]], None]


def optimise(
    decoder: Decoder,
    requests: Sequence[Request],
    layer: int,
    settings: ValueSettings,
    templates: Sequence[str],
    site: Site,
    watch: Watcher | None = None,
    progress: bool = True,
) -> Values:
    """The target hidden state of each request at `site` of block `layer`.

    templates: contexts, each with one "{}"; the first is the bare "{}" whose hidden state is the starting point.
    The model is left as it was; results are float32 at least, on the CPU.
    Raises UserError for a target without tokens or a subject that cannot be located.
    """
    return optimise_jointly(decoder, [requests], layer, [settings], [templates], [site], watch, progress)[0]


def optimise_jointly(
    decoder: Decoder,
    requests: Sequence[Sequence[Request]],
    layer: int,
    settings: Sequence[ValueSettings],
    templates: Sequence[Sequence[str]],
    sites: Sequence[Site],
    watch: Watcher | None = None,
    progress: bool = True,
) -> list[Values]:
    """The Values in each language of facts that are stated in several: one delta for each fact.

    requests: a list for each language, the same facts in the same order, with settings, templates and site of their own. The
    loss is the mean of theirs, and delta is clamped by the smallest |z_0|. Step size, steps and clamp are those of the first
    settings. For the rest see `optimise`.
    """
    by_language = [
        [
            TokenisedRequest.build(
                decoder.tok, number, request, language.fact_token, contexts, language.kl_prompt, language.target_tokens,
                language.end_of_text,
            )
            for number, request in enumerate(facts)
        ]
        for facts, language, contexts in zip(requests, settings, templates, strict=True)
    ]
    # Alike rows together: little padding.
    order = sorted(by_language[0], key=lambda request: (request.columns, request.width))
    states: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
    desc = f"values at block {layer}"
    bar = tqdm(total=len(order), desc=desc, unit="request", leave=False, disable=None if progress else True)

    def optimised(chunk: list[TokenisedRequest]) -> list[tuple[int, list[Tensor], list[Tensor]]]:
        parts = [
            _Objective(decoder, [translations[request.number] for request in chunk], layer, language, site)
            for translations, language, site in zip(by_language, settings, sites)
        ]
        rows = []
        for number, initials, deltas in _descend(parts, watch):
            rows.append((number, [initial.cpu() for initial in initials], [delta.cpu() for delta in deltas]))
            bar.update()
        return rows

    with bar, frozen(decoder.model), decoder.evaluating():  # only delta moves
        for rows in ranks.each(optimised, list(chunks(order, decoder))):
            states |= {number: (initials, deltas) for number, initials, deltas in rows}
    initials_by_language, deltas_by_language = (
        zip(*(states[i][part] for i in range(len(order))), strict=True) for part in (0, 1))
    values_by_language = [Values(torch.stack(initials), torch.stack(deltas))
                          for initials, deltas in zip(initials_by_language, deltas_by_language)]
    for values, facts in zip(values_by_language, requests):
        for request, row in zip(facts, values.target):
            if not torch.isfinite(row).all():
                raise UserError(
                    f"the target state of {request.subject!r} ({request.prompt!r}) is not finite: load the model in a wider "
                    "dtype"
                )
    return values_by_language


def _descend(parts: Sequence[_Objective], watch: Watcher | None) -> Iterator[tuple[int, list[Tensor], list[Tensor]]]:
    """Adam on the mean of the objectives; yields (number, initial states, deltas) of each request as it is done."""
    first_part, settings = parts[0], parts[0].settings
    decoder, device = first_part.decoder, first_part.decoder.device_of("block", first_part.layer)
    width = decoder.sites.d_model * len(first_part.layers)
    delta = torch.zeros(len(first_part.numbers), width, device=device, dtype=decoder.state_dtype)
    moment1, moment2 = torch.zeros_like(delta), torch.zeros_like(delta)
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(part.observed())
        for step in range(settings.v_num_grad_steps):
            delta.requires_grad_(True)
            terms = [part.losses(delta) for part in parts]
            loss = sum(sum(by_name.values()) for by_name in terms) / len(parts)
            if watch:
                watch(step, list(first_part.numbers), delta.detach().clone(), {k: v.detach() for k, v in terms[0].items()})
            finished = (loss.detach() < LOSS_GOAL) | (step == settings.v_num_grad_steps - 1)
            if not finished.all():
                (gradient,) = torch.autograd.grad(loss.sum(), delta)
            delta = delta.detach()
            for i in finished.nonzero()[:, 0].tolist():
                yield first_part.numbers[i], [part.initial[i] for part in parts], [part.added(delta)[i] for part in parts]
            if finished.all():
                return
            if finished.any():
                active = (~finished).nonzero()[:, 0]
                for part in parts:
                    part.keep(active)
                delta, moment1, moment2, gradient = (x[active] for x in (delta, moment1, moment2, gradient))

            moment1 = BETA1 * moment1 + (1 - BETA1) * gradient
            moment2 = BETA2 * moment2 + (1 - BETA2) * gradient**2
            scale = (moment2 / (1 - BETA2 ** (step + 1))).sqrt() + EPSILON
            delta = delta - settings.v_lr / (1 - BETA1 ** (step + 1)) * moment1 / scale
            smallest = torch.stack([part.length[:, None] for part in parts]).amin(0)
            radius = settings.clamp_norm_factor * smallest
            norm = delta.norm(dim=1, keepdim=True)
            delta = torch.where(norm > radius, delta * (radius / norm), delta)


class _Objective:
    """The loss of one chunk: state is one row a still active request, group after group."""

    def __init__(self, decoder: Decoder, requests: list[TokenisedRequest], layer: int, settings: ValueSettings, site: Site):
        self.decoder, self.settings, self.layer, self.site = decoder, settings, layer, site
        self.numbers = [request.number for request in requests]
        self.layers, self._scale, self._length = [layer], None, None
        if isinstance(site, Through):
            self.layers = list(site.layers)
            self._scale, self._length = site.scale[self.numbers], site.length[self.numbers]
        start = layer + 1 if site == "block" else self.layers[0]
        self.groups = [ReplayRows(decoder, group, start, settings.kl_factor > 0) for group in alike(requests, decoder.device)]
        self.kl_initial: Tensor | None = None
        self.initial: Tensor | None = None
        last = decoder.sites.layers - 1
        # As published MEMIT may score at an inner block; ROME, whose delta enters at down_proj, always at the model's output.
        inner = site != "down_proj" and settings.v_loss_layer is not None
        self.loss_layer = max(settings.v_loss_layer, layer) if inner else last
        self.looks_ahead = self.loss_layer < last

    @property
    def length(self) -> Float[Tensor, " n"]:
        """|z_0|."""
        return self.initial.norm(dim=1) if self._length is None else self._length.to(self.initial)

    def added(self, delta: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
        """What is added to the outputs."""
        if self._scale is None:
            return delta
        return (delta.unflatten(1, (len(self.layers), -1)) * self._scale.to(delta)[..., None]).flatten(1)

    def losses(self, delta: Float[Tensor, "n width"]) -> dict[str, Float[Tensor, " n"]]:
        targets, subjects, initial = [], [], []
        for group, part in zip(self.groups, self.added(delta).split([group.requests for group in self.groups])):
            read = group.read.to(delta.device)
            with self._only_at(read.unique()):
                out = self._replayed(group.replay, part[group.owner.to(part.device)])
            if self.initial is None:
                initial.append(self._before_delta[group.first.to(delta.device)].to(delta.dtype))
            out, n = out.flatten(0, 1), len(group.token)
            subjects.append(out[read[n:].to(out.device)])
            if self.looks_ahead:
                out = self.decoder.final_norm(self._at_loss_layer).flatten(0, 1)
            targets.append(out[read[:n].to(out.device)])
        if self.initial is None:
            self.initial = torch.cat(initial)

        logits = self.decoder.logits(torch.cat(targets + subjects)).to(delta.dtype)
        token, share = (torch.cat([getattr(group, name) for group in self.groups]) for name in ("token", "share"))
        if self.kl_initial is None:
            self.kl_initial = logits[len(token) :].detach().log_softmax(-1)
        log_p, kl = target_losses(logits, token.to(logits.device), self.kl_initial)
        nll = -log_p.to(delta.device) * share.to(delta)
        firsts = torch.tensor([0] + [group.requests for group in self.groups]).cumsum(0)
        request_of = torch.cat([group.request_of + first for group, first in zip(self.groups, firsts)])
        terms = {"nll": torch.zeros_like(delta[:, 0]).index_add(0, request_of.to(delta.device), nll)}
        if self.settings.kl_factor:
            terms["kl"] = self.settings.kl_factor * kl.to(delta.device)
        terms["wd"] = self.settings.v_weight_decay * delta.norm(dim=1) / self.length**2
        return terms

    def _replayed(self, replay: Replay, delta: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows columns d_model"]:
        """The decoder's output with delta added at the looked-up column of the site; notes what stood there before."""
        if self.site == "block":
            self._before_delta = replay.hidden[:, 0]
            changed = replay.hidden[:, :1] + delta[:, None].to(replay.hidden)
            return replay(torch.cat([changed, replay.hidden[:, 1:]], 1))

        before: list[Tensor] = []  # the layers' own outputs at column 0, with what is added below them

        def adding(part: Float[Tensor, "rows d_model"]):
            def add(module, args, output):
                shaped = by_row(output, len(part))
                before.append(shaped[:, 0].detach())
                changed = torch.cat([shaped[:, :1] + part[:, None].to(shaped), shaped[:, 1:]], 1)
                return changed.reshape(output.shape)

            return add

        parts = zip(self.layers, delta.chunk(len(self.layers), dim=1))
        with hooked(self.decoder.down_proj(layer).register_forward_hook(adding(part)) for layer, part in parts):
            out = replay()
        self._before_delta = torch.cat([x.to(delta.device) for x in before], 1) if len(before) > 1 else before[0]
        return out

    @contextmanager
    def _only_at(self, places: Int[Tensor, " places"]) -> Iterator[None]:
        """Inside, the scored block's attention output and MLP run only at the places that are read."""
        if self.loss_layer == self.layer:  # the edit's own block: delta enters elsewhere
            yield
            return
        attention, mlp = (self.decoder.module(site, self.loss_layer) for site in ("attn_out", "mlp"))
        with only_at(attention, places), only_at(mlp, places):
            yield

    def keep(self, active: Int[Tensor, " kept"]) -> None:
        """Let the rows of finished requests go."""
        index = active.cpu()
        end = 0
        for group in self.groups:
            start, end = end, end + group.requests
            group.keep(index[(index >= start) & (index < end)] - start)
        self.groups = [group for group in self.groups if group.requests]
        if self.settings.kl_factor:
            self.kl_initial = self.kl_initial[index.to(self.kl_initial.device)]
        self.initial = self.initial[active]
        if self._scale is not None:
            self._scale, self._length = self._scale[index], self._length[index]
        self.numbers = [self.numbers[i] for i in index.tolist()]

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Inside, the output of the loss layer is noted when the loss is read there."""
        if not self.looks_ahead:
            yield
            return

        def note(module, args, output):
            self._at_loss_layer = first(output)

        hook = self.decoder.block(self.loss_layer).register_forward_hook(note)
        try:
            yield
        finally:
            hook.remove()
