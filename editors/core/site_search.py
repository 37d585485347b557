"""Derives a decoder's sites from its module tree, and verifies them on four tokens:

* every block, down-projection and attention output gives one d_model-wide row a token;
* changing a projection's output at one token changes its block's output there, and nowhere else;
* what is added to a down-projection's output arrives at the block's output in one of the ways of `Arrival`;
* head(final norm(last block's output)) equals the model's logits, scaling and soft-capping included.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.utils import ModelOutput

from common.errors import UserError
from .checks import is_finite
from .modules import (
    by_row, evaluating, first, get_module, hooked, in_features, input_device, is_linear, is_mixture, logits_of, text_config,
)

_LAYERED = ("block", "down_proj", "mlp", "attn", "attn_out")
_OLD_HEAD = "embed_out"  # what transformers before 5 called the head of GPT-NeoX; published files still do
_PROBE_IDS = (3, 7, 5, 4)


@dataclass(frozen=True)
class Arrival:
    """What arrives at a block's output, at the same token, when e is added to the output of its down-projection."""

    kind: Literal["identity", "constant", "gate", "norm", "other"]
    """identity: e. constant: a constant times e. gate: e times a number that the token decides. norm: it depends on the
    direction of the sum alone. other: something else."""
    factor: float = 1.0
    """The constant."""

    @property
    def linear(self) -> bool:
        """Whether any change of the block's output can be written at the down-projection."""
        return self.kind in ("identity", "constant", "gate")


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
        _find_attention(model, sites, trace, d_model)
        arrivals = _find_down_projections(model, sites, trace, layers, d_model)
        if "final_norm" not in sites:
            sites["final_norm"] = _final_norm(model, sites, trace, layers)
        _verify_layers(model, sites, trace, layers, d_model)
        _verify_attention(model, sites, trace)
        _verify_head(model, sites, trace, layers)
    return {"layers": layers, "d_model": d_model, "arrivals": arrivals, **sites}


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
    if trace.logits is not None and not is_finite(trace.logits):
        raise UserError(f"{type(model).__name__}: its answers are not finite (NaN or infinity): load it in a wider dtype")
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


def _linear_maps(model: nn.Module, trace: _Trace, root: str) -> list[str]:
    """The linear maps that ran below ``root``, in the order in which they finished; none that lies within another (peft)."""
    linears = [name for name in trace.inside(root) if is_linear(get_module(model, name))]
    return [name for name in linears if not any(name.startswith(f"{other}.") for other in linears)]


def _find_attention(model: nn.Module, sites: dict, trace: _Trace, d_model: int) -> None:
    """Fill in attn and attn_out: of the linear maps of the attention in block 0, the last to run that maps to d_model."""
    root = sites["block"].format(0)
    linears = _linear_maps(model, trace, root)
    if "attn" not in sites:
        children = [
            child for child, module in get_module(model, root).named_children()
            if any(name.startswith(f"{root}.{child}.") for name in linears)
            and any(mark in text.lower() for mark in ("attn", "attention") for text in (child, type(module).__name__))
        ]
        if len(children) != 1:
            raise _failure(model, "attn", f"children of {root} named so with linear maps: {children or 'none'}")
        sites["attn"] = f"{sites['block']}.{children[0]}"
    if "attn_out" not in sites:
        within = [name for name in linears if name.startswith(f"{sites['attn'].format(0)}.")]
        fitting = [name for name in within if _fits(trace.shapes[name], d_model)]
        if not fitting:
            raise _failure(model, "attn_out", _wanted(within, trace, root, d_model))
        sites["attn_out"] = sites["block"] + fitting[-1].removeprefix(root)


def _find_down_projections(
    model: nn.Module, sites: dict, trace: _Trace, layers: int, d_model: int
) -> tuple[Arrival | None, ...]:
    """Fill in down_proj, down_projs and mlp; returns how each down-projection's output arrives at its block's output.

    Of the linear maps outside the attention that give d_model numbers a token, a block's down-projection is the one that reads
    the widest input (of equal ones the last to run) and whose output arrives at the block's output at the same token alone.
    A block of experts may have none: then both are None.
    """
    template, override = sites["block"], sites.get("down_proj")
    names: list[str | None] = []
    arrivals: list[Arrival | None] = []
    for layer in range(layers):
        root, attention = template.format(layer), f"{sites['attn'].format(layer)}."
        tried = [name for name in _linear_maps(model, trace, root) if not name.startswith(attention)]
        if override is not None:
            tried = [override.format(layer)]
            _check_projection(model, trace, tried[0], d_model)
        fitting = [name for name in tried if _fits(trace.shapes.get(name, (0,)), d_model)]
        fitting = [name for name in fitting if is_linear(get_module(model, name))]
        fitting = sorted(reversed(fitting), key=lambda name: -in_features(get_module(model, name)))
        proven = ((name, how) for name in fitting if (how := _arrival(model, trace, root, name)) is not None)
        name, how = next(proven, (None, None))
        if name is None and (override is not None or not is_mixture(get_module(model, root))):
            if fitting:
                what = f"changing {' or '.join(fitting)} at a token does not change {root} there alone"
            else:
                what = _wanted(tried, trace, root, d_model)
            raise _failure(model, "down_proj", what)
        names.append(name)
        arrivals.append(how)
    sites["down_projs"] = tuple(names)
    sites["mixtures"] = tuple(is_mixture(get_module(model, template.format(layer))) for layer in range(layers))
    suffixes = [name.removeprefix(template.format(layer)) for layer, name in enumerate(names) if name]
    if "down_proj" not in sites:
        sites["down_proj"] = template + suffixes[0] if suffixes else ""
    if "mlp" not in sites:
        # The block's child that holds the projection (in OPT that child is the projection itself), or the experts.
        child = suffixes[0].split(".")[1] if suffixes else _mixture_child(model, template.format(0))
        sites["mlp"] = f"{template}.{child}"
    return tuple(arrivals)


