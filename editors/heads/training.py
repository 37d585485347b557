"""Training of correction vectors: what is added to the outputs of chosen heads so that the model says the new targets.

(MEMAT, Tamayo et al. 2024.)

    loss of a request = NLL of the target, averaged over the contexts
                      + kl_factor * KL(now || without corrections) of the next token behind the subject in kl_prompt
                      + weight_decay * mean_k |delta_k| / |h_k|^2

All heads learn together, from batch after batch of requests, one Adam step a batch, and each vector is kept within clamp *
|h_k|. Where the vectors stand while they are trained is `position`:

    last_real   at the last token of each context (in effect in front of the target's last token)
    all         at every token
    legacy      at the last column of a request's padded batch, so that only its longest contexts learn (published)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from editors.core.budget import allowance, consecutive
from editors.core.decoder import Decoder
from editors.core.modules import frozen
from editors.core.prompts import continued, fill, locate, pad_batch, Request, tokenize
from editors.core.replay import Replay
from editors.core.value_losses import target_losses
from .outputs import Head, head_outputs, last_tokens, shifted

NORM_CHUNK = 64


@dataclass(frozen=True)
class Settings:
    """How correction vectors are trained: step size, clamp, penalties, batches and where the vectors stand."""

    lr: float
    clamp: float
    weight_decay: float
    kl_factor: float
    kl_prompt: str
    fact_token: str
    target_tokens: Literal["ids", "text"] = "ids"
    end_of_text: bool = False
    batch: int = 32
    epochs: int = 1
    position: Literal["last_real", "all", "legacy"] = "last_real"
    norm: Literal["per_head", "shared"] = "per_head"
    """|h|: of each head, at the last token, averaged over the requests; or of one head for all (published): the first chosen in
    the lowest chosen layer, at the first request's first context (with position "legacy" at its last column, mostly a padding
    token)."""
    divide_by_full_batch: bool = False
    """Divide the gradient of a last, shorter batch by `batch`, as published, not by its own size."""


# Called once a step: step, gradient, vectors before and after the clamp, loss terms of the batch's requests by name.
Watcher = Callable[[int, Tensor, Tensor, Tensor, dict[str, Tensor]], None]


@dataclass(frozen=True)
class _FactRows:
    """A request as rows of tokens: its contexts with the target but its last token, and the KL prompt."""

    rows: list[list[int]]
    target: list[int]
    kl_row: list[int]
    kl_index: int

    @staticmethod
    def build(tok, request: Request, templates: Sequence[str], kl_prompt: str, settings: Settings) -> _FactRows:
        target = request.target_ids(tok, settings.end_of_text)
        texts = [fill(fill(t, request.prompt), request.subject) for t in templates]
        rows = [continued(tok, text, ids, target, settings.target_tokens)
                for text, (ids, _) in zip(texts, tokenize(tok, texts))]
        kl = locate(tok, kl_prompt, request.subject, settings.fact_token)
        # With "legacy" the row's length decides where the vectors stand.
        kl_row = kl.ids if settings.position == "legacy" else kl.ids[: kl.index + 1]
        return _FactRows(rows, target, kl_row, kl.index)

    @property
    def width(self) -> int:
        return max(map(len, [*self.rows, self.kl_row]))


def train(
    decoder: Decoder, requests: Sequence[Request], heads: Sequence[Head], templates: Sequence[str] | Sequence[Sequence[str]],
    settings: Settings, watch: Watcher | None = None, progress: bool = True, kl_prompts: Sequence[str] | None = None,
) -> Float[Tensor, "heads size"]:
    """The correction vector of each head, for the model as it is; float32 at least, on the CPU. The model is left as it was.

    templates: contexts with one "{}" each; a list of them for each request, where these are in several languages. kl_prompts:
    one for each request, in the place of that of the settings. Raises UserError for a target without tokens or a subject that
    is not found.
    """
    contexts = [templates] * len(requests) if isinstance(templates[0], str) else templates
    kl_prompts = [settings.kl_prompt] * len(requests) if kl_prompts is None else kl_prompts
    facts = [_FactRows.build(decoder.tok, *fact, settings) for fact in zip(requests, contexts, kl_prompts, strict=True)]
    with frozen(decoder.model), decoder.evaluating(), torch.enable_grad():
        norms = _norms(decoder, facts, heads, settings)
        vectors = torch.zeros(len(heads), norms.shape[-1], dtype=norms.dtype, device=decoder.device)
        norms = norms.norm(dim=1).to(vectors.device)
        vectors.requires_grad_(True)
        adam = torch.optim.Adam([vectors], lr=settings.lr)
        batches = [facts[i : i + settings.batch] for _ in range(settings.epochs) for i in range(0, len(facts), settings.batch)]
        bar = tqdm(batches, desc="corrections", unit="batch", leave=False, disable=None if progress else True)
        for step, batch in enumerate(bar):
            share = 1 / (settings.batch if settings.divide_by_full_batch else len(batch))
            gradient, terms = torch.zeros_like(vectors), []
            for part in _parts(decoder, batch):
                losses = _losses(decoder, part, heads, vectors, settings)
                losses["wd"] = (settings.weight_decay * (vectors.norm(dim=1) / norms**2).mean()).expand(len(part))
                gradient += torch.autograd.grad(share * sum(losses.values()).sum(), vectors)[0]
                terms.append({name: value.detach() for name, value in losses.items()})
            vectors.grad = gradient
            adam.step()
            with torch.no_grad():
                before = vectors.clone()
                length = vectors.norm(dim=1)
                radius = settings.clamp * norms
                vectors.copy_(torch.where((length > radius)[:, None], vectors * (radius / length)[:, None], vectors))
            if watch:
                together = {name: torch.cat([part[name] for part in terms]) for name in terms[0]}
                watch(step, gradient, before, vectors.detach().clone(), together)
    return vectors.detach().cpu()


def _norms(
    decoder: Decoder, facts: Sequence[_FactRows], heads: Sequence[Head], settings: Settings
) -> Float[Tensor, "heads size"]:
    """For each head a vector as long as |h| is."""
    if settings.norm == "per_head":
        total = 0.0
        for start in range(0, len(facts), NORM_CHUNK):
            outputs = head_outputs(decoder, [fact.rows[0] for fact in facts[start : start + NORM_CHUNK]])
            total = total + torch.stack([outputs[:, layer, head] for layer, head in heads]).norm(dim=2).sum(1)
        unit = torch.nn.functional.one_hot(torch.zeros(len(heads), dtype=torch.long), outputs.shape[-1])
        return (total / len(facts))[:, None] * unit
    lowest = min(layer for layer, _ in heads)
    head = next(head for layer, head in heads if layer == lowest)
    if settings.position != "legacy":
        return head_outputs(decoder, facts[0].rows[:1])[:, lowest, head].expand(len(heads), -1)
    unshifted: dict[int, Tensor] = {}
    row = facts[0].rows[0] + [_own_pad(decoder)] * (facts[0].width - len(facts[0].rows[0]))
    size = head_outputs(decoder, facts[0].rows[:1]).shape[-1]
    with torch.no_grad(), shifted(decoder, [(lowest, head)], torch.zeros(1, size), unshifted=unshifted):
        ids = torch.tensor([row], device=decoder.device)
        decoder.stack(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return unshifted[lowest][:, -1, head].to("cpu", decoder.state_dtype).expand(len(heads), -1)


def _losses(
    decoder: Decoder, facts: Sequence[_FactRows], heads: Sequence[Head], vectors: Float[Tensor, "heads size"],
    settings: Settings,
) -> dict[str, Float[Tensor, " facts"]]:
    """NLL and KL of each request, with the vectors in place. With last_real the NLL is only that of the target's last token:
    the vectors stand behind the others."""
    rows, places, reads = [], [], []
    last_only = settings.position == "last_real"
    for i, fact in enumerate(facts):
        share = 1 / (len(fact.rows) * len(fact.target))
        for row in fact.rows:
            first = len(row) - len(fact.target)
            scored = [len(fact.target) - 1] if last_only else range(len(fact.target))
            places += [(i, len(rows), first + t, fact.target[t], share) for t in scored]
            rows.append(row)
    with_kl = settings.kl_factor > 0
    if with_kl:
        for fact in facts:
            reads.append((len(rows), fact.kl_index))
            rows.append(fact.kl_row)
    request, row, column, token, share = zip(*places)
    where = [*zip(row, column), *reads]
    if last_only:
        run = _replay(decoder, rows, heads)
    else:
        run = _whole(decoder, rows, facts, heads, settings)
    initial = torch.empty(0, 1, device=vectors.device)
    if with_kl:
        with torch.no_grad():  # of all places: as one row among many it has the same rounding as below
            initial = decoder.logits(run(None, where))[len(token) :].to(vectors.dtype).log_softmax(-1)
    logits = decoder.logits(run(vectors, where)).to(vectors.dtype)
    log_p, kl = target_losses(logits, torch.tensor(token, device=logits.device), initial.to(logits.device))
    weights = torch.tensor(share, dtype=log_p.dtype, device=log_p.device)
    nll = log_p.new_zeros(len(facts)).index_add(0, torch.tensor(request, device=log_p.device), -log_p * weights)
    losses = {"nll": nll.to(vectors.device)}
    if with_kl:
        losses["kl"] = settings.kl_factor * kl.to(vectors.device)
    return losses


# Runs the rows with these vectors (None: without) and gives the decoder's output at (row, column) places.
_Run = Callable[[Tensor | None, Sequence[tuple[int, int]]], Float[Tensor, "places d_model"]]


def _replay(decoder: Decoder, rows: Sequence[list[int]], heads: Sequence[Head]) -> _Run:
    """Vectors at each row's last token: what stands before it, and the layers below the lowest head, run once and without
    gradient."""
    replay = Replay(decoder, rows, [len(row) - 1 for row in rows], min(layer for layer, _ in heads))

    def run(vectors, where):
        if vectors is None:
            out = replay()[:, 0]
        else:
            with shifted(decoder, heads, vectors, torch.ones_like(replay.ids[:, -1:])):
                out = replay()[:, 0]
        return out[torch.tensor([row for row, _ in where], device=out.device)]

    return run


def _whole(
    decoder: Decoder, rows: Sequence[list[int]], facts: Sequence[_FactRows], heads: Sequence[Head], settings: Settings
) -> _Run:
    """Vectors at every token, or where the published code puts them."""
    legacy = settings.position == "legacy"
    owners = [fact for fact in facts for _ in fact.rows] + (list(facts) if settings.kl_factor > 0 else [])
    padding = _own_pad(decoder) if legacy else decoder.pad_id
    if legacy:
        rows = [row + [padding] * (fact.width - len(row)) for row, fact in zip(rows, owners, strict=True)]
    batch = pad_batch(rows, padding, decoder.device)
    marks = last_tokens(rows, batch["input_ids"].device) if legacy else batch["attention_mask"]
    # The published model ignores the mask, so that padding tokens attend to their row.
    mask = torch.ones_like(batch["input_ids"]) if legacy else batch["attention_mask"]

    def run(vectors, where):
        if vectors is None:
            out = decoder.stack(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False).last_hidden_state
        else:
            with shifted(decoder, heads, vectors, marks):
                out = decoder.stack(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False).last_hidden_state
        row, column = (torch.tensor(part, device=out.device) for part in zip(*where))
        return out[row, column]

    return run


def _own_pad(decoder: Decoder) -> int:
    """The tokenizer's padding token: where vectors stand on padding, it matters which."""
    pad_token = decoder.tok.pad_token_id
    usable = pad_token is not None and pad_token < len(decoder.model.get_input_embeddings().weight)
    return pad_token if usable else decoder.pad_id


def _parts(decoder: Decoder, facts: Sequence[_FactRows]) -> Iterator[list[_FactRows]]:
    """Consecutive facts whose passes fit into the memory: some 40 floats a block, token and channel."""
    tokens = max(1, allowance(decoder.device, "corrections") // (4 * 40 * decoder.sites.layers * decoder.sites.d_model))
    return consecutive(facts, lambda part: sum(fact.width * (len(fact.rows) + 1) for fact in part), tokens)
