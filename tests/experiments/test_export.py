"""The export program: what it writes loads without this toolkit, and a user's mistake is one line."""

import json
import re

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from editors import Dense, Edit, LowRank
from editors.core.fingerprint import model_fingerprint
from experiments import export
from experiments.run.cli import run_program
from tests.conftest import load_tiny

NAME = "transformer.h.2.mlp.c_proj.weight"


@pytest.fixture
def edit(tiny_gpt2, tmp_path):
    """An edit of the tiny golden GPT-2 that is in a file."""
    rows, columns = tiny_gpt2[0].get_parameter(NAME).shape
    generator = torch.Generator().manual_seed(0)
    left, right = (0.1 * torch.randn(size, 3, generator=generator) for size in (rows, columns))
    edit = Edit({NAME: LowRank(left, right)}, {"editor": "random", "model": model_fingerprint(tiny_gpt2[0])})
    edit.save(tmp_path / "edit.safetensors")
    return edit


@pytest.fixture
def program(monkeypatch, capsys, golden, tmp_path):
    """Runs the command line; returns (exit code, what it printed, errors and warnings)."""
    def start(*argv, model=golden / "tiny-gpt2"):
        fixed = [tmp_path / "edit.safetensors", "--model_name", model, "--device", "cpu"]
        monkeypatch.setattr("sys.argv", ["export", *map(str, [*fixed, *argv])])
        capsys.readouterr()
        try:
            run_program(export.command)
            code = 0
        except SystemExit as ended:
            code = ended.code
        printed = capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if re.search("(error|warning): ", line)]
        messages = [re.search("(error|warning): .*", line)[0] for line in lines]
        return code, printed.out, "\n".join(messages)
    return start


def logits(model, tok):
    with torch.no_grad():
        return model(**tok("Mira plays the", return_tensors="pt")).logits


def test_adapter(program, edit, tmp_path):
    model, tok = load_tiny("tiny-gpt2")
    code, out, err = program("--out", tmp_path / "adapter")
    assert (code, err) == (0, "") and "transformer.h.2.mlp.c_proj: rank 3, stored as 8; relative error 0" in out
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "Edited by random" in card and f"`{NAME.removesuffix('.weight')}`: rank 8" in card
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")  # finds the base model by itself
    with edit.applied(model):
        assert torch.allclose(logits(loaded, tok), logits(model, tok), atol=1e-5)


def test_checkpoint(program, edit, tmp_path):
    model, tok = load_tiny("tiny-gpt2")
    code, out, err = program("--out", tmp_path / "edited", "--format", "checkpoint")
    assert (code, err) == (0, "") and re.search(rf"{NAME}: relative error \d\.\de-0[78] from rounding to torch.float32", out)
    loaded, loaded_tok = (kind.from_pretrained(tmp_path / "edited") for kind in (AutoModelForCausalLM, AutoTokenizer))
    with edit.applied(model):
        assert all(torch.equal(p, model.get_parameter(name)) for name, p in loaded.named_parameters())
        assert torch.allclose(logits(loaded, loaded_tok), logits(model, tok), atol=1e-5)
    assert not list((tmp_path / "edited").glob("*.bin"))
    assert json.loads((tmp_path / "edited" / "edit.json").read_text())["info"]["editor"] == "random"


@pytest.mark.parametrize("form", ["adapter", "checkpoint"])
def test_an_edit_that_is_not_finite(program, edit, tmp_path, form):
    edit.changes[NAME].left[0, 0] = torch.inf
    edit.save(tmp_path / "edit.safetensors")
    code, _, messages = program("--out", tmp_path / "out", "--format", form)
    assert code == 2 and f"'{NAME}/left' holds NaN or infinity" in messages
    assert not (tmp_path / "out").exists()


def test_half_precision_loses_more(program, edit, tmp_path):
    code, out, err = program("--out", tmp_path / "edited", "--format", "checkpoint", "--dtype", "bfloat16")
    assert code == 0 and re.search("relative error 0.0[0-9]+ from rounding to torch.bfloat16", out)
    assert re.search("made on other weights than those of .* in torch.bfloat16", err)


def test_the_rank_limit(program, edit, tmp_path):
    code, out, _ = program("--out", tmp_path / "adapter", "--max_rank", 1)
    assert code == 0 and re.search(r"rank 3, stored as 1; relative error 0\.[5-9]", out)


@pytest.mark.parametrize(("argv", "message"), [
    (["--max_rank", "12"], "'12' should be one of 1, 8, 16, 32, 64, 128, 256, 320, 512, or any"),
    (["--format", "pickle"], "invalid choice: 'pickle'"),
    (["--device", "cuda:99"], "--device cuda:99: not available here"),
])
def test_flags(program, edit, tmp_path, argv, message):
    code, _, err = program("--out", tmp_path / "adapter", *argv)
    assert code == 2 and re.search(message, err) and "\n" not in err
    assert not (tmp_path / "adapter").exists()