def _check_projection(model: nn.Module, trace: _Trace, name: str, d_model: int) -> None:
    """Raises UserError for a module that a user named and that can't be a down-projection."""
    shape, module = trace.shapes.get(name), get_module(model, name)
    if shape is None or not _fits(shape, d_model):
        what = "did not run" if shape is None else f"returns {list(shape)}"
        raise _failure(model, "down_proj", f"{name} {what}; wanted width {d_model} for every token")
    if not is_linear(module):
        raise _failure(model, "down_proj", f"{name} is a {type(module).__name__}; wanted a linear map (Linear or Conv1D)")


def _wanted(tried: Sequence[str], trace: _Trace, root: str, d_model: int) -> str:
    seen = ", ".join(f"{n.removeprefix(root + '.')} -> {list(trace.shapes.get(n, ()))}" for n in tried) or "none"
    return f"wanted a linear map of every token to width {d_model}; linear maps: {seen}"


def _mixture_child(model: nn.Module, root: str) -> str:
    """The child of a block that holds its experts."""
    return next(name for name, child in get_module(model, root).named_children() if is_mixture(child))


def _arrival(model: nn.Module, trace: _Trace, root: str, name: str) -> Arrival | None:
    """How what is added to the output of a linear map arrives at the output of its block; None: not at all, or elsewhere too.

    The block runs again with the output changed: at the last token in two directions, at another token, and with its length
    doubled; only as often as the answer takes.
    """
    (args, kwargs), clean = trace.inputs[root], trace.outputs[root]
    block, module = get_module(model, root), get_module(model, name)

    def changed(token: int, change: Callable[[Tensor], Tensor]) -> Tensor:
        """The block's output with the map's output at a token changed."""
        def disturb(module, args, output):
            out = first(output).clone()
            rows = by_row(out, batch=1)
            rows[:, token] = change(rows[:, token])
            return (out, *output[1:]) if isinstance(output, tuple) else out

        with hooked([module.register_forward_hook(disturb)]):
            return first(block(*args, **kwargs))

    def addition(seed: int) -> Tensor:
        # Not constant over the width, which a norm behind the projection would remove.
        generator = torch.Generator().manual_seed(seed)
        size = 10 * (1 + clean.abs().max())
        return size * torch.empty(clean.shape[-1]).uniform_(-1, 1, generator=generator).to(clean)

    def factor(arrived: Tensor, added: Tensor) -> float:
        """What the addition arrives multiplied by; NaN where it arrives otherwise, or so small that it can't be told."""
        arrived, added = arrived.double().cpu(), added.double().cpu()
        times = float((arrived * added).sum() / (added * added).sum())
        linear = (arrived - times * added).abs().max() <= rounding < arrived.abs().max() / 16
        return times if linear else math.nan

    addition1, addition2 = addition(1), addition(2)
    changed1 = changed(-1, lambda out: out + addition1)
    if torch.equal(changed1[:, -1], clean[:, -1]) or not _close(changed1[:, :-1], clean[:, :-1]):
        return None
    epsilon = torch.finfo(clean.dtype).eps
    rounding, alike = 4 * epsilon * float(max(changed1.abs().max(), clean.abs().max())), max(1e-5, epsilon / 2)
    last = factor(changed1[:, -1] - clean[:, -1], addition1)
    if math.isclose(last, 1, rel_tol=alike):
        return Arrival("identity")
    other_way = factor(changed(-1, lambda out: out + addition2)[:, -1] - clean[:, -1], addition2)
    if math.isclose(last, other_way, rel_tol=2 * alike):
        elsewhere = factor(changed(0, lambda out: out + addition1)[:, 0] - clean[:, 0], addition1)
        return Arrival("constant", last) if math.isclose(last, elsewhere, rel_tol=2 * alike) else Arrival("gate")
    # Long enough that a norm's epsilon is nothing.
    short, long = (changed(-1, lambda out, times=times: times * (out + addition1)) for times in (100, 200))
    return Arrival("norm" if _close(short[:, -1], long[:, -1]) else "other")


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
    for site in ("block", "mlp", "attn", "attn_out"):
        for layer in range(layers):
            name = sites[site].format(layer)
            shape = trace.shapes.get(name)
            if shape is None or not _fits(shape, d_model) or (site == "block" and len(shape) != 3):
                what = "did not run or does not exist" if shape is None else f"returns {list(shape)}"
                raise _failure(model, site, f"{name} {what}; wanted width {d_model} for every token")
            module = get_module(model, name)
            if site == "attn_out" and not is_linear(module):
                raise _failure(model, site, f"{name} is a {type(module).__name__}; wanted a linear map (Linear or Conv1D)")


def _verify_attention(model: nn.Module, sites: dict, trace: _Trace) -> None:
    block, projection = sites["block"].format(0), sites["attn_out"].format(0)
    if _arrival(model, trace, block, projection) is None:
        raise _failure(model, "attn_out", f"changing {projection} at a token does not change {block} there alone")


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
    if a.shape != b.shape or not a.numel():
        return False
    unit = max(torch.finfo(a.dtype).eps, torch.finfo(b.dtype).eps)
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return bool((a - b).abs().max() <= 16 * unit * b.abs().max())


def _failure(model: nn.Module, site: str, tried: str) -> UserError:
    return UserError(f"{type(model).__name__}: site {site!r} not found; {tried}")
