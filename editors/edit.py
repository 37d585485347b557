"""Edit: a frozen, reversible change to a few weights of a model."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.tensor_files import read_tensors, write_tensors
from . import adapter, registry
from .changes import add_to, Change, Dense, LowRank
from .core.kept import kept
from .core.modules import get_plain_module
from .core.wrappers import plain_module, unwrapped

FORMAT = 1


def applied_to(model: nn.Module) -> dict[Edit, dict[str, Tensor | None]]:
    """The edits now in a model, oldest first, each with the exact weights it replaced; None: a bias that was not there."""
    return kept(unwrapped(model), "edits")


@dataclass(frozen=True, eq=False)
class Edit:
    """What an editor returns: one change for each edited parameter, and where it came from.

    changes: parameter name -> LowRank or Dense, on the CPU, float32 or wider. The name is that of the plain model, whatever the
        model is wrapped in (peft, torch.compile, DistributedDataParallel), so an edit of one form applies to the others.
        A bias may be named that the model's linear map lacks: `apply` makes it, beginning at 0, and `revert` takes it away.
    info: JSON-ready provenance (algorithm, hyper-parameters, requests, seconds of each phase).
    """

    changes: Mapping[str, Change]
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "changes", MappingProxyType(dict(self.changes)))

    def __repr__(self) -> str:
        ranks = sorted({change.left.shape[1] for change in self.changes.values() if isinstance(change, LowRank)})
        of_rank = f" of rank {' and '.join(map(str, ranks))}" if ranks else ""
        names = list(self.changes)
        which = f": {names[0]}" + (f" to {names[-1]}" if len(names) > 1 else "") if names else ""
        return f"<Edit by {self.info.get('editor', '?')}, {self.info.get('requests', '?')} requests, {len(names)} " \
               f"parameters{of_rank}{which}>"

    def deltas(self) -> dict[str, Tensor]:
        """{parameter name: change in the parameter's own shape}, on the CPU."""
        return {name: change.dense() for name, change in self.changes.items()}

    def plus(self, other: Edit, info: Mapping[str, Any] | None = None) -> Edit:
        """The sum of two edits of the same model; info: the sum's, by default this edit's."""
        changes = dict(self.changes)
        for name, change in other.changes.items():
            changes[name] = changes[name].plus(change).smaller() if name in changes else change
        return Edit(changes, self.info if info is None else info)

    def apply(self, model: nn.Module, originals_device: torch.device | str | None = None) -> None:
        """Add the change to the model in place. Only the edited weights are copied, for `revert`.

        originals_device: where those copies are kept; by default beside the weights ("cpu" spares GPU memory).
        Raises UserError if the edit is in the model already, or does not fit it; the model is then unchanged.
        """
        if self in applied_to(model):
            raise UserError("this edit is already applied to the model: revert it first")
        parameters, new_biases = self._fitting(model)
        originals = {
            name: None if name in new_biases else p.detach().to(originals_device or p.device, copy=True)
            for name, p in parameters.items()
        }
        try:
            for name, change in self.changes.items():
                add_to(parameters[name], change)
            for name, bias in new_biases.items():
                _set_bias(model, name, bias)
        except BaseException:  # out of memory, or interrupted: all or nothing
            _put_back(model, originals)
            raise
        applied_to(model)[self] = originals

    def check(self, model: nn.Module) -> None:
        """Raises UserError if the edit does not fit the model."""
        self._fitting(model)

    def _fitting(self, model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """(the parameters that the edit changes, of which biases that the model lacks); UserError if it is not for this
        model."""
        new_biases = {name: bias for name in self.changes if (bias := _missing_bias(model, name)) is not None}
        parameters = {name: new_biases[name] if name in new_biases else _parameter(model, name) for name in self.changes}
        for name, change in self.changes.items():
            if change.shape != tuple(parameters[name].shape):
                raise UserError(
                    f"the edit of {name} has shape {change.shape} but the model's parameter has "
                    f"{tuple(parameters[name].shape)}: it was made for another model"
                )
        return parameters, new_biases

    def revert(self, model: nn.Module) -> None:
        """Put back the exact bits that `apply` replaced. Edits on top of each other are reverted last first."""
        edits = list(applied_to(model))
        if self not in edits:
            raise UserError("this edit is not applied to the model: nothing to revert")
        if any(set(later.changes) & set(self.changes) for later in edits[edits.index(self) + 1 :]):
            raise UserError("a later edit changed the same weights: revert the later one first")
        _put_back(model, applied_to(model)[self])
        del applied_to(model)[self]

    def keep(self, model: nn.Module) -> None:
        """Make the edit applied last permanent: it can't be reverted any more, and the copies of the originals go."""
        if [*applied_to(model)][-1:] != [self]:
            raise UserError("this edit is not the last one applied to the model: nothing to keep")
        del applied_to(model)[self]

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """`with edit.applied(model):` the edited model inside, the original bits after."""
        self.apply(model)
        try:
            yield model
        finally:
            self.revert(model)

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file: the factors as tensors, `info` as JSON in its header."""
        path = Path(path)
        tensors, kinds = {}, {}
        for name, change in self.changes.items():
            if isinstance(change, LowRank):
                kinds[name] = "low_rank"
                tensors[f"{name}/left"], tensors[f"{name}/right"] = change.left, change.right
            else:
                kinds[name] = "dense"
                tensors[f"{name}/delta"] = change.delta
        header = {"format": FORMAT, "changes": kinds, "info": dict(self.info)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, header, key="edit")

    def save_adapter(
        self, folder: str | os.PathLike, model: nn.Module, max_rank: int | None = 512, base_model: str | None = None
    ) -> dict[str, adapter.Lora]:
        """Write a LoRA adapter that peft loads beside the unedited `model`; for what it returns and raises see adapter.py."""
        return adapter.save(Path(folder), self.changes, self.info, model, max_rank, base_model)

    def rounding(self, model: nn.Module) -> dict[str, float]:
        """{parameter name: |change that `apply` makes - exact change| / |exact change|} of a model that the edit is not in.

        What a weight's dtype takes from the edit, whose factors are wider: 1e-7 |W| / |change| in float32, much in 16 bits.
        """
        errors = {}
        for name, change in self.changes.items():
            missing = _missing_bias(model, name)
            parameter = (_parameter(model, name) if missing is None else missing).detach()
            delta = change.dense(parameter.device)
            delta = delta.to(torch.promote_types(delta.dtype, parameter.dtype))
            rounded = (parameter + delta).to(parameter.dtype).to(delta.dtype) - parameter.to(delta.dtype)
            errors[name] = float((rounded - delta).norm() / delta.norm().clamp_min(torch.finfo(delta.dtype).tiny))
        return errors

    @staticmethod
    def load(path: str | os.PathLike) -> Edit:
        """Read what `save` wrote, here or in a memory's edit. Raises UserError for a missing, truncated or foreign file."""
        if not Path(path).is_file():
            raise UserError(f"{path}: no such edit file")
        path, remedy = Path(path), "save the edit again"
        header, tensors = read_tensors(path, "file that Edit.save wrote", remedy)
        if "edits" in tensors:
            return pkgutil.resolve_name(registry.MEMORY_EDIT).load(path)
        try:
            if header["format"] != FORMAT:
                raise UserError(f"{path}: edit format {header['format']}, this version reads {FORMAT}")
            changes = {}
            for name, kind in header["changes"].items():
                if kind == "low_rank":
                    changes[name] = LowRank(_part(tensors, f"{name}/left", 2), _part(tensors, f"{name}/right", 2))
                    if changes[name].left.shape[1] != changes[name].right.shape[1]:
                        raise ValueError(f"the factors of {name} are of different ranks")
                else:
                    changes[name] = Dense(_part(tensors, f"{name}/delta"))
            return Edit(changes, dict(header["info"]))
        except UserError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: truncated, or not a file that Edit.save wrote ({error}): {remedy}") from None


def _part(tensors: Mapping[str, Tensor], name: str, dimensions: int | None = None) -> Tensor:
    if not tensors[name].is_floating_point() or dimensions not in (None, tensors[name].ndim):
        raise ValueError(f"{name} is {tensors[name].dtype} of shape {list(tensors[name].shape)}")
    return tensors[name]


def _put_back(model: nn.Module, originals: Mapping[str, Tensor | None]) -> None:
    with torch.no_grad():
        for name, original in originals.items():
            if original is None:
                _set_bias(model, name, None)
            else:
                _parameter(model, name).copy_(original)


def _missing_bias(model: nn.Module, name: str) -> nn.Parameter | None:
    """A bias of zeros where `name` is one that a linear map has room for and lacks; None where it is anything else."""
    module_name, _, attribute = name.rpartition(".")
    try:
        module = plain_module(model, module_name)
    except AttributeError:
        return None
    weight = getattr(module, "weight", None)
    if attribute != "bias" or getattr(module, "bias", 0) is not None or not isinstance(weight, nn.Parameter):
        return None
    # Not of a Conv1D, which always has its bias: so the weight is [d_out, d_in].
    return nn.Parameter(weight.detach().new_zeros(len(weight)), requires_grad=weight.requires_grad)


def _set_bias(model: nn.Module, name: str, bias: nn.Parameter | None) -> None:
    get_plain_module(model, name.rpartition(".")[0]).bias = bias


def _parameter(model: nn.Module, name: str) -> nn.Parameter:
    module_name, _, attribute = name.rpartition(".")
    parameter = getattr(get_plain_module(model, module_name), attribute, None)
    if not isinstance(parameter, nn.Parameter):
        raise UserError(f"the model has no parameter {name!r}: the edit was made for another model")
    return parameter
