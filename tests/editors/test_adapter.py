"""Edits as LoRA adapters: the same logits as the edited model, whatever loads them."""

import json

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file

from common.errors import UserError
from editors import Dense, Edit, LowRank
from editors.adapter import RANKS, factors
from editors.core.modules import get_module
from editors.core.sites import find_sites, weight_of
from tests.models import ARCHITECTURES, tiny_model

IDS = torch.arange(3, 40)[None]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def random_edit(model, ranks=(3, 1), scale=0.05, dense=False):
    """Changes of the down-projections of the first blocks, of the given ranks (dense: without factors)."""
    generator, changes, sites = torch.Generator().manual_seed(0), {}, find_sites(model)
    for layer, rank in enumerate(ranks):
        name, weight, _ = weight_of(model, sites, layer)
        left, right = (scale * torch.randn(size, rank, generator=generator) for size in weight.shape)
        changes[name] = Dense(left @ right.T) if dense else LowRank(left, right)
    return Edit(changes, {"editor": "random"})


def same_by_peft(model, edit, folder, tolerance=1e-5):
    """Whether peft's model has the logits of the edited one, which differ from the unedited one's; and also after merging."""
    unedited = logits(model)
    with edit.applied(model):
        expected = logits(model)
    assert (expected - unedited).abs().max() > 1e-3
    loaded = PeftModel.from_pretrained(model, folder)
    beside = logits(loaded)
    with loaded.disable_adapter():
        with_it_off = logits(loaded)
    merged = logits(loaded.merge_and_unload())
    size = expected.abs().max()
    assert torch.equal(with_it_off, unedited)
    return all((output - expected).abs().max() < tolerance * max(1.0, size) for output in (beside, merged))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_peft_gives_the_edited_logits(arch, tmp_path):
    model = tiny_model(arch)
    edit = random_edit(model)
    loras = edit.save_adapter(tmp_path / "adapter", model)
    assert sorted(lora.rank for lora in loras.values()) == [1, 8] and all(lora.error == 0 for lora in loras.values())
    assert same_by_peft(model, edit, tmp_path / "adapter")


@pytest.mark.parametrize("arch", ["gpt2", "llama"])  # Conv1D with a bias, Linear without
def test_biases_of_other_modules_and_of_the_same(arch, tmp_path):
    model = tiny_model(arch)
    sites = find_sites(model)
    edit, changes = random_edit(model), {}
    names = [sites.name("attn_out", 1), sites.name("attn_out", 2)] + ([sites.name("down_proj", 0)] if arch == "gpt2" else [])
    for number, module in enumerate(names):
        changes[f"{module}.bias"] = Dense(0.1 * torch.randn(32, generator=torch.Generator().manual_seed(number)))
    edit = Edit({**edit.changes, **changes})
    with pytest.warns(UserWarning, match="biases: peft applies them .*, vLLM does not"):
        edit.save_adapter(tmp_path / "adapter", model)
    if arch == "gpt2":
        assert same_by_peft(model, edit, tmp_path / "adapter")
        return
    unedited = PeftModel.from_pretrained(tiny_model(arch), tmp_path / "adapter")  # a bias where the model has none
    for name, change in changes.items():
        get_module(model, name.removesuffix(".bias")).bias = torch.nn.Parameter(change.delta)
    with Edit({name: change for name, change in edit.changes.items() if name not in changes}).applied(model):
        assert (logits(unedited) - logits(model)).abs().max() < 1e-5


def test_a_dense_change_is_exact_at_its_rank(tmp_path):
    model = tiny_model("gpt2")
    edit = random_edit(model, ranks=(5, 20), dense=True)
    loras = edit.save_adapter(tmp_path / "adapter", model)
    assert [(lora.exact_rank, lora.rank) for lora in loras.values()] == [(5, 8), (20, 32)]
    assert same_by_peft(model, edit, tmp_path / "adapter")


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("dense", [False, True])
def test_above_the_limit_the_best_adapter_and_its_error(arch, dense):
    """Eckart-Young: the error is that of the singular values left out, and the stated one is the true one."""
    model = tiny_model(arch)
    edit = random_edit(model, ranks=(20,), dense=dense)
    (name, delta), = edit.deltas().items()
    lora, = factors(edit.changes, model, max_rank=8).values()
    product = lora.up @ lora.down
    product = product.T if arch == "gpt2" else product
    values = torch.linalg.svdvals(delta.double())
    best = float(values[8:].norm() / values.norm())
    assert (lora.exact_rank, lora.rank) == (20, 8) and best > 0.1
    assert lora.error == pytest.approx(best, rel=1e-6)
    assert float((product - delta).norm() / delta.norm()) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("dense", [True, False])
def test_changes_that_are_not_finite_are_refused(dense, tmp_path):
    model = tiny_model("llama")
    edit = random_edit(model, dense=dense)
    name, change = next(iter(edit.changes.items()))
    (change.delta if dense else change.right)[0, 0] = torch.nan
    with pytest.raises(UserError, match=f"the change of {name} is not finite"):
        edit.save_adapter(tmp_path / "adapter", model)
    assert not list(tmp_path.iterdir())


