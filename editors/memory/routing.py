"""A decoder under edits that change no weight: each prompt is answered by the model, or by what an edit puts in its place.

Which edit answers a row is decided once, by the whole prompt: the tokens of a forward pass without earlier ones (an empty
cache), or with labels those before the first scored one. What follows, targets to score or tokens that are generated, goes
where its prompt went. The decision travels in the key/value cache, as a layer of its own behind the model's: whoever selects,
repeats or reorders the cache's rows (beams, targets that share a prompt) does so with the decisions, too.

The model runs on all rows, so that those in no edit's scope have the very bits that they have without edits.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from common.errors import UserError
from editors.learned.losses import IGNORED

Route = tuple[int, int]
"""(number of the answerer, the edit that answers)."""
OUTSIDE: Route = (-1, -1)
"""In no edit's scope."""


_NAME = "_edit_router"
"""The attribute of a model under such edits."""


class Answerer(Protocol):
    """What edits put in a model's place."""

    def decide(self, prompts: Sequence[Sequence[int]]) -> list[int | None]:
        """The edit that answers each prompt, or None; prompts are token ids of the model's tokenizer."""

    def logits(self, edits: Sequence[int], prompts: Sequence[Sequence[int]], behind: Sequence[Sequence[int]], last: int
               ) -> Float[Tensor, "rows last vocabulary"]:
        """Logits behind the last `last` tokens of each prompt with the tokens behind it, answered by its edit. Shorter rows are
        filled up on the left."""


@dataclass
class _Held:
    """Decisions for a generation without a cache."""

    routes: list[Route]
    columns: int


class Router:
    """Answerers in front of a model. The one that came last is asked first; those before it get what it leaves."""

    def __init__(self, model: nn.Module):
        self.stack: list[Answerer] = []
        self._model = model
        self._own = {name: vars(model)[name] for name in ("forward", "generate") if name in vars(model)}
        self.plain: Callable = model.forward
        """The model's own forward pass."""
        self._generating = False
        self._held: _Held | None = None
        self._signature = inspect.signature(self.plain)
        # Partials of methods: a deep copy of the model gets a router and networks of its own.
        model.forward = functools.update_wrapper(functools.partial(self._call), self.plain)
        if hasattr(model, "generate"):
            model.generate = functools.update_wrapper(functools.partial(self._whole, model.generate), model.generate)

    def _call(self, *args, **kwargs):
        arguments = self._signature.bind(*args, **kwargs).arguments
        for name in [p.name for p in self._signature.parameters.values() if p.kind is p.VAR_KEYWORD]:
            arguments |= arguments.pop(name, {})
        return_dict = arguments.get("return_dict")
        as_tuple = not (getattr(self._model.config, "return_dict", True) if return_dict is None else return_dict)
        output = self._forward(arguments | {"return_dict": True} if as_tuple else arguments)
        return output.to_tuple() if as_tuple else output

    def _whole(self, generate: Callable, *args, **kwargs):
        configs = (*args[1:2], kwargs.get("generation_config"))
        config = next((config for config in configs if config is not None), self._model.generation_config)
        if kwargs.get("prefill_chunk_size") or getattr(config, "prefill_chunk_size", None):
            raise UserError("prefill_chunk_size: the prompt decides which edit answers, so it is read in one pass: "
                            "leave it out")
        self._generating, self._held = True, None
        try:
            return generate(*args, **kwargs)
        finally:
            self._generating, self._held = False, None

    def remove(self) -> None:
        """The model is as it was."""
        for name in ("forward", "generate"):
            vars(self._model).pop(name, None)
        vars(self._model).update(self._own)

    def decide(self, prompts: Sequence[Sequence[int]]) -> list[Route]:
        """Where each prompt goes: one decision of each answerer, over all prompts that are left to it. No prompt, no edit."""
        routes = [OUTSIDE] * len(prompts)
        for number in reversed(range(len(self.stack))):
            undecided = [i for i, route in enumerate(routes) if route == OUTSIDE and len(prompts[i])]
            if not undecided:
                break
            for i, edit in zip(undecided, self.stack[number].decide([prompts[i] for i in undecided])):
                if edit is not None:
                    routes[i] = (number, edit)
        return routes

    def _forward(self, arguments: dict[str, Any]):
        ids = arguments.get("input_ids")
        if ids is None:
            raise UserError("a model under edits that go by the prompt needs token ids (input_ids), not embeddings")
        cache, mask = arguments.get("past_key_values"), arguments.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            raise UserError("a model under edits that go by the prompt reads attention masks of rows and positions only (which "
                            "leaves out cache_implementation=static)")
        past = cache.get_seq_length() if cache is not None else 0
        noted = cache.layers.pop() if past and _is_note(cache.layers[-1]) else None
        if past and noted is None:
            raise UserError("this cache was filled before the edit was applied: run the prompt again")
        output = self.plain(**arguments)
        mask = torch.ones_like(ids) if mask is None else mask[:, -ids.shape[1]:]
        routes, starts = self._routes(ids, mask, arguments.get("labels"), noted)
        rows = [i for i, route in enumerate(routes) if route != OUTSIDE]
        if rows:
            self._answer(output, arguments, ids, mask, routes, rows, starts, noted)
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            _note(cache, noted, routes, ids, mask, starts)
        return output

    def _routes(
        self, ids: Tensor, mask: Tensor, labels: Tensor | None, noted: DynamicLayer | None
    ) -> tuple[list[Route], list[int]]:
        """(where each row goes, the column from which on its tokens are behind its prompt)."""
        width = ids.shape[1]
        if noted is not None:
            return [tuple(pair) for pair in noted.keys[:, 0, -1].tolist()], [0] * len(ids)
        if self._held is not None:
            return self._held.routes, [self._held.columns] * len(ids)
        starts = [width] * len(ids)
        if labels is not None:
            places = [(row != IGNORED).nonzero() for row in labels]
            starts = [int(place[0]) if len(place) else width for place in places]
        routes = self.decide([_real(row[:start], m[:start]) for row, m, start in zip(ids, mask, starts)])
        if self._generating:
            self._held = _Held(routes, width)
        return routes, starts

    def _answer(self, output, arguments: Mapping[str, Any], ids: Tensor, mask: Tensor, routes: Sequence[Route],
                rows: Sequence[int], starts: Sequence[int], noted: DynamicLayer | None) -> None:
        """Puts the answers of these rows in the place of the model's."""
        columns = torch.arange(ids.shape[1], device=ids.device)
        keep = arguments.get("logits_to_keep", 0)
        kept_columns = columns[keep] if isinstance(keep, Tensor) else columns[-keep:] if keep else columns
        # Which of a row's tokens stands in each kept column, counted from the row's last, which is 1.
        distance_to_end = mask.flip(1).cumsum(1).flip(1)[:, kept_columns]
        logits = output.logits.clone()
        for number in {routes[i][0] for i in rows}:
            answered = [i for i in rows if routes[i][0] == number]
            prompts, behind = [], []
            for i in answered:
                earlier = ([], []) if noted is None else _read(noted, i)
                prompts.append(earlier[0] + _real(ids[i, :starts[i]], mask[i, :starts[i]]))
                behind.append(earlier[1] + _real(ids[i, starts[i]:], mask[i, starts[i]:]))
            last = max(1, int(distance_to_end[answered].max()))
            answers = self.stack[number].logits([routes[i][1] for i in answered], prompts, behind, last).to(logits)
            for index, i in enumerate(answered):
                real = mask[i, kept_columns].bool()
                logits[i, real] = answers[index, last - distance_to_end[i, real]]
        output.logits = logits
        if output.get("loss") is not None:
            output.loss = self._model.loss_function(logits=logits, labels=arguments["labels"], vocab_size=logits.shape[-1])


