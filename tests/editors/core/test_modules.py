"""How long a row the model reads: one limit for edits, metrics, statistics and tracing."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, MptConfig

from common.errors import UserError
from editors.core.decoder import Decoder
from editors.core.modules import longest_context
from experiments.metrics.incremental import check_length
from tests.models import POSITIONS, tiny_model, VOCABULARY


def tokens(count):
    return torch.arange(count)[None] % VOCABULARY


@pytest.mark.parametrize("arch", ["gpt2", "gptj", "gpt_neox", "llama", "opt", "falcon"])
def test_models_with_positions_read_as_many_tokens(arch):
    overrides = {"max_position_embeddings": POSITIONS} if arch == "falcon" else {}
    assert longest_context(tiny_model(arch, **overrides)) == POSITIONS


def test_mpt_reads_max_seq_len_tokens():
    """ALiBi itself has no end, but transformers lays MPT's biases out for `max_seq_len` tokens and fails beyond."""
    config = MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=VOCABULARY, max_seq_len=16)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert longest_context(model) == 16
    model(tokens(16))
    with pytest.raises(RuntimeError):
        model(tokens(17))
    check_length(model, range(16), "a row")
    with pytest.raises(UserError, match="a row has 17 tokens, more than the model's 16 positions"):
        check_length(model, range(17), "a row")


def test_bloom_reads_what_it_was_trained_for_where_that_is_said():
    """BLOOM runs on any length. `seq_length`, in the configurations of the published models, is the one it was trained for.

    Edits are made and measured, and statistics counted, within it. Without that entry there is no limit.
    """
    shape = dict(hidden_size=32, n_head=4, n_layer=2, vocab_size=VOCABULARY)
    published = AutoModelForCausalLM.from_config(BloomConfig(**shape, seq_length=16)).eval()
    assert torch.isfinite(published(tokens(17)).logits).all()
    assert longest_context(published) == Decoder.of(published).positions == 16
    with pytest.raises(UserError, match="more than the model's 16 positions"):
        check_length(published, range(17), "a row")
    unlimited = AutoModelForCausalLM.from_config(BloomConfig(**shape)).eval()
    assert longest_context(unlimited) is None
    check_length(unlimited, range(5000), "a row")
