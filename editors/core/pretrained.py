"""Reading models with transformers, strictly: of whatever is wrong with the files one line tells, nothing is made at random,
no code that comes with a model runs, and nothing is asked."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, GgufConfig
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from common.errors import UserError
from . import gguf_file
from .checks import check_finite_weights

SAFE = {"trust_remote_code": False}
"""Options of every `from_pretrained`: left to itself, transformers asks on the terminal whether code may run."""
OBJECTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
           "model.safetensors.index.json")
"""Files of a folder that hold a JSON object, where they are there."""
PACKAGES = {"bitsandbytes": ("bitsandbytes", "bitsandbytes"), "gptq": ("gptqmodel", "gptqmodel"),
            "awq": ("gptqmodel", "gptqmodel"), "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
            "quanto": ("optimum", "optimum-quanto"), "torchao": ("torchao", "torchao"), "hqq": ("hqq", "hqq"),
            "aqlm": ("aqlm", "aqlm")}
"""Quantisation -> (module, package that holds it) of what transformers reads it with."""

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
log = logging.getLogger(__name__)

Explain = Callable[[str, Exception], str]
"""(what was read, what went wrong) -> the line for the user."""


def read_config(source: str, explain: Explain, **options) -> Any:
    """The configuration of a folder, a GGUF file or a model of the hub. Raises UserError."""
    with reading(source), strictly(source, "config.json", explain):
        _check_objects(source, explain)
        config = AutoConfig.from_pretrained(*_place(source), **_gguf(source), **SAFE, **options)
        layers = getattr(config.get_text_config(), "num_hidden_layers", None)
        if layers is not None and layers < 1:
            raise ValueError(f"the number of layers is {layers}")
        return config


def read_tokenizer(source: str, explain: Explain, **options) -> Any:
    """Its tokenizer. Raises UserError."""
    with reading(source), strictly(source, "tokenizer.json", explain):
        _check_objects(source, explain)
        tok = AutoTokenizer.from_pretrained(*_place(source), **_gguf(source), **SAFE, **options)
        if not len(tok):
            raise ValueError("it has no tokens")
        if gguf_file.is_gguf(source):
            tok.name_or_path = source  # so that what is saved of it finds it again
        return tok


def read_model(cls: type, source: str, explain: Explain, config=None, new: Iterable[str] = (), **options) -> nn.Module:
    """The model, in a class of transformers: whole, with finite weights, and dequantised where transformers can do so.

    explain: makes the line of an error. new: beginnings of the names of parameters that may be missing, so that they are made
    at random: a new head. options: of `from_pretrained`. Raises UserError.
    """
    with reading(source) as stored, strictly(source, "weights", explain):
        _check_objects(source, explain)
        config = config or AutoConfig.from_pretrained(*_place(source), **_gguf(source), **SAFE)
        method = stored or _dequantised(config, source)
        if gguf_file.is_gguf(source):
            options = {**options, **_gguf(source), "quantization_config": GgufConfig(dequantize=True)}
        else:
            options.setdefault("use_safetensors", True)
        model, report = cls.from_pretrained(
            *_place(source), config=config, output_loading_info=True, ignore_mismatched_sizes=True, **SAFE, **options
        )
        if method == "bitsandbytes":
            model = model.dequantize()
        if method:
            log.info("%s: stored in %s, dequantised to %s here", Path(source).name, method, str(model.dtype).partition(".")[2])
    check_report(source, report, new, model)
    if gguf_file.is_gguf(source):
        model.config._name_or_path = source
    check_finite_weights(model, f"model {source!r}")
    return model


def check_report(source: str, report: dict[str, Any], new: Iterable[str] = (), model: nn.Module | None = None) -> None:
    """Raises UserError where the checkpoint lacks parameters of the model, has them in other shapes, or has more blocks than
    it, as transformers' loading report tells; new: beginnings of the names that may be lacking."""
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(tuple(new)))
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(f"model {source!r}: its weights lack {missing[0]}{others}, which would be random numbers: copy or "
                        "download them again, or choose the class of models that they are of")
    superfluous = sorted(_like(model, report["unexpected_keys"])) if model is not None else []
    if superfluous:
        raise UserError(f"model {source!r}: its weights hold {superfluous[0]}, for which its config.json has no place: the two "
                        "are not of the same model")
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, stored, expected = mismatched[0]
        raise UserError(f"model {source!r}: its weights do not fit its config.json: {name} has shape {list(stored)}, "
                        f"not {list(expected)}")


