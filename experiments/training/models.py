"""Loads the models that learned editors edit: decoders, sequence-to-sequence models and classifiers, of the hub, a folder or
the built-in world."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from common.errors import UserError
from common.tensor_files import read_tensors
from editors.learned.classifier import BertClassifier
from editors.learned.model_kind import ModelKind, model_kind
from editors.core.pretrained import read_config, read_model, read_tokenizer, strictly
from experiments.run.models import device_of, explainer, set_padding, source_of

KINDS = {
    "gen": (ModelKind.DECODER,), "fc": (ModelKind.CLASSIFIER,), "fnli": (ModelKind.CLASSIFIER,),
    "qa": (ModelKind.T5, ModelKind.BART), "sent": (ModelKind.BLENDERBOT,),
}
"""Experiment -> the kinds of models that its data are for."""
_CLASS_OF = {"gen": "AutoModelForCausalLM", "fc": "BertClassifier", "fnli": "BertClassifier", "qa": "AutoModelForSeq2SeqLM",
             "sent": "AutoModelForSeq2SeqLM"}


def load_editable(
    settings: Mapping[str, Any], experiment: str, device: str = "auto", dtype: torch.dtype = torch.float32,
    data_dir: str | Path | None = None, eager: bool = False,
) -> tuple[nn.Module, Any]:
    """(the model, frozen and in evaluation mode, its tokenizer).

    settings: the keys of hparams/train/model. eager: attention that can be differentiated twice.
    Raises UserError for a model that is unknown, unreachable, damaged, or not of a kind that the experiment is for.
    """
    name = settings["name"]
    class_name = settings.get("class_name") or _CLASS_OF[experiment]
    if name == "world":
        from data.world import models

        source, local, name = str(models.path(settings.get("kind") or models.KIND_OF[experiment], data_dir)), True, "world"
    else:
        source, local = source_of(name)
    cls = BertClassifier if class_name == "BertClassifier" else getattr(transformers, class_name, None)
    if cls is None:
        near = difflib.get_close_matches(class_name, dir(transformers), n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise UserError(f"model.class_name: transformers has no {class_name!r}{hint}")
    target_device = device_of(device)
    explain = explainer(name, source, local)
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": local}
    if eager:
        options["attn_implementation"] = "eager"
    config = read_config(source, explain, local_files_only=local)
    _check_class(cls, config, name, experiment)
    if cls is BertClassifier:
        with strictly(source, "weights", explain):
            model = cls.from_pretrained(source, use_safetensors=True, **options)
    else:
        model = read_model(cls, source, explain, config, **options)
    tokenizer = settings.get("tokenizer_name")
    tok_source, tok_local = source_of(tokenizer) if tokenizer else (source, local)
    tok = read_tokenizer(tok_source, explainer(tokenizer or name, tok_source, tok_local), local_files_only=tok_local)
    if settings.get("pt"):
        load_weights(model, Path(settings["pt"]))
    if model_kind(model) not in KINDS[experiment]:
        raise _unfit(name, model_kind(model).value, experiment)
    set_padding(name, tok)
    return model.to("cpu" if target_device == "map" else target_device).eval().requires_grad_(False), tok


def _check_class(cls: type, config, name: str, experiment: str) -> None:
    """Before weights are loaded into a class with a head that they don't have."""
    if bool(getattr(config, "is_encoder_decoder", False)) != any(kind.is_seq2seq for kind in KINDS[experiment]):
        raise _unfit(name, config.model_type, experiment)
    own = getattr(cls, "config_class", None)
    if own is not None and not isinstance(config, own):
        raise UserError(f"model.class_name: {cls.__name__} is for models of type {own.model_type}, and {name!r} is of type "
                        f"{config.model_type}: its weights would be random numbers; use {_CLASS_OF[experiment]}")
    for architecture in config.architectures or []:
        causal = "CausalLM" in architecture or "LMHead" in architecture
        encoder = architecture.endswith(("ForSequenceClassification", "ForMaskedLM", "BertModel"))
        if causal and cls is BertClassifier or encoder and experiment == "gen":
            raise _unfit(name, architecture, experiment)


def _unfit(name: str, description: str, experiment: str) -> UserError:
    kinds = " or ".join(kind.value for kind in KINDS[experiment])
    return UserError(f"experiment {experiment!r} is for models of kind {kinds}, but {name!r} is {description}: "
                     "choose another +model")


def load_weights(model: nn.Module, path: Path) -> None:
    """Weights of a file (.safetensors) in place of the model's own: named as the model's, or with one leading `model.` (as
    Lightning writes them). Raises UserError for a file that does not fit, and for pickled ones."""
    if path.suffix != ".safetensors":
        raise UserError(f"model.pt: {path} is no .safetensors file; pickled weights are not read: convert it where "
                        "you trust it")
    try:
        _, tensors = read_tensors(path, "file of weights", "copy it again", foreign=True)
    except OSError as error:
        raise UserError(f"model.pt: {path} can't be read ({error.strerror})") from None
    weights = {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
    stripped = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    for candidate in (weights, stripped):
        if _fits(model, candidate):
            model.load_state_dict(candidate, strict=False)
            return
    unknown = sorted(weights.keys() - model.state_dict().keys())
    raise UserError(f"model.pt: {path} holds weights of another model" + (f" ({unknown[0]})" if unknown else ""))


def _fits(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> bool:
    parameters = model.state_dict()
    places = {parameters[name].data_ptr() for name in weights if name in parameters}
    tied = {name for name, tensor in parameters.items() if tensor.data_ptr() in places}
    return (all(name in parameters and parameters[name].shape == tensor.shape for name, tensor in weights.items())
            and all(name in weights or name in tied or name.endswith("position_ids") for name in parameters))


def set_dropout(model: nn.Module, p: float | None) -> None:
    """Every dropout of the model has probability p; None leaves them."""
    if p is None:
        return
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        for name, value in list(vars(module).items()):
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, p)


def inner_params_of(settings: Mapping[str, Any], model: nn.Module) -> Sequence[str]:
    """The weights to edit: those of the configuration, else the feed-forward weights of the last blocks."""
    from editors.learned.inner_params import default_inner_params

    return list(settings.get("inner_params") or default_inner_params(model))
