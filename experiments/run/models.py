"""Loads a model and its tokenizer from the Hugging Face hub, a folder, a GGUF file, or the built-in world."""

import difflib
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from editors.core import ranks
from editors.core.batching import check_continues, check_padding
from editors.core.fingerprint import model_fingerprint
from editors.core.gguf_file import is_gguf, SMOLLM2, smollm2
from editors.core.pretrained import check_tokenizer, Explain, read_config, read_model, read_tokenizer, reading, short

# Only to suggest a name when one is misspelt; any causal language model of the hub or of a folder loads.
KNOWN = ("world", SMOLLM2, "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "EleutherAI/gpt-j-6B", "EleutherAI/gpt-neox-20b",
         "EleutherAI/pythia-1b", "HuggingFaceTB/SmolLM2-135M-Instruct", "meta-llama/Llama-2-7b-hf",
         "meta-llama/Meta-Llama-3-8B", "Qwen/Qwen2.5-7B",
         "projecte-aina/aguila-7b")


def load_model(name: str, dtype: str = "auto", device: str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in evaluation mode and its tokenizer, with the padding token set (to eos if it has none).

    ``name``: hub id, local folder, GGUF file, ``world`` or ``smollm2``. ``dtype``, ``device``: see
    :class:`experiments.run.config.ModelFlags`.
    Raises ``UserError`` for an unknown model, an unreachable hub, files that are damaged or disagree, a device that is not
    there, or devices that are too small for the model.
    """
    source, local = source_of(name)
    place, explain = device_of(device), explainer(name, source, local)
    with reading(source):
        config = read_config(source, explain, local_files_only=local)
        tok = read_tokenizer(source, explain, local_files_only=local)
        # Never pickled weights: a checkpoint without safetensors is refused (the hub converts such ones on demand).
        model = read_model(
            AutoModelForCausalLM, source, explain, config, dtype=_dtype(dtype, config, place), local_files_only=local,
            device_map="auto" if place == "map" else None)
    check_tokenizer(source, model, tok)
    set_padding(name, tok)
    if place == "map":
        check_in_memory(name, model)
    else:
        model.to(place)
    return model.eval(), tok


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model alone. Raises as :func:`load_model`."""
    source, local = source_of(name)
    return read_tokenizer(source, explainer(name, source, local), local_files_only=local)


def set_padding(name: str, tok: PreTrainedTokenizerBase) -> None:
    """The end-of-sequence token pads where there is no padding token: padding is masked everywhere. UserError if neither is."""
    if tok.pad_token_id is None:
        if tok.eos_token is None:
            raise UserError(f"model {name!r}: its tokenizer has neither a padding nor an end-of-sequence token; "
                               "set one in its folder")
        tok.pad_token = tok.eos_token


def check_readable(model: PreTrainedModel, needs_cache: str | None = None) -> None:
    """Before a program measures or edits: raises UserError for a model of which that would go wrong.

    needs_cache: what can't do without continuing rows from a cache of keys and values, if anything.
    """
    check_padding(model, "what is computed in batches")
    if needs_cache:
        check_continues(model, needs_cache)


def check_in_memory(name: str, model: PreTrainedModel) -> None:
    """Raises UserError if accelerate has offloaded weights: those can be neither told apart from others nor edited."""
    offloaded = [weight for weight, parameter in model.named_parameters() if parameter.is_meta]
    if offloaded:
        raise UserError(f"model {name!r}: too large for the devices here, so --device map left {len(offloaded)} of its weights "
                           f"outside (the first is {offloaded[0]}); use more or larger devices, or a smaller --dtype")


def identity(model: PreTrainedModel) -> str:
    """What tells one model from another: the hub's commit and a fingerprint of the weights (an edit changes the latter)."""
    commit = getattr(model.config, "_commit_hash", None)
    return (f"commit {commit}, " if commit else "") + f"weights {model_fingerprint(model)}"


def source_of(name: str) -> tuple[str, bool]:
    """(folder, GGUF file or hub id, whether only this machine's files are to be used)."""
    if name == "world":
        from data import world
        if not world.CHECKPOINT.is_dir():
            raise UserError(f"model 'world': its checkpoint {world.CHECKPOINT} is missing; get the complete repository")
        return str(world.CHECKPOINT), True
    if name == SMOLLM2 and not Path(name).is_dir():
        return str(smollm2()), True
    if Path(name).is_dir() or is_gguf(name) and Path(name).is_file():
        return name, True
    if is_gguf(name):
        raise UserError(f"model {name!r}: no such file")
    # What looks like a path is never looked up on the hub by mistake.
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model {name!r}: no such folder")
    try:
        # One quick question instead of transformers' many retries: also tells "unknown" from "unreachable".
        HfApi().model_info(name, timeout=10)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"model {name!r}: neither a folder here nor a model of the Hugging Face hub that you may read"
                           + name_hint(name)) from error
    except (HTTPError, OSError):
        return name, True  # unreachable: what was downloaded before still loads
    return name, False


def device_of(device: str) -> str:
    """The device that --device names for this process: "auto" takes a GPU, then Apple's, then the CPU."""
    if device == "map":
        if ranks.processes() > 1:
            raise UserError("--device map: spreads one process over all devices, so it does not go with torchrun; use one of "
                            "both")
        return device
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{ranks.local_process() % torch.cuda.device_count()}" if ranks.processes() > 1 else "cuda"
    if device == "auto":
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()  # also refuses "meta", which holds no numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0][:120]
        raise UserError(f"--device {device}: not available here ({reason}); "
                           "use auto, cpu, cuda, cuda:1, mps or map") from error
    return device


def _dtype(dtype: str, config, place: str) -> torch.dtype:
    if dtype != "auto":
        return getattr(torch, dtype)
    of_checkpoint = config.dtype or torch.float32
    return torch.float32 if place == "cpu" and of_checkpoint.itemsize < 4 else of_checkpoint


def explainer(name: str, source: str, local: bool) -> Explain:
    """What makes one line of the many ways in which transformers fails to load a model."""
    def explain(what: str, error: Exception) -> str:
        if Path(source).is_dir():
            missing = [file for file in ("config.json", "tokenizer.json") if not (Path(source) / file).exists()]
            if missing and (what == "config.json" or "tokenizer.json" in missing and what == "tokenizer.json"):
                return f"model {name!r}: the folder has no {missing[0]}"
            if what == "weights" and not isinstance(error, OSError):
                what = "config.json: no model can be made of it"
            return f"model {name!r}: {what}: {short(error)}"
        if local and not is_gguf(source):
            return (f"model {name!r}: not on this machine, and the Hugging Face hub can't be reached; "
                    f"download it beforehand, give a local folder, or use the model 'world'{name_hint(name)}")
        return f"model {name!r}: {short(error)}"
    return explain


def name_hint(name: str) -> str:
    """ "; did you mean ...?" where a model that is known has nearly this name, else nothing."""
    near = difflib.get_close_matches(name, KNOWN, n=1)
    return f"; did you mean {near[0]!r}?" if near and near[0] != name else ""
