"""UltraEdit: gradients of linear maps, normalised over a lifetime of edits, and one solve a map (Gu et al., TMLR 2026)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from common.errors import UserError
from editors.base import Task, WeightEditor
from editors.changes import Change, Dense, LowRank
from editors.configuration import Bound, Configuration, Count, Natural, Positive
from editors.core.batching import check_padding
from editors.core.decoder import Decoder
from editors.core.modules import frozen, get_plain_module, hooked, is_linear
from editors.core.normaliser import Normaliser
from editors.core.prompts import check_lengths, fill, pad_batch, prompt_ids, Request
from editors.core.solve import double
from editors.core.wrappers import bare

_RANGE = re.compile(r"\{(\d+)-(\d+)\}")
ModulePaths = Annotated[list[str], Bound(lambda paths: paths and all(path.strip(".") and len(_RANGE.findall(path)) <= 1
                                                                     and _RANGE.sub("", path).replace("{}", "").isprintable()
                                                                     and path.count("{") <= 1 for path in paths),
                                         "must be paths of linear maps, in each at most one '{}' or range '{11-15}'")]


@dataclass(frozen=True, kw_only=True)
class UltraEditHParams(Configuration):
    """UltraEdit's keys: which linear maps, how far, and what is normalised together."""

    modules: ModulePaths
    """Linear maps to edit: paths; "{11-15}" in a path stands for each number from 11 to 15, "{}" for each of `layers`."""
    layers: Annotated[list[Natural], Bound(bool, "must not be empty")] | None = None
    """Numbers that "{}" in `modules` stands for."""
    lr: Positive
    """Length of the step along the normalised gradient; published: 1e-6."""
    batch_size: Count = 10
    """Requests that go through the model together, and whose tokens share one mean loss."""
    normaliser: Literal["shape", "module"] = "shape"
    """What shares running statistics: maps of one width in and out (published), or each map has its own."""
    end_of_text: bool = False
    """Whether the tokenizer's end-of-text token is a part of the target; published: it is not."""

    def __post_init__(self):
        super().__post_init__()
        if any("{}" in path for path in self.modules) != (self.layers is not None):
            raise UserError('layers: needed where a path in modules has "{}", and only there')

    def paths(self) -> list[str]:
        """The maps, each once, in the order of `modules`."""
        return list(dict.fromkeys(path for template in self.modules for path in self._filled(template)))

    def _filled(self, template: str) -> Iterator[str]:
        if "{}" in template:
            yield from (fill(template, str(layer)) for layer in self.layers)
        elif match := _RANGE.search(template):
            first, last = map(int, match.groups())
            if first > last:
                raise UserError(f"modules: the range of {template!r} is empty")
            yield from (template.replace(match[0], str(number)) for number in range(first, last + 1))
        else:
            yield template


class Linear(NamedTuple):
    """A linear map d_in -> d_out that is edited."""

    path: str
    module: nn.Module

    @property
    def in_first(self) -> bool:
        """Whether its weight is [d_in, d_out]."""
        return isinstance(self.module, Conv1D)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_in, d_out)"""
        rows, columns = self.module.weight.shape
        return (rows, columns) if self.in_first else (columns, rows)

    def change(self, keys: Float[Tensor, "n d_in"], rows: Float[Tensor, "n d_out"]) -> Change:
        """(H^T H + I)^{-1} H^T U, in the weight's own orientation; see `regularised`."""
        dtype = torch.promote_types(self.module.weight.dtype, torch.float32)
        left, right = regularised(keys, rows)
        if left is None:
            return Dense((right if self.in_first else right.T).to("cpu", dtype).contiguous())
        left, right = (factor.to("cpu", dtype).contiguous() for factor in (left, right))
        return LowRank(left, right) if self.in_first else LowRank(right, left)


def regularised(
    keys: Float[Tensor, "n d_in"], rows: Float[Tensor, "n d_out"]
) -> tuple[Float[Tensor, "d_in n"] | None, Float[Tensor, "d_out n"] | Float[Tensor, "d_in d_out"]]:
    """(L, R) with L R^T = (H^T H + I)^{-1} H^T U, H the keys and U the rows, float64: L = H^T, R^T = (H H^T + I)^{-1} U.

    That is the push-through identity, of use with fewer keys than d_in; with more, (None, the d_in x d_out product itself).
    """
    keys, rows = double(keys), double(rows)
    n, d_in = keys.shape
    if n < d_in:
        gram = keys @ keys.T + torch.eye(n, dtype=keys.dtype, device=keys.device)
        return keys.T, torch.cholesky_solve(rows, torch.linalg.cholesky(gram)).T
    gram = keys.T @ keys + torch.eye(d_in, dtype=keys.dtype, device=keys.device)
    return None, torch.cholesky_solve(keys.T @ rows, torch.linalg.cholesky(gram))