def check_tokenizer(source: str, model: nn.Module, tok) -> None:
    """Raises UserError where the tokenizer has tokens, those added to it aside, that the model has no embedding of."""
    rows = model.get_input_embeddings().weight.shape[0]
    if tok.vocab_size > rows:
        raise UserError(f"model {source!r}: its tokenizer has {tok.vocab_size} tokens, and the model embeddings of {rows}: "
                        "they are not of the same model")


@contextmanager
def strictly(source: str, what: str, explain: Explain) -> Iterator[None]:
    """Inside, every failure of transformers is a UserError: files that disagree show themselves in exceptions of all kinds."""
    try:
        with quiet():
            yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except SafetensorError as error:
        raise UserError(f"model {source!r}: its weights are damaged ({error}); copy or download them again") from error
    except Exception as error:
        raise UserError(explain(what, error)) from error


def reading(source: str) -> AbstractContextManager[str | None]:
    """Inside, the header of a GGUF file is read once; yields what its weights are stored as, None of any other source."""
    return gguf_file.read_once(source) if gguf_file.is_gguf(source) else nullcontext()


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers logs errors alone: what its warnings tell is checked, and told in one line."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def short(error: Exception) -> str:
    """What an exception says, in one line."""
    if "trust_remote_code" in str(error):
        return "the model is made by code of its own, which is never run (trust_remote_code stays off)"
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[0].strip() if lines else "no reason given"
    return text if isinstance(error, (OSError, ValueError, ImportError)) else f"{type(error).__name__}: {text}"


def _check_objects(source: str, explain: Explain) -> None:
    for name in OBJECTS:
        path = Path(source) / name
        if path.is_file():
            try:
                content = json.loads(path.read_bytes())
            except (ValueError, RecursionError) as error:
                raise UserError(f"model {source!r}: {name} is not a valid JSON file ({short(error)})") from error
            if not isinstance(content, dict) or not content and name == "tokenizer.json":
                raise UserError(f"model {source!r}: {name} holds {json.dumps(content)[:40]}, not the object that it should")


def _like(model: nn.Module, names: Iterable[str]) -> list[str]:
    """The names that are those of the model's parameters but for the numbers in them."""
    templates = {NUMBER.sub("*", name) for name, _ in model.named_parameters()}
    return [name for name in names if NUMBER.search(name) and NUMBER.sub("*", name) in templates]


def _dequantised(config, source: str) -> str | None:
    """The quantisation of a checkpoint that is undone as it is read; None where there is none, or it stays."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    method = str(settings.get("quant_method") or "")
    if method.startswith("bitsandbytes") or any(settings.get(f"load_in_{bits}bit") for bits in (4, 8)):
        method = "bitsandbytes"
    if method and method not in AUTO_QUANTIZER_MAPPING and method not in PACKAGES:
        raise ValueError(f"config.json: its weights are quantised with {method!r}, which transformers does not know")
    module, package = PACKAGES.get(method, (None, None))
    if module and find_spec(module) is None:
        raise UserError(f"model {source!r}: its weights are quantised ({method}), and the package that reads them is not "
                        f"installed: pip install {package}")
    if method in ("fp8", "mxfp4"):
        config.quantization_config = {**settings, "dequantize": True}
        return method
    return method if method == "bitsandbytes" else None


def _place(source: str) -> tuple[str]:
    return (str(Path(source).parent) if gguf_file.is_gguf(source) else source,)


def _gguf(source: str) -> dict[str, str]:
    return {"gguf_file": Path(source).name} if gguf_file.is_gguf(source) else {}