def _real(ids: Tensor, mask: Tensor) -> list[int]:
    return ids[mask.bool()].tolist()


def _is_note(layer: Any) -> bool:
    return isinstance(layer, DynamicLayer) and layer.is_initialized and layer.keys.dtype == torch.int64


def _note(
    cache: Any, noted: DynamicLayer | None, routes: Sequence[Route], ids: Tensor, mask: Tensor, starts: Sequence[int]
) -> None:
    """Writes routes, tokens, and whether a token is behind the prompt, of the columns that were just read."""
    layer = noted or DynamicLayer()
    columns = torch.arange(ids.shape[1], device=ids.device)
    behind = (columns >= torch.tensor(starts, device=ids.device)[:, None]).long()
    tokens = ids.masked_fill(mask == 0, -1)
    route = torch.tensor(routes, device=ids.device)[:, None, None].expand(-1, 1, ids.shape[1], -1)
    layer.update(route, torch.stack([tokens, behind], -1)[:, None])
    cache.layers.append(layer)


def _read(layer: DynamicLayer, row: int) -> tuple[list[int], list[int]]:
    """(tokens of the prompt, tokens behind it)."""
    tokens, behind = layer.values[row, 0].T
    real = tokens >= 0
    return tokens[real & (behind == 0)].tolist(), tokens[real & (behind == 1)].tolist()


def _router(model: nn.Module) -> Router | None:
    return vars(model).get(_NAME)


def is_routed(model: nn.Module) -> bool:
    """Whether prompts decide who answers: then a prompt has to be read whole, in one pass."""
    return _router(model) is not None


def push(model: nn.Module, answerer: Answerer) -> None:
    """From now on `answerer` is asked first. Raises UserError if it is there already."""
    router = _router(model)
    if router is None:
        router = vars(model)[_NAME] = Router(model)
    if any(present is answerer for present in router.stack):
        raise UserError("this edit is already applied to the model: revert it first")
    router.stack.append(answerer)


def remove(model: nn.Module, answerer: Answerer) -> None:
    """Takes an answerer out. Raises UserError if it is not there."""
    router = _router(model)
    if router is None or not any(present is answerer for present in router.stack):
        raise UserError("this edit is not applied to the model: nothing to revert")
    router.stack = [present for present in router.stack if present is not answerer]
    if not router.stack:
        router.remove()
        del vars(model)[_NAME]


@contextmanager
def unrouted(model: nn.Module) -> Iterator[None]:
    """Inside, the model alone answers."""
    router = _router(model)
    routed = vars(model).get("forward")
    if router is not None:
        model.forward = router.plain
    try:
        yield
    finally:
        if router is not None:
            model.forward = routed
