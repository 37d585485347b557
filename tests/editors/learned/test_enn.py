"""ENN: inner steps and outer gradients of first and second order are the published ones."""

import pytest
import torch

from common.errors import UserError
from editors.learned import checkpoint
from editors.learned.enn import ENN
from editors.learned.trainer import TrainConfig, Trainer
from tests.conftest import relative
from tests.editors.learned.conftest import arrays, check_logits, episode, learned_model


def build(about, **options):
    alg = ENN(learned_model("gpt2-tiny", "eager"), about["inner_params"], options)
    with torch.no_grad():
        rates = dict(zip(about["lr_order"], about["edit_lrs"]))
        alg.net.edit_lrs.copy_(torch.tensor([rates[name] for name in about["inner_params"]]))
    return alg


@pytest.mark.parametrize("run", ["A_first", "A_second", "A_second_2steps", "with_base"])
def test_golden(run, tmp_path):
    z, about = arrays("enn_gpt2")
    expected = about["runs"][run]
    alg = build(about, first_order=run in ("A_first", "with_base"), n_edit_steps=2 if "2steps" in run else 1)
    original = None
    if run == "with_base":
        import copy

        original = copy.deepcopy(alg.model)
        original.transformer.ln_f.weight.data *= 1.25
    one = episode(about["batches"]["A"])
    trainer = Trainer(alg, TrainConfig(accumulate_bs=1, train_base=original is not None), None, None, tmp_path, original)
    stats = trainer.step(one, training=True)
    for key in ("loss/edit", "loss/loc", "edit/acc", "nll/pre", "nll/post", "loss/total", *(["loss/base"] if original else [])):
        assert stats[key] == pytest.approx(expected[key], rel=3e-4 if key == "loss/loc" else 2e-5, abs=1e-7), key
    order = [about["inner_params"].index(name) for name in about["lr_order"]]
    assert relative(alg.net.edit_lrs.grad[order], z[f"{run}/outer_grad/edit_lrs"]) < 5e-5
    grads = {f"{run}/outer_grad/model.{name}": p.grad for name, p in alg.model.named_parameters()}
    shared = [key for key in grads if key in z]
    assert shared and all(relative(grads[key], z[key]) < 5e-5 for key in shared)
    for training in (True, False):  # with graph, and from factors
        with torch.set_grad_enabled(training):
            edited, _ = alg.train(training).edit(one.edit_inner)
        for i, inner in enumerate(alg.inner):
            if f"{run}/delta_w/{i}" in z:
                assert (
                    relative((edited.weight(inner) - alg.model.get_parameter(inner)).detach(), z[f"{run}/delta_w/{i}"]) < 1e-4
                )
        for part in ("edit_inner", "edit_outer", "loc"):
            check_logits(edited(getattr(one, part)), z, f"{run}/logits_edited/{part}")


def test_second_order_needs_eager_attention():
    _, about = arrays("enn_gpt2")
    with pytest.raises(UserError, match="eager"):
        ENN(learned_model("gpt2-tiny"), about["inner_params"], {})
    ENN(learned_model("gpt2-tiny"), about["inner_params"], {"first_order": True})


def test_edits_accumulate_and_the_given_model_stays():
    _, about = arrays("enn_gpt2")
    alg, one = build(about, first_order=True), episode(about["batches"]["A"])
    before = {name: p.clone() for name, p in learned_model("gpt2-tiny", "eager").named_parameters()}
    for training in (True, False):
        with torch.set_grad_enabled(training):
            once, _ = alg.edit(one.edit_inner)
            twice, _ = once.edit(one.edit_inner)
            detached, _ = once.edit(one.edit_inner, detach_history=True)
        assert all(not torch.equal(twice.weight(n), once.weight(n)) for n in alg.inner)
        assert all(torch.allclose(twice.weight(n), detached.weight(n)) for n in alg.inner)
        assert alg.score(twice(one.edit_inner), one.edit_inner).nll < alg.score(once(one.edit_inner), one.edit_inner).nll
    assert all(torch.equal(p, before[name]) for name, p in learned_model("gpt2-tiny", "eager").named_parameters())
    assert alg.outer_groups()["lr_lr"] == [alg.net.edit_lrs]


def test_upper_blocks_only():
    _, about = arrays("enn_gpt2")
    alg = build(about, first_order=True, no_grad_layers=2)
    trained = {name for name, p in alg.model.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("transformer.h.2.") for name in trained)
    edited, _ = alg.edit(episode(about["batches"]["A"]).edit_inner)  # a weight of block 1 is edited, too
    assert edited.added.keys() == set(alg.inner)
    with pytest.raises(UserError, match="no_grad_layers"):
        build(about, first_order=True, no_grad_layers=7)


def test_checkpoint_keeps_the_trained_model(tmp_path):
    _, about = arrays("enn_gpt2")
    alg = build(about, first_order=True)
    with torch.no_grad():
        alg.model.transformer.wte.weight.add_(0.5)
    checkpoint.save(tmp_path / "enn.safetensors", alg, {})
    again = build(about, first_order=True)
    checkpoint.load(tmp_path / "enn.safetensors", again)
    assert torch.equal(again.model.transformer.wte.weight, alg.model.transformer.wte.weight)
    assert again.model.lm_head.weight is again.model.transformer.wte.weight
