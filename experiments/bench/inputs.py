"""Inputs that the benchmarks share: a random GPT-2 and a tokenizer whose tokens are words."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

SMALL = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
TINY = {"n_layer": 12, "n_embd": 32, "n_head": 4, "n_positions": 64, "vocab_size": 300}


def random_gpt2(shape: dict[str, int], seed: int) -> GPT2LMHeadModel:
    """A GPT-2 of this shape with random weights, in eval mode."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).eval()


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word is a token: "w17" is 17."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")
