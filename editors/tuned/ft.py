"""FT: constrained and unconstrained fine-tuning of a few weights (Zhu et al. 2020), as ROME and MEMIT use it as a baseline."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import nn
from tqdm import tqdm

from common.errors import UserError
from editors.base import Task, WeightEditor
from editors.changes import Dense
from editors.configuration import Bound, Count, NotNegative, Positive
from editors.core.batching import check_padding
from editors.core.modules import input_device
from editors.core.prompts import fill, pad_batch, pad_id, Request, tokenize
from editors.core.sites import find_sites
from editors.core.wrappers import plain_name, plain_parameters
from editors.hparams import HParams

LOSS_GOAL = 1e-2
BlockPath = Annotated[str, Bound(lambda path: path.count("{}") == 1, "needs exactly one '{}', where a block's number stands")]
PowerLaw = Annotated[list[float], Bound(lambda law: len(law) == 2 and all(abs(x) < 30 for x in law),
                                        "must be two numbers [a, b], neither beyond 30: the weight decay is n^a e^b")]


@dataclass(frozen=True, kw_only=True)
class FTHParams(HParams):
    """Keys of fine-tuning: the weights, the optimiser and the norm constraint."""

    rewrite_module_tmp: BlockPath | None = None
    """Edited module or parameter of a block; None: the down-projection, as the model has it."""
    num_steps: Count
    """Epochs over the requests."""
    lr: Positive
    """Step of Adam."""
    weight_decay: NotNegative | Literal[False]
    """Adam's L2 term, added to the gradient; false is 0."""
    norm_constraint: Positive | Literal[False] | None
    """Largest change of any element of a weight (FT-L); false or null: unconstrained."""
    batch_size: Count = 64
    """Requests a step."""
    end_of_text: bool = False
    """Whether the tokenizer's end-of-text token is learned too, behind the whole target; published: it is not."""
    wd_power_law: PowerLaw | None = None
    """[a, b]: with n requests the weight decay is n^a e^b (MEMIT appendix B.1)."""
    legacy_wd_power_law: bool = False
    """true ignores wd_power_law, as the published code did whenever it came from a JSON file."""

    ignored: ClassVar[Mapping[str, str]] = {"kl_factor": "the published code reads it nowhere"}

    @property
    def bound(self) -> float | None:
        """norm_constraint as a number, or None."""
        return None if self.norm_constraint is False else self.norm_constraint

    def decay(self, n: int) -> float:
        """Adam's weight decay for n requests."""
        if self.wd_power_law is None or self.legacy_wd_power_law:
            return float(self.weight_decay)
        a, b = self.wd_power_law
        return n**a * math.exp(b)