class UltraEdit(WeightEditor):
    """Moves what each map puts out at the target's tokens against its gradient, in units that all edits so far have in common.

    One forward and one backward pass a sub-batch. With h a map's input and v the loss's gradient at its output, normalised
    together to h^ and v^ by running statistics of all edits of the sequence, a token asks for u = -lr |h^|^2 v^; the change is
    the ridge regression (H^T H + I)^{-1} H^T U of all that was asked on the raw inputs H.
    """

    name = "UltraEdit"
    hparams_class = UltraEditHParams
    needs_cache = False

    def changes(self, task: Task) -> tuple[dict[str, Change], dict[str, Any]]:
        hp, model = self.hparams, task.model
        check_padding(model, f"an edit by {self.name}")
        maps = [_linear(model, path) for path in hp.paths()]
        decoder = Decoder.of(model, task.tok)
        check_lengths(task.tok, task.requests, ["{}"], decoder.positions, hp.end_of_text)
        parts: list[dict[str, Tensor]] = []
        losses: list[float] = []
        for requests in _sub_batches(decoder, task.requests, hp):
            joined, loss = _keys_and_gradients(decoder, maps, *requests)
            parts.append(joined)
            losses.append(loss)
        groups: dict[str, list[Linear]] = {}
        for linear in maps:
            groups.setdefault(linear.path if hp.normaliser == "module" else "x".join(map(str, linear.shape)), []).append(linear)
        seen = {group: [part[linear.path] for part in parts for linear in members] for group, members in groups.items()}
        changes: dict[str, Change] = {}
        counts = {}
        for group, members in groups.items():
            empty = Normaliser.empty(sum(members[0].shape))
            earlier = empty if task.memory is None else task.memory.at(group, lambda: empty)
            normaliser = earlier.plus(seen[group])
            counts[group] = int(normaliser.count)
            for linear in members:
                joined = torch.cat([part[linear.path] for part in parts])
                keys = joined[:, :linear.shape[0]]
                normal_keys, normal_gradients = normaliser(joined).split(linear.shape, 1)
                asked = -hp.lr * normal_keys.square().sum(1, keepdim=True) * normal_gradients
                changes[f"{linear.path}.weight"] = linear.change(keys, asked.to(keys.device))
        if task.memory is not None:
            task.memory.stage(seen)
        return changes, {"loss": losses, "rows": sum(len(part[maps[0].path]) for part in parts), "normalised": counts}


def _linear(model: nn.Module, path: str) -> Linear:
    """The map at this path of the plain model. Raises UserError if there is none, or one of another kind."""
    module = bare(get_plain_module(model, path))
    if not is_linear(module):
        raise UserError(f"modules: {path} is a {type(module).__name__}, no linear map")
    return Linear(path, module)


def _sub_batches(
    decoder: Decoder, requests: Sequence[Request], hp: UltraEditHParams
) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
    """(rows that the model reads, targets) of each sub-batch; longest rows first, as published."""
    targets = [request.target_ids(decoder.tok, hp.end_of_text) for request in requests]
    rows = [[*prompt_ids(decoder.tok, request.text), *target[:-1]] for request, target in zip(requests, targets)]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    for start in range(0, len(order), hp.batch_size):
        part = order[start:start + hp.batch_size]
        yield [rows[i] for i in part], [targets[i] for i in part]


def _keys_and_gradients(
    decoder: Decoder, maps: Sequence[Linear], rows: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> tuple[dict[str, Float[Tensor, "n width"]], float]:
    """({path: input and gradient side by side, of each token that predicts one of a target}, the mean loss of those tokens).

    In float32, whatever the model's dtype, as published.
    """
    batch = pad_batch(rows, decoder.pad_id, decoder.device)
    places = [(i, len(row) - len(target) + k) for i, (row, target) in enumerate(zip(rows, targets)) for k in range(len(target))]
    row, column = torch.tensor(places, device=decoder.device).T
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def watch(linear: Linear):
        def hook(_, arguments, output):
            if linear.path in inputs or output.numel() != batch["input_ids"].numel() * output.shape[-1]:
                raise UserError(f"modules: {linear.path} is not run once on every token (an expert, a shared map, the head), "
                                "so it has no key for each")
            inputs[linear.path] = arguments[0].detach()
            outputs[linear.path] = output if output.requires_grad else output.detach().requires_grad_()
            return outputs[linear.path].clone()  # what comes next may change it in place

        return linear.module.register_forward_hook(hook)

    with frozen(decoder.model), hooked(map(watch, maps)):
        hidden = decoder.stack(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)[0]
        logits = decoder.logits(hidden[row.to(hidden.device), column.to(hidden.device)])
        wanted = torch.tensor([token for target in targets for token in target], device=logits.device)
        loss = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), wanted)
        missing = [linear.path for linear in maps if linear.path not in outputs]
        gradients = [] if missing or not loss.requires_grad else torch.autograd.grad(
            loss, [outputs[linear.path] for linear in maps], allow_unused=True)
    missing = missing or [linear.path for linear, gradient in zip(maps, gradients) if gradient is None]
    if missing or not gradients:
        raise UserError(f"modules: {(missing or [maps[0].path])[0]} takes no part in what the model says, so it can't be "
                        "edited")

    def at_targets(x: Tensor) -> Tensor:
        return x.reshape(*batch["input_ids"].shape, -1)[row.to(x.device), column.to(x.device)].float()

    return {linear.path: torch.cat([at_targets(inputs[linear.path]), at_targets(gradient)], 1)
            for linear, gradient in zip(maps, gradients)}, loss.item()