def test_places_files_and_models(program, edit, tmp_path, golden):
    existing = tmp_path / "there"
    existing.mkdir()
    code, _, err = program("--out", existing)
    assert code == 2 and re.search("--out .*there: is there already", err)
    code, _, err = program("--out", tmp_path / "a", model=golden / "tiny-gptj")
    assert code == 2 and "has no module 'transformer.h.2.mlp.c_proj'" in err
    Edit({"transformer.h.0.attn.c_proj.bais": Dense(torch.ones(64))}).save(tmp_path / "edit.safetensors")
    code, _, err = program("--out", tmp_path / "a", "--format", "checkpoint")
    assert code == 2 and "no parameter 'transformer.h.0.attn.c_proj.bais'" in err
    Edit({"transformer.h.0.attn.bias": Dense(torch.ones(64))}).save(tmp_path / "edit.safetensors")
    code, _, err = program("--out", tmp_path / "a", "--format", "checkpoint")
    assert code == 2 and "is no parameter of the unedited model, so transformers would not load it" in err
    Edit({NAME: Dense(torch.ones(3, 3))}).save(tmp_path / "edit.safetensors")
    for form in ("adapter", "checkpoint"):
        code, _, err = program("--out", tmp_path / "a", "--format", form)
        assert code == 2 and "made for another model" in err and not (tmp_path / "a").exists()
    Edit({NAME: Dense(torch.full((256, 64), 3e5))}).save(tmp_path / "edit.safetensors")
    code, _, err = program("--out", tmp_path / "a", "--format", "checkpoint", "--dtype", "float16")
    assert code == 2 and f"error: {NAME}: the edit does not fit into torch.float16; choose a wider --dtype" in err
    assert not (tmp_path / "a").exists()
    Edit({}, {"editor": "SERAC"}).save(tmp_path / "edit.safetensors")
    for form in ("adapter", "checkpoint"):
        code, _, err = program("--out", tmp_path / "a", "--format", form)
        assert code == 2 and "the edit changes no weight" in err
    (tmp_path / "edit.safetensors").write_bytes(b"nothing")
    code, _, err = program("--out", tmp_path / "a")
    assert code == 2 and "or not a file that Edit.save wrote" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["edit.safetensors", "there"]


def test_lora_of_llama_cpp(program, tiny_gpt2, tmp_path):
    """Read back with the package gguf as llama.cpp would, of two ranks: alpha / rank of the factors times B A is the change."""
    gguf = pytest.importorskip("gguf")
    generator = torch.Generator().manual_seed(0)
    changes = {}
    for name, rank in ((NAME, 3), ("transformer.h.1.mlp.c_proj.weight", 12)):
        rows, columns = tiny_gpt2[0].get_parameter(name).shape
        changes[name] = LowRank(*(0.1 * torch.randn(size, rank, generator=generator) for size in (rows, columns)))
    edit = Edit(changes, {"editor": "random"})
    edit.save(tmp_path / "edit.safetensors")
    code, out, err = program("--out", tmp_path / "edit.gguf", "--format", "gguf-lora")
    assert (code, err) == (0, "") and "rank 12, stored as 16; relative error 0" in out
    reader = gguf.GGUFReader(str(tmp_path / "edit.gguf"))
    names = ("general.type", "general.architecture", "adapter.type")
    text = {name: bytes(reader.fields[name].parts[-1]).decode() for name in names}
    assert text == {"general.type": "adapter", "general.architecture": "gpt2", "adapter.type": "lora"}
    alpha = float(reader.fields["adapter.lora.alpha"].parts[-1][0])
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    assert len(tensors) == 4
    for name, delta in edit.deltas().items():
        stored = f"blk.{name.split('.')[2]}.ffn_down.weight"
        down, up = tensors[f"{stored}.lora_a"], tensors[f"{stored}.lora_b"]
        assert torch.allclose(alpha / len(down) * up @ down, delta.T, atol=1e-6)  # GPT-2 has [d_in, d_out], GGUF the other way


@pytest.mark.parametrize("name, message", [
    ("transformer.h.2.attn.c_attn.weight", "llama.cpp may store its rows in another order"),
    ("transformer.h.2.mlp.c_proj.bias", "changes its bias, which a LoRA adapter of llama.cpp can't hold"),
])
def test_what_a_lora_of_llama_cpp_cannot_hold(program, tiny_gpt2, tmp_path, name, message):
    pytest.importorskip("gguf")
    Edit({name: Dense(torch.ones_like(tiny_gpt2[0].get_parameter(name)))}).save(tmp_path / "edit.safetensors")
    code, _, err = program("--out", tmp_path / "edit.gguf", "--format", "gguf-lora")
    assert code == 2 and message in err and not (tmp_path / "edit.gguf").exists()
