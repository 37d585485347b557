"""Derives a decoder's sites from its module tree, and verifies them on four tokens:

* every block, down-projection and attention output gives one d_model-wide row a token;
* changing a projection's output at one token changes its block's output there, and nowhere else;
* head(final norm(last block's output)) equals the model's logits, scaling and soft-capping included.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.utils import ModelOutput

from common.errors import UserError
from .modules import by_row, evaluating, first, get_module, hooked, input_device, is_linear, logits_of, text_config

_LAYERED = ("block", "down_proj", "mlp", "attn", "attn_out")
_OLD_HEAD = "embed_out"  # what transformers before 5 called the head of GPT-NeoX; published files still do
_PROBE_IDS = (3, 7, 5, 4)


@dataclass
class _Trace:
    """What ran in the probe's forward pass, in the order in which it finished."""

    shapes: dict[str, tuple] = field(default_factory=dict)
    """Output shape of every module that ran."""
    inputs: dict[str, tuple] = field(default_factory=dict)
    """(args, kwargs) of the blocks and of everything outside them."""
    outputs: dict[str, Tensor] = field(default_factory=dict)
    """Outputs of the same modules."""
    logits: Tensor | None = None

    def inside(self, root: str) -> list[str]:
        return [name for name in self.shapes if name.startswith(f"{root}.")]


def search(model: nn.Module, chosen: Mapping[str, str]) -> dict:
    """The fields of ``Sites``; ``chosen`` holds those that the user fixed. UserError for a site not found."""
    if not isinstance(getattr(model, "config", None), PretrainedConfig):
        raise UserError(f"{type(model).__name__} is not a Hugging Face model: it has no configuration")
    if model.config.is_encoder_decoder:
        raise UserError(f"{type(model).__name__} is an encoder-decoder; only decoders can be edited")
    config = text_config(model)
    layers, d_model = (getattr(config, name, None) for name in ("num_hidden_layers", "hidden_size"))
    if not layers or not d_model:
        raise UserError(f"{type(model).__name__}: its configuration does not give num_hidden_layers and hidden_size")
    _check_overrides(model, chosen, layers)
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    with evaluating(model), torch.no_grad():
        trace = _run_probe(model, lists)
        sites = dict(chosen)
        if "block" not in sites:
            sites["block"] = _block_template(model, lists, layers, trace)
        sites["decoder"] = sites["block"].partition(".{}")[0].rpartition(".")[0]
        sites["embed"] = _name_of(model, model.get_input_embeddings(), "embed")
        sites["lm_head"] = _head_name(model, sites.get("lm_head"))
        _find_projections(model, sites, trace, d_model)
        if "final_norm" not in sites:
            sites["final_norm"] = _final_norm(model, sites, trace, layers)
        _verify_layers(model, sites, trace, layers, d_model)
        _verify_projections(model, sites, trace)
        _verify_head(model, sites, trace, layers)
    return {"layers": layers, "d_model": d_model, **sites}


def _check_overrides(model: nn.Module, chosen: Mapping[str, str], layers: int) -> None:
    for site, name in chosen.items():
        if site in _LAYERED and name.count("{}") != 1:
            raise UserError(f"module template {name!r} needs exactly one {{}} for the layer number")
        for layer in range(layers if site in _LAYERED else 1):
            if name != _OLD_HEAD:
                get_module(model, name.replace("{}", str(layer)))


def _run_probe(model: nn.Module, lists: Mapping[str, nn.ModuleList]) -> _Trace:
    trace = _Trace()

    def record(name: str, keep: bool):
        def hook(module, args, kwargs, output):
            several = isinstance(output, (tuple, list, ModelOutput)) and len(output)
            out = output[0] if several else output
            if isinstance(out, Tensor):
                trace.shapes[name] = tuple(out.shape)
                if keep:
                    trace.inputs[name], trace.outputs[name] = (args, kwargs), out
        return hook

    def within(name: str) -> bool:
        return any(name.startswith(f"{prefix}.") and "." in name[len(prefix) + 1:] for prefix in lists)

    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[i % vocabulary for i in _PROBE_IDS]], device=input_device(model))
    # Tensors inside the blocks are not kept: on a large model they would add up.
    with hooked(m.register_forward_hook(record(n, not within(n)), with_kwargs=True) for n, m in model.named_modules()):
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    trace.logits = getattr(output, "logits", None)
    return trace


def _block_template(model: nn.Module, lists: Mapping[str, nn.ModuleList], layers: int, trace: _Trace) -> str:
    fitting = [
        name for name, blocks in lists.items()
        if len(blocks) == layers and len({type(block) for block in blocks}) == 1
        and f"{name}.0" in trace.shapes  # it runs on text alone: no vision tower
        and not any(name.startswith(f"{other}.") for other in lists)  # no list of experts inside a block
    ]
    if len(fitting) != 1:
        seen = ", ".join(f"{name} ({len(blocks)})" for name, blocks in lists.items()) or "none"
        raise _failure(model, "block", f"wanted one list of {layers} blocks of one class; module lists: {seen}")
    return fitting[0] + ".{}"


def _head_name(model: nn.Module, override: str | None) -> str:
    """Module name of the head. A tied head may be asked for by its embedding's name, as published files do."""
    head = model.get_output_embeddings()
    name = _name_of(model, head, "lm_head")
    if override is None or override == _OLD_HEAD or getattr(get_module(model, override), "weight", None) is head.weight:
        return name
    raise UserError(f"lm_head_module {override!r} is not the head of {type(model).__name__}, which is {name!r}")