class FT(WeightEditor):
    """Adam on the listed modules' parameters; every token of a target is scored at the prompt's last token.

    That is the published loss: no teacher forcing, so only one-token targets are learned as a language model would say them.
    Batches whose loss is below `loss_floor` take no step; an epoch whose mean is below it ends the training.
    """

    name = "FT"
    hparams_class = FTHParams
    needs_cache = False

    def changes(self, task: Task) -> tuple[dict[str, Dense], dict[str, Any]]:
        hp, model, tok, requests = self.hparams, task.model, task.tok, task.requests
        check_padding(model, f"an edit by {self.name}")
        weights = self._weights(model)
        flags = {p: p.requires_grad for p in model.parameters()}
        originals = {name: p.detach().clone() for name, p in weights.items()}
        # Adam and the constraint work on wide copies: in half precision a step is often smaller than a weight's last digit.
        masters = {name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for name, p in weights.items()}
        starts = {name: master.clone() for name, master in masters.items()}
        epochs = self.epochs(task)
        optimiser = torch.optim.Adam(masters.values(), lr=hp.lr, weight_decay=hp.decay(len(requests)))
        losses: list[float] = []
        try:
            for p in model.parameters():
                p.requires_grad_(False)
            for p in weights.values():
                p.requires_grad_(True)
            hidden = None if task.progress else True
            for _ in tqdm(range(hp.num_steps), desc="fine-tuning", unit="epoch", leave=False, disable=hidden):
                losses.append(self._epoch(model, next(epochs), optimiser, weights, masters, starts))
                if losses[-1] < self.loss_floor:
                    break
        finally:
            with torch.no_grad():
                for name, p in weights.items():
                    p.copy_(originals[name])
            for p, flag in flags.items():
                p.requires_grad_(flag)
        return {name: Dense((master - starts[name]).cpu()) for name, master in masters.items()}, {"loss": losses}

    @property
    def loss_floor(self) -> float:
        """Below it a batch takes no step, and an epoch's mean ends the training."""
        return LOSS_GOAL

    def epochs(self, task: Task) -> Iterator[Sequence[Batch]]:
        """The batches of each epoch, without end."""
        hp, requests = self.hparams, task.requests
        return repeat([_FTBatch.build(task.tok, requests[i : i + hp.batch_size], input_device(task.model), hp.end_of_text)
                       for i in range(0, len(requests), hp.batch_size)])

    def _weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters of the listed modules (weights and biases), or the one parameter that the template names."""
        template = self.hparams.rewrite_module_tmp
        sites = None if template else find_sites(model, self.hparams.templates())
        weights, parameters = {}, plain_parameters(model)
        for layer in self.hparams.layers:
            path = fill(template, str(layer)) if template else plain_name(sites.name("down_proj", layer))
            of_layer = {n: p for n, p in parameters.items() if n == path or n.startswith(path + ".")}
            if not of_layer:
                raise UserError(f"the model has no module or parameter {path!r}: check layers and rewrite_module_tmp")
            weights |= of_layer
        return weights

    def _epoch(self, model, batches, optimiser, weights, masters, starts) -> float:
        """One pass over the batches; returns the loss averaged over requests."""
        total, bound = 0.0, self.hparams.bound
        for batch in batches:
            loss = batch.loss(model)
            if not torch.isfinite(loss):  # else it would pass for one that is low enough
                raise UserError(f"the loss is {loss.item()}: load the model in a wider dtype, or lower lr (now "
                                f"{self.hparams.lr:g})")
            total += loss.item() * len(batch.targets)
            if loss.item() >= self.loss_floor:
                for master, gradient in zip(masters.values(), _gradients(loss, weights)):
                    master.grad = None if gradient is None else gradient.to(master.dtype)
                optimiser.step()
            with torch.no_grad():
                for name, master in masters.items():
                    if bound is not None:
                        master.copy_(torch.clamp(master, starts[name] - bound, starts[name] + bound))
                    weights[name].copy_(master)
        return total / sum(len(batch.targets) for batch in batches)


def _gradients(loss: torch.Tensor, weights: Mapping[str, nn.Parameter]) -> Sequence[torch.Tensor | None]:
    """Of the loss; None of a weight that plays no part in it, such as that of an expert to which no token is sent.

    Raises UserError where none does.
    """
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True) if loss.requires_grad else [None]
    if all(gradient is None for gradient in gradients):
        raise UserError(f"the loss has no gradient of {next(iter(weights))}, nor of the other weights: they take no part in "
                        "the model's forward pass, or it keeps no graph")
    return gradients


@dataclass(frozen=True)
class Batch(ABC):
    """Requests that take a step together."""

    inputs: dict[str, torch.Tensor]
    targets: list[list[int]]
    """With the end behind them, if it is learned."""

    @abstractmethod
    def loss(self, model: nn.Module) -> torch.Tensor:
        """The mean over requests of the mean over the target's tokens of -log p."""

    def logits(self, model: nn.Module) -> torch.Tensor:
        """Of all places [rows, tokens, vocabulary], without a cache: RWKV's and xLSTM's is changed in place, which can't be
        differentiated."""
        mask = self.inputs["attention_mask"]
        return model(input_ids=self.inputs["input_ids"], attention_mask=mask, use_cache=False).logits


@dataclass(frozen=True)
class _FTBatch(Batch):
    ended: bool
    """Whether the targets, but for their ends, stand behind their prompts in the inputs."""

    @staticmethod
    def build(tok, requests: Sequence[Request], device: torch.device, ended: bool = False) -> _FTBatch:
        rows = [ids for ids, _ in tokenize(tok, [request.text for request in requests])]
        targets = [request.target_ids(tok, ended) for request in requests]
        if ended:
            rows = [row + target[:-1] for row, target in zip(rows, targets)]
        return _FTBatch(pad_batch(rows, pad_id(tok), device), targets, ended)

    def loss(self, model: nn.Module) -> torch.Tensor:
        """Every token's -log p at the last prompt token, an end's at the last."""
        logits, last = self.logits(model), self.inputs["attention_mask"].sum(1) - 1
        rows = torch.arange(len(last), device=last.device)
        if not self.ended:
            return -torch.stack([row[target].mean() for row, target in zip(log_p(logits, rows, last), self.targets)]).mean()
        behind_prompts = last - torch.tensor([len(target) - 1 for target in self.targets], device=last.device)
        tokens = [torch.cat([row[target[:-1]], ended_row[target[-1:]]]) for row, ended_row, target
                  in zip(log_p(logits, rows, behind_prompts), log_p(logits, rows, last), self.targets)]
        return -torch.stack([log_ps.mean() for log_ps in tokens]).mean()


def log_p(logits: torch.Tensor, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the next token at one place of each of these rows, in float32 at least."""
    logits = logits[rows.to(logits.device), places.to(logits.device)]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
