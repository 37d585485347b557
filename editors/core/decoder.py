"""A decoder at hand: the model, its tokenizer and its sites, which nearly every function of this package needs together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .modules import evaluating, get_module, input_device, logits_of, longest_context
from .prompts import pad_id
from .sites import Sites, find_sites, weight_of
from .wrappers import unwrapped


class Weight(NamedTuple):
    """The weight of a down-projection."""

    name: str
    parameter: nn.Parameter
    in_first: bool
    """Whether the parameter is [d_in, d_out] (Conv1D) rather than [d_out, d_in] (Linear)."""

    @property
    def d_in(self) -> int:
        """The width of its keys."""
        return self.parameter.shape[0 if self.in_first else 1]


@dataclass(frozen=True, eq=False)
class Decoder:
    """A frozen handle of a model; layers count from 0. Nothing of the model is copied or changed by it."""

    model: nn.Module
    tok: Any
    sites: Sites

    @classmethod
    def of(cls, model: nn.Module, tok=None, templates: Mapping[str, str] | None = None) -> Decoder:
        """With verified sites (see `find_sites`, which says what it raises).

        tok: None where no text is read. templates: module names of published files.
        """
        return cls(unwrapped(model), tok, find_sites(model, templates))

    def module(self, site: str, layer: int) -> nn.Module:
        """The module of a site ("block", "down_proj", "mlp", "attn", "attn_out") in a layer."""
        return get_module(self.model, self.sites.name(site, layer))

    def block(self, layer: int) -> nn.Module:
        """The transformer block of a layer."""
        return self.module("block", layer)

    def down_proj(self, layer: int) -> nn.Module:
        """The MLP's last linear map, d_in -> d_model."""
        return self.module("down_proj", layer)

    def weight(self, layer: int) -> Weight:
        """Of the down-projection. Raises UserError if it is quantised or not in memory."""
        return Weight(*weight_of(self.model, self.sites, layer))

    @property
    def stack(self) -> nn.Module:
        """The owner of the blocks: token ids in, the states behind the final norm out."""
        return get_module(self.model, self.sites.decoder)

    @property
    def embedding(self) -> nn.Module:
        """Of the tokens."""
        return get_module(self.model, self.sites.embed)

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the head."""
        return get_module(self.model, self.sites.final_norm)

    def logits(self, normed_hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocabulary"]:
        """Of the stack's outputs: head with bias, scaling and soft-capping, as in the model."""
        return logits_of(self.model, self.sites.lm_head, normed_hidden)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return input_device(self.model)

    def device_of(self, site: str, layer: int) -> torch.device:
        """Where the weights of a site stand; layers may be spread over several devices."""
        return next(self.module(site, layer).parameters()).device

    @property
    def state_dtype(self) -> torch.dtype:
        """Of the model, widened to float32 at least: what states are kept in."""
        return torch.promote_types(self.model.dtype, torch.float32)

    @property
    def positions(self) -> int | None:
        """Tokens that the model can read at once; None: no limit is named (ALiBi)."""
        return longest_context(self.model)

    @cached_property
    def pad_id(self) -> int:
        """The token that fills batches up."""
        return pad_id(self.tok)

    def evaluating(self) -> AbstractContextManager[None]:
        """Inside, no dropout; see `modules.evaluating`."""
        return evaluating(self.model)
