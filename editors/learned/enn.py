"""ENN (Sinitsin et al. 2020): a model trained so that few gradient steps edit it, with learned step sizes."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from common.errors import UserError
from editors.base import Task
from editors.changes import Dense, LowRank
from editors.configuration import Count
from editors.core.modules import evaluating
from . import checkpoint
from .editable import identity_of
from .episode import Batch
from .factors import Factors
from .learned_editor import LearnedEditor
from .low_rank import LowRankEditable, Rows
from .options import Options


@dataclass(frozen=True, kw_only=True)
class ENNOptions(Options):
    """ENN's options: the steps on the edit, and how training differentiates through them."""

    edit_lr: float = 1e-2
    """Initial value of each weight's learned step size."""
    first_order: bool = False
    """Take the inner gradient as a constant in training: cheaper, and good for any attention kernel."""
    n_edit_steps: Count = 1
    no_grad_layers: int | None = None
    """Train only what stands in the blocks from this one on; None: the whole model."""

    free: ClassVar[frozenset[str]] = frozenset({"edit_lr", "first_order"})


class ENN(LowRankEditable):
    """W_i' = W_i - lr_i * d nll / d W_i, `n_edit_steps` times; the model itself and lr are trained.

    `model` here is a trained copy; the one that was given stays as it is. Second order differentiates through the inner
    gradient, which only eager attention can.
    """

    name, title = "enn", "ENN"
    options_class = ENNOptions

    @classmethod
    def needs_eager(cls, tree: Mapping[str, Any]) -> bool:
        return not tree["first_order"]

    def __init__(self, model: nn.Module, inner_params: Sequence[str], options: ENNOptions | Mapping[str, Any] | None = None):
        super().__init__(model, inner_params, options)
        attention = getattr(model.config, "_attn_implementation", "eager")
        if not self.options.first_order and attention != "eager":
            raise UserError(
                f"ENN of second order can't differentiate {attention!r} attention twice: "
                'load the model with attn_implementation="eager", or set enn.first_order=True'
            )
        self.identity = super().about()
        self.model = copy.deepcopy(model)
        outer = _upper_parameters(self.model, self.options.no_grad_layers)
        for name, p in self.model.named_parameters():
            p.requires_grad_(name in outer)
        self.net.model = self.model
        rates = torch.full((len(self.inner),), self.options.edit_lr, device=next(model.parameters()).device)
        self.net.edit_lrs = nn.Parameter(rates)

    def second_order(self) -> bool:
        return torch.is_grad_enabled() and not self.options.first_order

    def parts(self, batch: Batch, condition: Batch | None, segments: int) -> list[tuple[Batch, Batch | None]]:
        return [(batch, condition)] * self.options.n_edit_steps

    def step(self, batch: Batch, condition: Batch | None, segments: int, chunk: int) -> dict[str, Rows]:
        with evaluating(self.model):
            return super().step(batch, condition, segments, chunk)

    def transformed(self, number: int, factors: Factors, context: None) -> tuple[Tensor, Tensor, Tensor]:
        return -self.net.edit_lrs[number] * factors.u, factors.delta, factors.segment

    def state(self) -> dict[str, Tensor]:
        tied = set(self._tied())
        return {name: tensor for name, tensor in super().state().items() if name not in tied}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        tied = self._tied()
        super().load_state({**state, **{name: state[source] for name, source in tied.items() if source in state}})

    def _tied(self) -> dict[str, str]:
        """{name: name of the tensor that it shares its memory with}, of the second and later names of a tensor."""
        first: dict[int, str] = {}
        return {
            name: first[tensor.data_ptr()]
            for name, tensor in self.net.state_dict().items()
            if first.setdefault(tensor.data_ptr(), name) != name
        }

    def about(self) -> dict[str, Any]:
        return self.identity


def _upper_parameters(model: nn.Module, first_block: int | None) -> set[str]:
    """Names of all parameters, or of those in the blocks from `first_block` on of every stack."""
    names = {name for name, _ in model.named_parameters()}
    if first_block is None:
        return names
    stacks = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outermost = [path for path, _ in stacks if not any(path.startswith(outer_path + ".") for outer_path, _ in stacks)]
    upper = {
        name
        for path in outermost
        for name in names
        if name.startswith(path + ".") and int(name[len(path) + 1 :].split(".")[0]) >= first_block
    }
    if not upper:
        raise UserError(f"no_grad_layers: {first_block} leaves no block to train")
    return upper


class ENNEditor(LearnedEditor):
    """Sinitsin et al. 2020. Its training changed the whole model, so the edit brings that change, too."""

    name, algorithm = ENN.title, ENN

    any_model = True
    applied = {"first_order": True}  # any attention kernel will do

    def changes(self, task: Task) -> tuple[dict[str, LowRank | Dense], dict[str, Any]]:
        alg, info = self.editable(task.model)
        originals, trained = dict(task.model.named_parameters()), dict(alg.model.named_parameters())
        is_trained = all(_close(originals[name], trained[name]) for name in originals if name not in alg.inner)
        if not is_trained and not checkpoint.same_model(info["identity"], identity_of(task.model, alg.inner)):
            raise UserError(f"{info['checkpoint']}: a checkpoint of another model")
        current = copy.copy(alg)
        if is_trained:  # a later edit of a sequence: on what the earlier ones left
            current.overrides = {name: originals[name].detach() for name in alg.inner}
        batch, condition = self._batches(task.model, task.tok, alg, task.requests)
        with torch.no_grad():
            edited, _ = current.edit(batch, condition, detach_history=True, chunk=self.hparams.chunk)
        changes: dict[str, LowRank | Dense] = {}
        for name in alg.inner:
            edit = _difference(edited.weight(name), current.weight(name))
            if is_trained and name in edited.added:
                changes[name] = self._scaled(edited.added[name].change(alg.in_first[name]))
            else:
                changes[name] = Dense(self.hparams.lr_scale * edit + _difference(current.weight(name), originals[name]))
        if not is_trained:
            unedited = {name: _difference(trained[name], p) for name, p in originals.items() if name not in alg.inner}
            changes |= {name: Dense(delta) for name, delta in unedited.items() if delta.any()}
        return changes, {key: value for key, value in info.items() if key != "identity"}


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    tolerance = 4 * torch.finfo(a.dtype).eps
    return torch.allclose(a, b.to(a.dtype), rtol=tolerance, atol=tolerance * float(b.abs().max()))


def _difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    wider = torch.promote_types(a.dtype, torch.float32)
    return (a.detach().to(wider) - b.detach().to(wider)).cpu()