def test_a_change_of_nothing_is_warned_of(tmp_path):
    model = tiny_model("llama")
    edit = Edit({name: Dense(torch.zeros_like(change.dense())) for name, change in random_edit(model).changes.items()})
    with pytest.warns(UserWarning, match="changes nothing in"):
        edit.save_adapter(tmp_path / "adapter", model)


def test_ranks_are_those_that_vllm_takes():
    model = tiny_model("gpt2", n_embd=64)
    name = "transformer.h.0.mlp.c_proj.weight"
    for rank, stored in ((1, 1), (2, 8), (8, 8), (9, 16), (17, 32), (33, 64)):
        change = LowRank(torch.randn(256, rank), torch.randn(64, rank))
        lora, = factors({name: change}, model).values()
        assert lora.rank == stored and stored in RANKS and lora.exact_rank == rank
        assert torch.allclose((lora.up @ lora.down).T, change.dense(), atol=1e-5)
    big = tiny_model("gpt2", n_embd=32, n_inner=900, n_layer=1)
    change = LowRank(torch.randn(900, 600), torch.randn(32, 600))
    lora, = factors({name: change}, big, max_rank=None).values()
    assert lora.rank == 600


def test_what_is_written(tmp_path):
    model = tiny_model("gpt2")
    model.config._name_or_path = "owner/model"
    random_edit(model).save_adapter(tmp_path / "adapter", model)
    names = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors", "edit.json"]
    config = PeftConfig.from_pretrained(tmp_path / "adapter")
    assert config.base_model_name_or_path == "owner/model" and config.fan_in_fan_out and config.r == config.lora_alpha == 8
    assert config.rank_pattern == config.alpha_pattern == {"transformer.h.1.mlp.c_proj": 1}
    about = json.loads((tmp_path / "adapter" / "edit.json").read_text())
    assert about["info"] == {"editor": "random"}
    assert about["modules"]["transformer.h.0.mlp.c_proj"] == {"exact_rank": 3, "rank": 8, "error": 0.0}
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32} and len(tensors) == 4


@pytest.mark.parametrize(("name", "shape", "message"), [
    ("transformer.wte.weight", (320, 32), r"\(of Embedding\).*linear maps alone; export a checkpoint"),
    ("transformer.h.0.ln_1.weight", (32,), r"\(of LayerNorm\).*linear maps alone; export a checkpoint"),
    ("lm_head.weight", (320, 32), "is shared by several modules"),
    ("transformer.h.0.mlp.c_proj.weight", (32, 128), "has shape .*another model"),
    ("transformer.h.0.mlp.c_proj.bias", (31,), "has shape .*another model"),
    ("transformer.h.9.mlp.c_proj.weight", (128, 32), "no module .*nearest"),
])
def test_what_no_adapter_can_hold(tmp_path, name, shape, message):
    model = tiny_model("gpt2")
    with pytest.raises(UserError, match=message):
        Edit({name: Dense(torch.ones(shape))}).save_adapter(tmp_path / "adapter", model)
    assert list(tmp_path.iterdir()) == []


def test_misuse(tmp_path):
    model = tiny_model("gpt2")
    with pytest.raises(UserError, match="max_rank 7: give one of 1, 8, 16"):
        random_edit(model).save_adapter(tmp_path / "adapter", model, max_rank=7)
    with pytest.raises(UserError, match="changes no weight"):
        Edit({}).save_adapter(tmp_path / "adapter", model)
    (tmp_path / "adapter").mkdir()
    with pytest.raises(UserError, match="is there already"):
        random_edit(model).save_adapter(tmp_path / "adapter", model)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written there"):
        random_edit(model).save_adapter(tmp_path / "file" / "adapter", model)


@pytest.mark.parametrize(("dtype", "least", "most"), [
    (torch.float32, 0, 1e-5), (torch.bfloat16, 1e-3, 1.0), (torch.float16, 1e-4, 0.1), (torch.float64, 0, 1e-8)])
def test_the_loss_of_precision_is_told(dtype, least, most):
    model = tiny_model("llama").to(dtype)
    edit = random_edit(model)
    rounding = edit.rounding(model)
    before = {name: model.get_parameter(name).detach().clone() for name in rounding}
    with edit.applied(model):
        for name, delta in edit.deltas().items():
            wide = torch.promote_types(dtype, torch.float32)
            stored_delta = model.get_parameter(name).detach().to(wide) - before[name].to(wide)
            assert rounding[name] == pytest.approx(float((stored_delta - delta).norm() / delta.norm()), rel=1e-5)
            assert least <= rounding[name] < most


def test_an_adapter_on_16_bit_weights_keeps_what_rounding_takes(tmp_path):
    """Beside bfloat16 weights the factors stay float32: nearer to the exact edit than the edited weights are."""
    model = tiny_model("llama").to(torch.bfloat16)
    edit = random_edit(model, scale=0.02)
    edit.save_adapter(tmp_path / "adapter", model)
    exact = tiny_model("llama").to(torch.bfloat16).float()
    for name, delta in edit.deltas().items():
        exact.get_parameter(name).data += delta
    loaded = PeftModel.from_pretrained(model, tmp_path / "adapter")
    down = "model.layers.0.mlp.down_proj"
    x = torch.randn(64, 56, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = x.float() @ exact.get_parameter(f"{down}.weight").T
    output = loaded.base_model.model.get_submodule(down)(x).float()
    assert (output - expected).norm() / expected.norm() < 5e-3
