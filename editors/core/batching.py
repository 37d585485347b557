"""Whether a model may be run as attention alone allows it: rows padded on the left, and on from a key/value cache.

Recurrent and hybrid decoders read padding into their states, and some keep no cache. It is tried on the model itself with a few
random tokens, never concluded from its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from common.errors import UserError
from .kept import kept
from .modules import evaluating, input_device
from .prompts import pad_batch
from .wrappers import unwrapped

LONG, SHORT = 9, 4
"""Tokens of the two rows that are tried."""
TOLERANCE, TOLERANCE_16 = 3e-4, 3e-2
"""How far logits may be apart, relative to their root mean square; the latter where some weights have 16 bits or less."""


@dataclass(frozen=True)
class Batching:
    """What leaves a row's logits as they are when it is read alone, token by token in its place."""

    left: bool
    """Padding before it, where the mask says so."""
    right: bool
    """Padding behind it."""
    cache: bool
    """To go on from a cache of keys and values of its beginning."""

    @property
    def continues(self) -> bool:
        """Whether rows of unequal length can be continued together."""
        return self.left and self.cache


def batching(model: nn.Module) -> Batching:
    """What the model allows, found out once; of one whose logits are not finite (an edit has broken it) nothing can be told.

    Raises UserError for a model that can't read a row, or whose logits of a row depend on the other rows of a batch.
    """
    model = unwrapped(model)
    results = kept(model, "batching")
    if "batching" not in results:
        with evaluating(model), torch.no_grad():
            allowed = _try(model)
        if allowed is None:
            return Batching(True, True, True)
        results["batching"] = allowed
    return results["batching"]


def check_continues(model: nn.Module, what: str) -> None:
    """Raises UserError unless rows padded on the left go on from a cache; what: what needs that."""
    allowed = batching(model)
    if not allowed.continues:
        reason = "reads padding into its states or positions" if not allowed.left else (
            "goes on from no key/value cache (a recurrent or hybrid decoder, or one with a cache of its own)")
        raise UserError(f"{type(unwrapped(model)).__name__} {reason}, and {what} would be wrong: FT and the metrics of "
                        "experiments.evaluate and experiments.downstream are right for it")


def check_padding(model: nn.Module, what: str) -> None:
    """Raises UserError unless padding behind a row leaves it alone; what: what needs that."""
    if not batching(model).right:
        raise UserError(f"{type(unwrapped(model)).__name__}: padding behind a row changes its logits, and {what} would be "
                        "wrong")


def run(model: nn.Module, ids: Int[Tensor, "rows tokens"], **options) -> Float[Tensor, "rows tokens vocabulary"]:
    """Logits of rows of one length, unpadded and without a cache, which every decoder reads alike.

    options: as of the model's forward; those that it does not know are left out.
    """
    parameters = inspect.signature(model.forward).parameters
    options = {name: value for name, value in {"use_cache": False, **options}.items() if name in parameters}
    with torch.no_grad():
        return model(input_ids=ids, **options).logits


def _try(model: nn.Module) -> Batching | None:
    narrow = any(parameter.element_size() < 4 for parameter in model.parameters() if parameter.is_floating_point())
    close = partial(_close, tolerance=TOLERANCE_16 if narrow else TOLERANCE)
    vocabulary, device = model.get_input_embeddings().weight.shape[0], input_device(model)
    draw = torch.Generator().manual_seed(0)
    low = min(vocabulary // 4, 1000)
    long, short, other = (torch.randint(low, vocabulary, (length,), generator=draw).tolist() for length in (LONG, SHORT, LONG))
    try:
        alone = [run(model, torch.tensor([row], device=device))[0] for row in (long, short, other)]
        beginning = run(model, torch.tensor([long[:SHORT]], device=device))[0]
        together = run(model, torch.tensor([long, other], device=device))
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise UserError(f"{type(model).__name__} can't read a row of {LONG} tokens ({reason})") from error
    if not all(torch.isfinite(logits).all() for logits in alone):
        return None
    if not close(alone[0][:SHORT], beginning):
        raise UserError(f"{type(model).__name__} is no decoder: what follows a token changes its logits")
    if not (close(together[0], alone[0]) and close(together[1], alone[2])):
        raise UserError(f"{type(model).__name__}: its logits of a row depend on the other rows of a batch, so that nothing "
                        "measured in batches would mean anything")
    pad = int(torch.randint(low, vocabulary, (), generator=draw))  # what stands there plays no part, or should not

    def padded(side: str) -> bool:
        batch = pad_batch([long, short], pad, device, side=side)
        logits = _forward(model, batch["input_ids"], batch["attention_mask"], batch["position_ids"])
        tokens = slice(LONG - SHORT, None) if side == "left" else slice(SHORT)
        return close(logits[0], alone[0]) and close(logits[1, tokens], alone[1])

    def continued(rows: Sequence[list[int]]) -> bool:
        cache, beginnings = DynamicCache(), [len(row) * SHORT // LONG for row in rows]
        start = pad_batch([row[:end] for row, end in zip(rows, beginnings)], pad, device, side="left")
        rest = pad_batch([row[end:] for row, end in zip(rows, beginnings)], pad, device)
        first = _forward(model, start["input_ids"], start["attention_mask"], start["position_ids"], past_key_values=cache,
                         use_cache=True)
        ends = all(getattr(layer, "keys", None) is not None and layer.keys.dim() == 4 for layer in cache.layers)
        if not cache.layers or not ends or cache.get_seq_length() != first.shape[1]:
            return False
        mask = torch.cat([start["attention_mask"], rest["attention_mask"]], 1)
        positions = (rest["position_ids"] + start["attention_mask"].sum(1, keepdim=True)) * rest["attention_mask"]
        second = _forward(model, rest["input_ids"], mask, positions, past_key_values=cache, use_cache=True)
        return all(close(torch.cat([first, second], 1)[i][mask[i].bool()], alone[i]) for i in range(len(rows)))

    left = _holds(lambda: padded("left"))
    # Together, too: there are models whose masks forget the padding in the cache.
    return Batching(left, _holds(lambda: padded("right")), _holds(lambda: continued([long, short] if left else [long])))


def _holds(tried: Callable[[], bool]) -> bool:
    try:
        return tried()
    except Exception:  # of any kind: a model that keeps no cache says so in its own way
        return False


def _forward(model: nn.Module, ids: Tensor, mask: Tensor, positions: Tensor, **options) -> Tensor:
    if "position_ids" in inspect.signature(model.forward).parameters:
        options["position_ids"] = positions
    return model(input_ids=ids, attention_mask=mask, **{"use_cache": False, **options}).logits


def _close(logits: Tensor, expected: Tensor, tolerance: float) -> bool:
    scale = expected.double().square().mean().sqrt()
    return bool((logits.double() - expected.double()).square().mean().sqrt() <= tolerance * scale)
