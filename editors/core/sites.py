"""Where things are in a Hugging Face decoder: blocks, MLP down-projection, attention output, final norm, head.

Sites are derived from the module tree and verified by a forward pass (``site_search``), never taken from the model's name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import nn, Tensor
from transformers.pytorch_utils import Conv1D

from common.errors import UserError
from .kept import kept
from .modules import get_module
from .site_search import Arrival, search
from .wrappers import bare, plain_name, unwrapped

# Published hyper-parameter names of the sites.
OVERRIDES = {
    "rewrite_module_tmp": "down_proj",
    "layer_module_tmp": "block",
    "mlp_module_tmp": "mlp",
    "attn_module_tmp": "attn",
    "ln_f_module": "final_norm",
    "lm_head_module": "lm_head",
}


@dataclass(frozen=True)
class Sites:
    """Module names of one model; those of a layer are templates with one ``{}`` for its number."""

    layers: int
    """Number of blocks."""
    d_model: int
    """Width of the residual stream."""
    block: str
    down_proj: str
    """The MLP's last linear map, d_in -> d_model: the module that ROME and MEMIT edit. In a mixture of experts that of the
    expert which every token passes; "" where there is none."""
    mlp: str
    """The MLP; equals ``down_proj`` where the block holds its linear maps directly (OPT)."""
    attn: str
    attn_out: str
    """The attention's output projection."""
    decoder: str
    """Owner of the block list; its output has passed the final norm."""
    embed: str
    final_norm: str
    lm_head: str
    down_projs: tuple[str | None, ...]
    """The down-projection of each layer, which in some models has another name in some layers; None: experts alone."""
    mixtures: tuple[bool, ...]
    """Whether the MLP of each layer is a mixture of experts."""
    arrivals: tuple[Arrival | None, ...]
    """How the output of each layer's down-projection arrives at the block's output."""

    def name(self, site: str, layer: int) -> str:
        """Full module name of ``site`` ("block", "down_proj", "mlp", "mlp_out", "attn", "attn_out") at ``layer`` (from 0).

        mlp_out: what puts out all that the MLP computes: its down-projection, or the whole of a mixture of experts.
        """
        if not 0 <= layer < self.layers:
            raise UserError(f"layer {layer} does not exist: the model has layers 0 to {self.layers - 1}")
        if site == "mlp_out":
            site = "mlp" if self.mixtures[layer] else "down_proj"
        if site != "down_proj":
            return getattr(self, site).format(layer)
        name = self.down_projs[layer]
        if name is None:
            dense = [str(i) for i, name in enumerate(self.down_projs) if name]
            instead = f"edit layers {', '.join(dense)}" if dense else (
                "FT of modules that you name (rewrite_module_tmp), tracing and metrics work")
            raise UserError(f"layer {layer} is a mixture of experts without one that every token passes, so there is no one "
                            f"down-projection to edit; {instead}")
        return name

    def straight(self, layers: Sequence[int]) -> bool:
        """Whether what the down-projections of these layers put out arrives in the residual stream as it is, or times a
        constant."""
        return all(self.arrivals[layer] is None or self.arrivals[layer].kind in ("identity", "constant") for layer in layers)

    def equal_part(self, layers: Sequence[int], missing: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """What the first of these straight layers is to add to its down-projection's output, for all to add as much to the
        stream."""
        part, arrival = missing / len(layers), self.arrivals[layers[0]]
        return part if arrival is None or arrival.kind == "identity" else part / arrival.factor


def find_sites(model: nn.Module, overrides: Mapping[str, str] | None = None) -> Sites:
    """The sites of ``model``, verified by one forward pass of four tokens; cached for the model's lifetime.

    ``overrides`` maps published hyper-parameter names (keys of ``OVERRIDES``) to module names, or templates with one ``{}``;
    None leaves a site to be derived. The model is left as it was: no hook, mode, cache or gradient flag stays changed.
    Raises UserError naming the site that was not found or does not do what it should, and what was tried.
    """
    model, chosen = unwrapped(model), {}
    for key, value in (overrides or {}).items():
        if key not in OVERRIDES:
            raise UserError(f"unknown site {key!r}; known: {', '.join(OVERRIDES)}")
        if value is not None:
            chosen[OVERRIDES[key]] = value
    verified, key = kept(model, "sites"), frozenset(chosen.items())
    if key not in verified:
        verified[key] = Sites(**search(model, chosen))
    return verified[key]


def weight_of(model: nn.Module, sites: Sites, layer: int) -> tuple[str, nn.Parameter, bool]:
    """(the parameter's name in the plain model, parameter, in_first) of the down-projection at ``layer``.

    in_first: the parameter is [d_in, d_out] (Conv1D) rather than [d_out, d_in] (Linear). The class decides, because
    shapes cannot when d_in == d_out. Raises UserError if the weight is quantised or not in memory.
    """
    name = sites.name("down_proj", layer)
    linear = get_module(unwrapped(model), name)
    linear = bare(linear)  # of an adapted linear map: the edit belongs to the map itself
    name, weight = f"{plain_name(name)}.weight", linear.weight
    if not weight.is_floating_point():
        raise UserError(f"{name} is quantised ({weight.dtype}) and cannot be edited: load the model in 16 or 32 bits")
    if weight.is_meta:
        raise UserError(f"{name} is offloaded and cannot be edited: load the model into memory")
    return name, weight, isinstance(linear, Conv1D)
