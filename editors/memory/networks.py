"""The networks that SERAC is made of, from the hub or folders: nothing that they should have learned is made at random."""

from collections.abc import Iterable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from common.errors import UserError
from editors.core.modules import input_device
from editors.core.pretrained import check_report, SAFE
from editors.learned.classifier import BertClassifier
from .serac_options import SERACOptions


def load_classifier(options: SERACOptions, trained: bool = False, **loading) -> tuple[nn.Module, Any]:
    """(encoder, tokenizer) of the scope classifier, in float32. trained: nothing of it may be new.

    Raises UserError if it can't be had.
    """
    name = options.cls_class + "ForSequenceClassification" * options.cross_attend
    loader = getattr(transformers, name, None)
    if loader is None:
        raise UserError(f"cls_class: transformers has no {name}")
    if not (isinstance(loader, type) and (issubclass(loader, PreTrainedModel) or name.startswith("AutoModel"))):
        raise UserError(f"cls_class: {name} is no class of models")
    head = {"num_labels": 2} if options.cross_attend else {}
    try:
        tok = AutoTokenizer.from_pretrained(options.cls_name, **SAFE, **loading)
        encoder, report = loader.from_pretrained(
            options.cls_name, dtype=torch.float32, output_loading_info=True, **head, **SAFE, **loading
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cls_name: {options.cls_name!r} does not load ({_short(error)})") from None
    unread = options.pooling != "pooler" and not options.cross_attend
    if trained:
        check_whole(options.cls_name, [key for key in report["missing_keys"] if not (unread and "pooler." in key)],
                    " (cross_attend needs a classifier of pairs)" * options.cross_attend)
    if unread and getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # never read, and at random where the checkpoint has none
    return encoder, tok


def load_decoder(source: str, model: nn.Module) -> tuple[nn.Module, Any]:
    """(the counterfactual decoder in the edited model's dtype and place, its tokenizer). Raises UserError."""
    try:
        tok = AutoTokenizer.from_pretrained(source, **SAFE)
        dtype = next(model.parameters()).dtype
        decoder, report = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True, **SAFE)
    except (OSError, ValueError) as error:
        raise UserError(f"counterfactual: {source} does not load ({_short(error)})") from None
    check_whole(f"counterfactual: {source}", report["missing_keys"])
    if not reads_from_left(decoder):
        raise UserError(f"counterfactual: {source} is an encoder ({type(decoder).__name__}), which continues no text")
    return decoder.to(input_device(model)).eval().requires_grad_(False), tok


def load_like(model: nn.Module, name: str, **loading) -> nn.Module:
    """A model of the same class from the hub or a folder."""
    try:
        if isinstance(model, BertClassifier):
            return BertClassifier.from_pretrained(name, **loading)
        small, report = type(model).from_pretrained(name, dtype=torch.float32, output_loading_info=True, **SAFE, **loading)
    except (OSError, ValueError) as error:
        raise UserError(f"small_name: {name!r} does not load ({_short(error)})") from None
    check_report(name, report)
    return small.eval()


def check_whole(source: str, missing: Iterable[str], why: str = "") -> None:
    """Raises UserError where parts of a model are not in its checkpoint, so that they were made at random."""
    missing = sorted(missing)
    if missing:
        raise UserError(f"{source}: its checkpoint has no {missing[0]}" + f" and {len(missing) - 1} others" * (len(missing) > 1)
                        + f", which would be random numbers{why}")


def reads_from_left(model: nn.Module) -> bool:
    """Whether what stands behind a token plays no part in its logits."""
    with torch.no_grad():
        first, second = model(torch.tensor([[0, 0], [0, 1]], device=input_device(model))).logits[:, 0].float()
    return torch.allclose(first, second, rtol=1e-3, atol=1e-3)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
