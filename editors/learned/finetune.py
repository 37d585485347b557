"""FT: fine-tuning at the time of the edit, the baseline of MEND and SERAC. Nothing is trained beforehand."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from common.errors import UserError
from editors.configuration import Bound, Count
from .editable import Editable, forward
from .episode import Batch
from .losses import locality_kl, locality_mask
from .optimisers import optimiser_class
from .options import Options

TimeLimit = Annotated[float, Bound(lambda seconds: seconds > 0, "seconds leave no time for a step; null is no limit")]


@dataclass(frozen=True, kw_only=True)
class FineTuneOptions(Options):
    """Fine-tuning's options: the steps, when they end, and what holds the rest of the model in place."""

    edit_lr: float = 5e-6
    max_edit_steps: Count = 100
    """Optimiser steps at most; they end as soon as all edits are answered right."""
    time_limit: TimeLimit | None = None
    """Seconds at most."""
    rank: Count | None = None
    """Change each weight by a product of two thin matrices of this rank; None: freely."""
    opt: str = "RMSprop"
    init_std: float = 0.01
    """Standard deviation of the first of the thin matrices; the second begins at 0."""
    grad_clip: float = 100.0
    locality: bool = False
    """Add the divergence on unrelated inputs to the loss."""
    oracle: bool = True
    """Draw new unrelated inputs at each step; false: the same for all steps of an edit."""
    cedit: float = 1e-2
    """Weight of the edit's loss beside that divergence."""
    legacy_off_by_one: bool = False
    """As published: the step that reaches the limit is lost, so one step changes nothing."""

    ignored: ClassVar[Mapping[str, str]] = {"verbose": "progress is the trainer's"}

    def __post_init__(self):
        super().__post_init__()
        optimiser_class(self.opt, "ft.opt", self.edit_lr, [(2, 2)])


class FineTune(Editable):
    """Minimises the edit's nll over residuals of the inner parameters, until every edit is answered right.

    `local`: function that gives a batch of unrelated inputs, needed for `locality`.
    """

    name, title = "ft", "FT"
    options_class = FineTuneOptions
    trained = False
    draws_local = True

    @classmethod
    def options_of(cls, tree: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        options, locality = dict(tree), tree["locality"]
        return options | {
            "locality": locality["enabled"], "oracle": locality["oracle"], "cedit": locality["cedit"],
            "grad_clip": config["grad_clip"], "legacy_off_by_one": config["legacy"]["ft_off_by_one"],
        }

    def __init__(
        self, model: nn.Module, inner_params: Sequence[str], options: FineTuneOptions | Mapping[str, Any] | None = None
    ):
        super().__init__(model, inner_params, options)
        self.local: Callable[[], Batch] | None = None

    def new_weights(self, batch: Batch, condition: Batch | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        options = self.options
        starts = {name: self.weight(name).detach() for name in self.inner}
        residuals, parameters = self._residuals(starts)
        optimiser = getattr(torch.optim, options.opt)(parameters, lr=options.edit_lr)
        deadline = time.perf_counter() + (options.time_limit or float("inf"))
        losses, local = [], None
        with torch.enable_grad():
            for number in range(options.max_edit_steps + 1):
                weights = {name: starts[name] + residuals[name]() for name in self.inner}
                if number == options.max_edit_steps and not options.legacy_off_by_one:
                    break
                scores = self.score(forward(self.model, self.overrides | weights, batch), batch)
                losses.append(scores.nll.item())
                _check(scores.nll, len(losses) - 1)
                last = number == options.max_edit_steps - 1 and options.legacy_off_by_one
                if scores.acc == 1 or time.perf_counter() > deadline or last:
                    break
                loss = scores.nll
                if options.locality:
                    local = self._local() if local is None or options.oracle else local
                    loss = self._divergence(weights, local) + options.cedit * loss
                for p, grad in zip(parameters, torch.autograd.grad(loss, parameters)):
                    p.grad = grad
                nn.utils.clip_grad_norm_(parameters, options.grad_clip)
                optimiser.step()
        for weight in weights.values():
            _check(weight, len(losses))
        return {name: weight.detach() for name, weight in weights.items()}, {"losses": losses}

    def _residuals(self, starts: Mapping[str, Tensor]) -> tuple[dict[str, Callable[[], Tensor]], list[Tensor]]:
        """({inner parameter: function that gives its residual}, what is optimised)."""
        rank, residuals, parameters = self.options.rank, {}, []
        for name, start in starts.items():
            if rank is None:
                residual = torch.zeros_like(start, requires_grad=True)
                parameters.append(residual)
                residuals[name] = lambda residual=residual: residual
            else:
                rows, columns = start.shape
                u = (torch.randn(rows, rank, dtype=start.dtype, device=start.device) * self.options.init_std).requires_grad_()
                v = torch.zeros(rank, columns, dtype=start.dtype, device=start.device, requires_grad=True)
                parameters += [u, v]
                residuals[name] = lambda u=u, v=v: u @ v
        return residuals, parameters

    def _local(self) -> Batch:
        if self.local is None:
            raise UserError("ft.locality needs unrelated inputs: set `local`")
        return self.local()

    def _divergence(self, weights: Mapping[str, Tensor], local: Batch) -> Tensor:
        with torch.no_grad():
            before = self(local)
        return locality_kl(before, forward(self.model, self.overrides | dict(weights), local), locality_mask(local))


def _check(value: Tensor, steps: int) -> None:
    if not torch.isfinite(value).all():
        problem = f"the loss is {value.item()}" if value.dim() == 0 else "weights are not finite"
        raise UserError(f"fine-tuning: {problem} after {steps} step{'s' * (steps != 1)}; lower edit_lr")