def _find_projections(model: nn.Module, sites: dict, trace: _Trace, d_model: int) -> None:
    """Fill in attn, attn_out, down_proj and mlp: of the linear maps of block 0, the last to run that maps to d_model."""
    root = sites["block"].format(0)
    linears = [name for name in trace.inside(root) if is_linear(get_module(model, name))]
    linears = [name for name in linears if not any(name.startswith(f"{other}.") for other in linears)]
    if "attn" not in sites:
        children = [
            child for child, module in get_module(model, root).named_children()
            if any(name.startswith(f"{root}.{child}.") for name in linears)
            and any(mark in text.lower() for mark in ("attn", "attention") for text in (child, type(module).__name__))
        ]
        if len(children) != 1:
            raise _failure(model, "attn", f"children of {root} named so with linear maps: {children or 'none'}")
        sites["attn"] = f"{sites['block']}.{children[0]}"
    inner = f"{sites['attn'].format(0)}."
    for site in ("attn_out", "down_proj"):
        if site in sites:
            continue
        tried = {n: trace.shapes[n] for n in linears if n.startswith(inner) == (site == "attn_out")}
        fitting = [name for name, shape in tried.items() if _fits(shape, d_model)]
        if not fitting:
            seen = ", ".join(f"{n.removeprefix(root + '.')} -> {list(shape)}" for n, shape in tried.items()) or "none"
            raise _failure(model, site, f"wanted a linear map of every token to width {d_model}; linear maps: {seen}")
        sites[site] = sites["block"] + fitting[-1].removeprefix(root)
    if "mlp" not in sites:
        # The block's child that holds the projection; in OPT that child is the projection itself.
        child = sites["down_proj"].removeprefix(sites["block"] + ".").partition(".")[0]
        sites["mlp"] = f"{sites['block']}.{child}"


def _final_norm(model: nn.Module, sites: dict, trace: _Trace, layers: int) -> str:
    last = sites["block"].format(layers - 1)
    names = list(trace.shapes)
    after = [n for n in names[names.index(last) + 1:] if n.startswith(f"{sites['decoder']}.") and n in trace.inputs]
    for name in after:
        args, kwargs = trace.inputs[name]
        entering = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        if entering is not None and _close(entering, trace.outputs[last]) and trace.shapes[name] == trace.shapes[last]:
            return name
    raise _failure(model, "final_norm", f"what runs behind {last}: {', '.join(after) or 'nothing'}")


def _verify_layers(model: nn.Module, sites: dict, trace: _Trace, layers: int, d_model: int) -> None:
    for site in _LAYERED:
        for layer in range(layers):
            name = sites[site].format(layer)
            shape = trace.shapes.get(name)
            if shape is None or not _fits(shape, d_model) or (site == "block" and len(shape) != 3):
                what = "did not run or does not exist" if shape is None else f"returns {list(shape)}"
                raise _failure(model, site, f"{name} {what}; wanted width {d_model} for every token")
            module = get_module(model, name)
            if site in ("down_proj", "attn_out") and not is_linear(module):
                raise _failure(model, site, f"{name} is a {type(module).__name__}; wanted a linear map (Linear or Conv1D)")


def _verify_projections(model: nn.Module, sites: dict, trace: _Trace) -> None:
    """Run block 0 again with one token of a projection's output changed: the block's output there must change."""
    name = sites["block"].format(0)
    args, kwargs = trace.inputs[name]
    block, clean = get_module(model, name), trace.outputs[name]

    def disturb(module, args, output):
        out = first(output).clone()
        # Not constant over the width, which a norm behind the projection would remove.
        ramp = torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype, device=out.device)
        by_row(out, batch=1)[:, -1] += 10 * (1 + out.abs().max()) * ramp
        return (out, *output[1:]) if isinstance(output, tuple) else out

    for site in ("down_proj", "attn_out"):
        with hooked([get_module(model, sites[site].format(0)).register_forward_hook(disturb)]):
            changed = first(block(*args, **kwargs))
        if torch.equal(changed[:, -1], clean[:, -1]) or not _close(changed[:, :-1], clean[:, :-1]):
            raise _failure(model, site, f"changing {sites[site].format(0)} at a token does not change {name} there alone")


def _verify_head(model: nn.Module, sites: dict, trace: _Trace, layers: int) -> None:
    norm, head = sites["final_norm"], sites["lm_head"]
    normed = get_module(model, norm)(trace.outputs[sites["block"].format(layers - 1)])
    if not _close(normed, trace.outputs[sites["decoder"]]):
        raise _failure(model, "final_norm", f"{norm}(last block) is not the output of {sites['decoder']}")
    if not _close(logits_of(model, head, normed), trace.logits):
        raise _failure(
            model, "lm_head", f"{head}({norm}(last block)) is not the model's logits, with logit_scale, logits_scaling and "
            "final_logit_softcapping tried"
        )


def _fits(shape: tuple, d_model: int) -> bool:
    """Whether an output holds one d_model-wide row for each of the probe's tokens."""
    return shape[-1] == d_model and math.prod(shape[:-1]) == len(_PROBE_IDS)


def _name_of(model: nn.Module, module: nn.Module | None, what: str) -> str:
    for name, candidate in model.named_modules():
        if candidate is module:
            return name
    raise _failure(model, what, "the model's own accessor returns nothing")


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of the coarser of the two dtypes, relative to the largest value."""
    if a.shape != b.shape:
        return False
    unit = max(torch.finfo(a.dtype).eps, torch.finfo(b.dtype).eps)
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return bool((a - b).abs().max() <= 16 * unit * b.abs().max())


def _failure(model: nn.Module, site: str, tried: str) -> UserError:
    return UserError(f"{type(model).__name__}: site {site!r} not found; {tried}")
