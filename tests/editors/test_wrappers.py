"""An edit has the plain model's names, whatever the model was wrapped in, and applies to every form of it."""


import pytest
import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

import editors
from editors import Edit
from editors.core.fingerprint import model_fingerprint
from editors.core.wrappers import plain_name, plain_parameters, unwrapped
from tests.models import tiny_model, tiny_tokenizer

REQUESTS = [{"prompt": "{} plays", "subject": "Orla Venn", "target_new": {"str": "chess"}}]
HPARAMS = {
    "FT": {"layers": [1], "num_steps": 2, "lr": 1e-3, "weight_decay": 0, "norm_constraint": False},
    "ROME": {"layers": [1], "fact_token": "subject_last", "v_num_grad_steps": 3, "v_lr": 0.5, "v_loss_layer": 3,
             "v_weight_decay": 0.5, "clamp_norm_factor": 4, "kl_factor": 0.0625, "mom2_adjustment": False,
             "mom2_dataset": "x", "mom2_n_samples": 1, "context_template_length_params": [[5, 1]]},
}
NAME = {"llama": "model.layers.1.mlp.down_proj.weight", "gpt2": "transformer.h.1.mlp.c_proj.weight"}


def lora(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=True)
    return peft.get_peft_model(model, config).eval()


@pytest.fixture
def ddp(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29577")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    yield DistributedDataParallel
    torch.distributed.destroy_process_group()


def wrap(form, model, request):
    if form == "ddp":
        return request.getfixturevalue("ddp")(model)
    return {"lora": lora, "compiled": torch.compile, "parallel": DataParallel,
            "compiled lora": lambda model: torch.compile(lora(model))}[form](model)


@pytest.mark.parametrize("form", ["lora", "compiled", "parallel", "ddp", "compiled lora"])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("alg", ["FT", "ROME"])
def test_edits_of_wrapped_models(form, arch, alg, tmp_path, request):
    editor, tok = editors.load(alg, HPARAMS[alg]), tiny_tokenizer()
    plain = tiny_model(arch)
    reference = editor.edit(plain, tok, REQUESTS, [["{}"]] if alg == "ROME" else None).deltas()
    wrapped = wrap(form, tiny_model(arch), request)
    edit = editor.edit(wrapped, tok, REQUESTS, [["{}"]] if alg == "ROME" else None)
    deltas = edit.deltas()
    assert deltas.keys() == reference.keys() and NAME[arch] in deltas
    for name, delta in deltas.items():
        torch.testing.assert_close(delta, reference[name], rtol=1e-4, atol=1e-6)

    before = {name: p.detach().clone() for name, p in wrapped.named_parameters()}
    with edit.applied(wrapped):
        changed = [name for name, p in wrapped.named_parameters() if not torch.equal(p, before[name])]
        assert {plain_name(n).split("layers.")[-1].split("h.")[-1] for n in changed} == {
            n.split("layers.")[-1].split("h.")[-1] for n in deltas}
    assert all(torch.equal(p, before[name]) for name, p in wrapped.named_parameters())

    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    with loaded.applied(plain), edit.applied(wrapped):
        ids = torch.tensor([[3, 50, 17, 200]])
        torch.testing.assert_close(plain(ids).logits, unwrapped(wrapped)(ids).logits)
    if not (alg == "FT" and arch == "gpt2"):
        edit.save_adapter(tmp_path / "from_wrapped", wrapped)
        edit.save_adapter(tmp_path / "from_plain", plain)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            assert (tmp_path / "from_wrapped" / name).read_bytes() == (tmp_path / "from_plain" / name).read_bytes()


def test_names_and_fingerprints():
    model = tiny_model("llama")
    names, fingerprint = [name for name, _ in model.named_parameters()], model_fingerprint(model)
    assert model_fingerprint(torch.compile(model)) == fingerprint == model_fingerprint(DataParallel(model))
    assert list(plain_parameters(lora(model))) == names == list(plain_parameters(torch.compile(model)))


def test_modules_saved_whole_beside_an_adapter():
    peft, model, tok = pytest.importorskip("peft"), tiny_model("llama"), tiny_tokenizer()
    names = [name for name, _ in model.named_parameters()]
    reference = editors.load("FT", HPARAMS["FT"]).edit(model, tok, REQUESTS)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head", "down_proj"])
    wrapped = peft.get_peft_model(model, config).eval()
    saved = unwrapped(wrapped).model.layers[1].mlp.down_proj
    assert list(plain_parameters(wrapped)) == names
    assert plain_parameters(wrapped)[NAME["llama"]] is saved.modules_to_save["default"].weight
    edit = editors.load("FT", HPARAMS["FT"]).edit(wrapped, tok, REQUESTS)
    torch.testing.assert_close(edit.deltas(), reference.deltas(), rtol=1e-4, atol=1e-6)
    with edit.applied(wrapped):
        assert not torch.equal(saved.modules_to_save["default"].weight, saved.original_module.weight)
    with wrapped.disable_adapter():
        assert plain_parameters(wrapped)[NAME["llama"]] is saved.original_module.weight


def test_a_sequence_of_edits_of_a_wrapped_model(tmp_path):
    model, tok = lora(tiny_model("llama")), tiny_tokenizer()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sequence = editors.EditSequence(editors.load("FT", HPARAMS["FT"]), model, tok)
    sequence.edit(REQUESTS)
    assert list(sequence.distances()) == [NAME["llama"]]
    sequence.save(tmp_path / "sequence.safetensors", {})
    sequence.revert()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    again = editors.EditSequence(editors.load("FT", HPARAMS["FT"]), model, tok)
    again.restore(tmp_path / "sequence.safetensors", {})
    assert again.batches == 1 and again.distances()[NAME["llama"]]["distance_from_original"] > 0
