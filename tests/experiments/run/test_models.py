"""Loading of models."""

import json
import shutil

import accelerate
import pytest
import torch

from common.errors import UserError
from experiments.run.models import check_in_memory, identity, load_model


def test_dtype_and_padding(golden, tmp_path):
    model, tok = load_model(str(golden / "tiny-gpt2"), "float64", "cpu")
    assert model.dtype == torch.float64 and not model.training
    assert tok.pad_token is not None
    folder = shutil.copytree(golden / "tiny-gpt2", tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_model(str(folder))[1].pad_token == tok.eos_token


def test_half_precision_is_computed_in_full_on_a_cpu(golden, tmp_path):
    model, tok = load_model(str(golden / "tiny-gpt2"))
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    tok.save_pretrained(tmp_path / "half")
    assert load_model(str(tmp_path / "half"), "auto", "cpu")[0].dtype == torch.float32
    assert load_model(str(tmp_path / "half"), "bfloat16", "cpu")[0].dtype == torch.bfloat16


def test_device_map_gives_the_same_model(golden):
    plain, _ = load_model(str(golden / "tiny-gpt2"), device="cpu")
    spread, _ = load_model(str(golden / "tiny-gpt2"), device="map")
    assert identity(plain) == identity(spread)


def test_weights_outside_the_devices_are_refused(golden):
    model, _ = load_model(str(golden / "tiny-gpt2"), device="cpu")
    check_in_memory("tiny", model)
    accelerate.cpu_offload(model.transformer.h[3], torch.device("cpu"))
    with pytest.raises(UserError, match="too large.* left 12 of its weights outside .the first is transformer.h.3.ln_1"):
        check_in_memory("tiny", model)


def test_identity_is_of_the_weights(golden):
    model, _ = load_model(str(golden / "tiny-gpt2"))
    other, _ = load_model(str(golden / "tiny-gptj"))
    first = identity(model)
    assert first != identity(other)
    with torch.no_grad():
        model.transformer.h[2].mlp.c_proj.weight[5] += 1e-3
    assert identity(model) != first
