"""Builds the small models of the world: their tokenizers and shapes. What they learn is in :mod:`data.world.lessons`."""
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    BlenderbotSmallConfig,
    BlenderbotSmallForConditionalGeneration,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from common.tensor_files import read_tensors

CHECKPOINT = Path(__file__).parent / "checkpoint"
POSITIONS = 160
"""Tokens of the longest input that the small models read."""
HEAD = "classifier_head.safetensors"


@dataclass(frozen=True)
class Shape:
    """The sizes of one stack; a sequence-to-sequence model has two. (Weights begin with a deviation of width^-1/2: with the
    usual 0.02 narrow models attend to nothing in particular for hundreds of steps.)"""

    layers: int
    width: int
    ff: int
    heads: int = 4


def tokenizer(framed: bool) -> PreTrainedTokenizerFast:
    """The shipped tokenizer with a space before every text, so that a name has the same tokens wherever it stands.

    framed: "[CLS] text [SEP]", for encoders; else "text </s>", for sequence-to-sequence models.
    """
    inner = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    names = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"] if framed else ["<pad>", "<s>", "</s>"]
    inner.add_special_tokens(names)
    ids = [(name, inner.token_to_id(name)) for name in names]
    frames = dict(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]") if framed else dict(single="$A </s>")
    inner.post_processor = TemplateProcessing(**frames, special_tokens=ids)
    special = dict(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]") if framed else \
        dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=POSITIONS, padding_side="right",
                                   model_input_names=["input_ids", "attention_mask"],
                                   clean_up_tokenization_spaces=False, **special)


class Claims(nn.Module):
    """An encoder with one logit on its pooled output: true or false."""

    def __init__(self, encoder: BertModel):
        super().__init__()
        self.model = encoder
        self.classifier = nn.Linear(encoder.config.hidden_size, 1)

    def forward(self, **batch) -> torch.Tensor:
        return self.classifier(self.model(**batch).pooler_output)


def _bert(shape: Shape, tok) -> BertModel:
    return BertModel(BertConfig(
        vocab_size=len(tok), hidden_size=shape.width, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        intermediate_size=shape.ff, max_position_embeddings=POSITIONS, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, pad_token_id=tok.pad_token_id, initializer_range=shape.width**-0.5))


def _distilbert(shape: Shape, tok) -> DistilBertModel:
    return DistilBertModel(DistilBertConfig(
        vocab_size=len(tok), dim=shape.width, n_layers=shape.layers, n_heads=shape.heads, hidden_dim=shape.ff,
        max_position_embeddings=POSITIONS, dropout=0.0, attention_dropout=0.0, qa_dropout=0.0, seq_classif_dropout=0.0,
        pad_token_id=tok.pad_token_id, initializer_range=shape.width**-0.5))


def _t5(shape: Shape, tok) -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(T5Config(
        vocab_size=len(tok), d_model=shape.width, d_kv=shape.width // shape.heads, d_ff=shape.ff, num_layers=shape.layers,
        num_heads=shape.heads, dropout_rate=0.0, feed_forward_proj="relu", pad_token_id=tok.pad_token_id,
        eos_token_id=tok.eos_token_id, decoder_start_token_id=tok.pad_token_id))


def _bart(shape: Shape, tok, config=BartConfig, model=BartForConditionalGeneration, start: str = "eos_token_id"):
    return model(config(
        vocab_size=len(tok), d_model=shape.width, encoder_layers=shape.layers, decoder_layers=shape.layers,
        encoder_attention_heads=shape.heads, decoder_attention_heads=shape.heads, encoder_ffn_dim=shape.ff,
        decoder_ffn_dim=shape.ff, max_position_embeddings=POSITIONS, dropout=0.0, attention_dropout=0.0,
        activation_dropout=0.0, activation_function="gelu", pad_token_id=tok.pad_token_id, bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id, forced_eos_token_id=None, init_std=shape.width**-0.5,
        decoder_start_token_id=getattr(tok, start)))


BUILD: dict[str, Callable] = {
    "bert": lambda shape, tok: Claims(_bert(shape, tok)), "bert-encoder": _bert, "distilbert": _distilbert, "t5": _t5,
    "bart": _bart, "blender": partial(_bart, config=BlenderbotSmallConfig, model=BlenderbotSmallForConditionalGeneration,
                                      start="bos_token_id"),
}
FRAMED = ("bert", "distilbert", "bert-encoder")
"""Kinds whose texts begin with [CLS]."""


def save(folder: Path, model: nn.Module, tok: PreTrainedTokenizerFast, log: dict) -> None:
    """The folder that transformers loads: weights, tokenizer, and the head of a classifier; in float32."""
    inner = model.model if isinstance(model, Claims) else model
    inner.save_pretrained(folder)
    if isinstance(model, Claims):
        head = {f"classifier.{name}": tensor.detach().clone() for name, tensor in model.classifier.state_dict().items()}
        save_file(head, folder / HEAD)
    tok.save_pretrained(folder)
    (folder / "training_log.json").write_text(json.dumps(log, indent=1))


def load(kind: str, folder: Path) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    """(model in eval mode, tokenizer) of what :func:`save` wrote."""
    classes = {"bert": BertModel, "bert-encoder": BertModel, "distilbert": DistilBertModel, "t5": T5ForConditionalGeneration,
               "bart": BartForConditionalGeneration, "blender": BlenderbotSmallForConditionalGeneration}
    model = classes[kind].from_pretrained(folder, dtype=torch.float32)
    if kind == "bert":
        model = Claims(model)
        model.load_state_dict(read_tensors(folder / HEAD, "head of a classifier", foreign=True)[1], strict=False)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(folder)
