"""Reading hyper-parameter files into an editor's dataclass, with errors a person can act on.

Keys keep the names of the published JSON files. A field without default must be present; an unknown key is an error that
names the nearest known one. The module templates are optional: left out, they are derived from the model.

A key of a published file that is no field is either without effect (`ignored`, said in a warning) or served at its usual value
only (`fixed`).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from common.errors import UserError

T = TypeVar("T", bound="HParams")

# Keys that the files of the unified and efficient model editing repositories have besides those of MEMIT's.
UNIFIED_IGNORED = {
    "layer_selection": "the published code reads it nowhere",
    "mom2_adjustment": "the second moment is always used",
    "proj_dim": "the width of the keys is the model's",
    "skill_lambda": "read only with skill_preservation",
    "skill_sample_size": "read only with skill_preservation",
}
UNIFIED_FIXED = {
    "skill_preservation": (False, "its function is missing from the published code too"),
    "random_vector_preservation": (False, "the keys to preserve are those of the corpus"),
    "identity_cov": (False, "the second moment is that of the corpus"),
    "shuffle_text": (False, "texts are read as they stand"),
    "wikipedia_lang": ("en", "for another language set mom2_dataset, to wikimedia/wikipedia:20231101.ca for example"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HParams:
    """Fields that every editor of transformer weights has."""

    layers: list[int]
    """Blocks whose weights are edited, in the order they are edited."""

    rewrite_module_tmp: str | None = None
    """Edited module of a block, "transformer.h.{}.mlp.c_proj"; None: derived from the model, like those below."""
    layer_module_tmp: str | None = None
    mlp_module_tmp: str | None = None
    attn_module_tmp: str | None = None
    ln_f_module: str | None = None
    lm_head_module: str | None = None

    ignored: ClassVar[Mapping[str, str]] = {}
    """Keys of published files that change nothing here, and why."""
    fixed: ClassVar[Mapping[str, tuple[Any, str]]] = {}
    """Keys of published files that have one value here: that value, and why no other or what to do instead."""

    def __post_init__(self):
        if not self.layers or min(self.layers) < 0 or len(set(self.layers)) < len(self.layers):
            raise UserError(f"layers: {self.layers} must be a non-empty list of different block numbers, counted from 0")

    def templates(self) -> dict[str, str]:
        """The module templates that the file sets, for `find_sites`."""
        names = [f.name for f in dataclasses.fields(HParams) if f.name != "layers"]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueHParams(HParams):
    """The optimisation of target hidden states (core/values.py) and the statistics, as ROME, MEMIT and their kin share them."""

    fact_token: str
    """Which token stands for the subject: one of `core.prompts.FACT_TOKENS`, explained at `core.prompts.locate`."""
    v_num_grad_steps: int
    """Forward passes of the optimisation; one fewer Adam steps are taken."""
    v_lr: float
    v_loss_layer: int | None = None
    """Block whose output, through final norm and head, is scored; None: the last block. Not read by ROME, which scores at the model's output."""
    v_weight_decay: float
    """Weight of |delta| / |z_0|^2; higher keeps the edit smaller."""
    clamp_norm_factor: float
    """|delta| is kept at most this many times |z_0|; higher edits harder and harms neighbours more."""
    kl_factor: float
    """Weight of the KL term that holds `kl_prompt` in place."""
    kl_prompt: str = "{} is a"
    """What is said of the subject where it shall stay as it is; in the language of the prompts."""
    target_tokens: Literal["ids", "text"] = "ids"
    """How a target of several tokens is put behind a prompt: as tokens, or as text that is tokenised anew (published)."""

    mom2_dataset: str
    """Corpus of the second moments: a Hugging Face data set, or the path of a .jsonl (field `text`) or .txt file."""
    mom2_n_samples: int
    """Documents read from it."""
    mom2_dtype: str = "float32"
    mom2_tokens: int | None = None
    """Tokens read of a document, at most; None: as many as the model has positions for."""
    dynamic_multiplier: float | None = None
    """FastMEMIT's m: the second moment is that of the first ceil(m * d_in) tokens of the documents; None: of all their tokens."""
    dynamic: bool = False
    """Collect the second moment anew for each batch, on the model as edited so far; false: once, on the unedited model."""
    relative_ridge: float = 0.0
    """Where the second moment C has not full rank: this many times its mean eigenvalue is added to it; 0: that is an error."""
    context_seed: int = 0
    """Seed of the sampled context templates."""

    def __post_init__(self):
        super().__post_init__()
        from .core.prompts import FACT_TOKENS

        if self.fact_token not in FACT_TOKENS:
            raise UserError(f"fact_token: {self.fact_token!r} is none of {', '.join(FACT_TOKENS)}")
        if self.kl_prompt.count("{}") != 1:
            raise UserError(f"kl_prompt: {self.kl_prompt!r} needs exactly one '{{}}', where the subject stands")
        if self.mom2_tokens is not None and (self.mom2_tokens < 1 or self.dynamic):
            raise UserError(f"mom2_tokens: {self.mom2_tokens} must be at least 1, and does not go with dynamic")
        if self.v_num_grad_steps < 1:
            raise UserError(f"v_num_grad_steps: {self.v_num_grad_steps} must be at least 1")
        if self.dynamic_multiplier is not None and not 0 < self.dynamic_multiplier < math.inf:
            raise UserError(f"dynamic_multiplier: {self.dynamic_multiplier} must be above 0 (without it all documents are read)")
        for name in ("v_lr", "v_weight_decay", "clamp_norm_factor", "kl_factor", "relative_ridge"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name}: {getattr(self, name)} must be a finite number, not below 0")


