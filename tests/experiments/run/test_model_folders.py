"""Model folders whose files disagree: one line that names the file and what is wrong, whatever transformers makes of it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import UserError
from experiments.run.models import load_model
from experiments.training.models import load_editable


def configured(**changes):
    def spoil(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return spoil


def written(name, text):
    return lambda folder: (folder / name).write_text(text)


def tensors(change):
    def spoil(folder):
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", {"format": "pt"})
    return spoil


def not_a_number(found):
    found["transformer.h.2.mlp.c_fc.weight"][3, 4] = float("nan")


def infinite(found):
    found["transformer.ln_f.weight"][3] = float("inf")


@pytest.fixture
def folder(golden, tmp_path):
    return shutil.copytree(golden / "tiny-gpt2", tmp_path / "model")


CASES = [
    (configured(vocab_size=1001), r"do not fit its config.json: transformer.wte.weight has shape \[\d+, \d+\], not \[1001, "),
    (configured(n_head=0), "config.json"),
    (configured(n_head=7), "config.json"),
    (configured(n_embd="wide"), "config.json"),
    (configured(n_layer=-1), "config.json|weights"),
    (configured(n_layer=99), "lack transformer.h"),
    (configured(n_layer=3), "weights hold transformer.h.3.*config.json has no place"),
    (configured(activation_function="gelu_newest"), "config.json.*gelu_newest"),
    (configured(dtype="float7"), "config.json.*float7"),
    (configured(model_type="gpt77"), "config.json.*gpt77"),
    (configured(auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}, model_type="own"),
     "trust_remote_code"),
    (configured(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
     "quantised .bitsandbytes.*pip install bitsandbytes"),
    (configured(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised .gptq.*pip install gptqmodel"),
    (configured(quantization_config={"quant_method": "nonesuch"}), "config.json.*nonesuch"),
    (written("config.json", "null"), "config.json holds null"),
    (written("config.json", "[]"), r"config.json holds \[\]"),
    (written("config.json", "["), "config.json is not a valid JSON"),
    (written("tokenizer.json", "{}"), "tokenizer.json holds {}"),
    (written("tokenizer.json", "null"), "tokenizer.json holds null"),
    (written("tokenizer.json", '{"version": "1.0"}'), "tokenizer.json"),
    (written("tokenizer_config.json", "[]"), r"tokenizer_config.json holds \[\]"),
    (written("generation_config.json", "[]"), r"generation_config.json holds \[\]"),
    (written("generation_config.json", "nan and void"), "generation_config.json is not a valid JSON"),
    (tensors(not_a_number), "transformer.h.2.mlp.c_fc.weight is not finite"),
    (tensors(infinite), "transformer.ln_f.weight is not finite"),
]


@pytest.mark.parametrize(("spoil", "message"), CASES)
def test_folders(folder, capfd, monkeypatch, spoil, message):
    spoil(folder)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    with pytest.raises(UserError, match=message) as caught:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    output = capfd.readouterr()
    assert not output.out and "Error" not in output.err and "MISSING" not in output.err


def test_a_tokenizer_of_another_model(folder, golden):
    config = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = config["model"]["vocab"]
    vocabulary |= {f"word{i}": len(vocabulary) + i for i in range(5000)}
    (folder / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="its tokenizer has .* tokens, and the model embeddings of"):
        load_model(str(folder), device="cpu")


def test_training_takes_no_weights_at_random(folder, tmp_path, golden):
    from tests.models import tiny_model
    tiny_model("llama").save_pretrained(tmp_path / "llama")
    settings = {"name": str(tmp_path / "llama"), "tokenizer_name": str(folder), "class_name": "GPT2LMHeadModel"}
    with pytest.raises(UserError, match="GPT2LMHeadModel is for models of type gpt2, and .* is of type llama"):
        load_editable(settings, "gen", "cpu")
    model, _ = load_editable(settings | {"class_name": "AutoModelForCausalLM"}, "gen", "cpu")
    assert type(model).__name__ == "LlamaForCausalLM"
    tensors(lambda found: found.pop("transformer.h.1.attn.c_attn.weight"))(folder)
    with pytest.raises(UserError, match="lack transformer.h.1.attn.c_attn.weight"):
        load_editable({"name": str(folder), "class_name": "GPT2LMHeadModel"}, "gen", "cpu")
    assert torch.is_tensor(next(model.parameters()))
