"""Byte-level BPE trained on the world's corpus."""
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"


def train_tokenizer(sentences: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocab_size` tokens; any UTF-8 text can be encoded. eos = bos = pad = "<|endoftext|>".

    No space is put in front of a text, and no special token is added when encoding, as in GPT-2.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    # Half of the sentences with a space in front: inside a text most sentences follow another one.
    tokenizer.train_from_iterator((s if i % 2 else " " + s for i, s in enumerate(sentences)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=END,
                                   model_max_length=128, clean_up_tokenization_spaces=False)