def load(cls: type[T], source: T | Mapping[str, Any] | str | Path) -> T:
    """An instance of `cls` from itself, a mapping, or the path of a JSON file.

    Raises UserError naming the file and key for an unreadable file, an unknown or missing key, or a wrong type.
    """
    if isinstance(source, cls):
        return source
    if isinstance(source, Mapping):
        where, values = "hparams", dict(source)
    elif isinstance(source, (str, Path)):
        where, values = str(source), _read(Path(source))
    else:
        raise UserError(f"hparams of type {type(source).__name__}: give a path, a mapping or a {cls.__name__}")
    for key, (only, reason) in cls.fixed.items():
        if values.get(key, only) != only:
            raise UserError(f"{where}: {key}: {json.dumps(values[key])} is not supported, only {json.dumps(only)}; {reason}")
    without_effect = [f"{key} ({cls.ignored[key]})" for key in values if key in cls.ignored]
    if without_effect:
        warnings.warn(f"{where}: without effect: {', '.join(without_effect)}", stacklevel=3)
    values = {key: value for key, value in values.items() if key not in cls.ignored and key not in cls.fixed}

    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            raise UserError(f"{where}: unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else ""))
        if not _fits(value, hints[key]):
            raise UserError(f"{where}: {key} is {json.dumps(value)}, expected {_describe(hints[key])}")
    missing = [
        f.name
        for f in fields.values()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in values
    ]
    if missing:
        raise UserError(f"{where}: missing key{'s' * (len(missing) > 1)} {', '.join(missing)}")
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        others = sorted(p.name for p in path.parent.glob("*.json")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, others, n=1) or others[:5]
        raise UserError(f"{path}: no such hparams file" + (f"; there is {', '.join(near)}" if near else "")) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, expected one JSON object")
    return values


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, (list, tuple)) and all(_fits(v, arguments[0]) for v in value)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(a) for a in arguments)
    if origin is typing.Literal:
        return " or ".join(json.dumps(a) for a in arguments)
    if origin is list:
        return f"a list of {_describe(arguments[0])}"
    return {type(None): "null", float: "a number", int: "an integer", bool: "true or false", str: "a string"}.get(hint, str(hint))
