"""MEND: factors, statistics, networks and updates are the published ones, and the theorems behind them hold."""

import math

import pytest
import torch

from common.errors import UserError
from editors.learned.editable import forward
from editors.learned.factors import gradient_factors
from editors.learned.mend import MEND, MENDOptions
from editors.learned.mend_net import FactorEditor, IDMLP
from editors.learned.trainer import TrainConfig, Trainer
from tests.conftest import relative
from tests.editors.learned.conftest import arrays, batch, check_logits, episode, learned_model

MODELS = ["mend_gpt2", "mend_t5", "mend_bert"]
CONFIG = TrainConfig(cedit=0.1, cloc=1.0, accumulate_bs=1, train_base=False)


def load(alg, z, prefix, statistics=None):
    """Networks of a golden phase, with the statistics after another one."""
    state = alg.state()
    for name in state:
        short = name.removeprefix("mend.")
        for key in (f"{prefix}/{short}", f"{statistics}/stats_after/{short}"):
            if key in z:
                state[name] = torch.tensor(z[key])
    alg.load_state(state)


def build(about):
    options = {key: value for key, value in about["mend_config"].items() if key not in ("hidden_dim", "act")}
    return MEND(learned_model(about["model"]), about["inner_params"], options | {"edit_lr": about["edit_lr"]})


@pytest.mark.parametrize("name", MODELS)
def test_golden_phases(name, tmp_path):
    z, about = arrays(name)
    alg = build(about)
    assert {p: {"editor": key, "mode": mode} for p, (key, mode) in alg.place.items()} == about["editor_of_param"]
    trainer = Trainer(alg, CONFIG, None, None, tmp_path)
    weights = {"A_id": ("weights_id", None), "A_random_eval": ("weights_random", "A_eval")}
    for phase, expected in about["phases"].items():
        if phase in weights:
            load(alg, z, *weights[phase])
        one, training = episode(about["batches"][phase[0]]), expected["training"]
        if phase == "A_id":
            check_factors(alg, one, z, phase)
        alg.net.zero_grad()
        saved = {key: value.clone() for key, value in alg.state().items()}
        stats = trainer.step(one, training)
        for key in (
            "loss/edit",
            "loss/loc",
            "edit/acc",
            "edit/prob",
            "nll/pre",
            "nll/post",
            "acc/pre",
            "acc/post",
            "loss/total",
        ):
            assert stats[key] == pytest.approx(expected[key], rel=3e-4 if key == "loss/loc" else 2e-5, abs=1e-7), (phase, key)
        for key, value in alg.state().items():
            golden = f"{phase}/stats_after/{key.removeprefix('mend.')}"
            if golden in z:
                assert relative(value, z[golden]) < 1e-5, golden
        for key, p in alg.net.named_parameters():
            if f"{phase}/outer_grad/{key}" in z:
                golden = z[f"{phase}/outer_grad/{key}"]
                assert relative(p.grad, golden) < 2e-5 or abs(golden).max() < 1e-9, (phase, key)
        alg.load_state(saved)
        edited, _ = alg.train(training).edit(one.edit_inner)
        for i, inner in enumerate(alg.inner):
            if f"{phase}/delta_w/{i}" in z:
                delta = edited.weight(inner) - alg.model.get_parameter(inner)
                assert relative(delta.detach(), z[f"{phase}/delta_w/{i}"]) < 1e-4, (phase, inner)
        for part in ("edit_inner", "edit_outer", "loc"):
            if any(f"{phase}/logits_edited/{part}{end}" in z for end in ("", "/lse")):
                check_logits(edited(getattr(one, part)), z, f"{phase}/logits_edited/{part}")


def check_factors(alg, one, z, phase):
    for i, factors in enumerate(gradient_factors(alg, one.edit_inner).values()):
        assert relative(factors.u, z[f"{phase}/u/{i}"].reshape(factors.u.shape)) < 1e-5
        assert relative(factors.delta, z[f"{phase}/delta/{i}"].reshape(factors.delta.shape)) < 1e-5
        assert len(factors.kept().u) == len(z[f"{phase}/u_out/{i}"])


@pytest.mark.parametrize("name", ["mend_gpt2", "mend_t5"])
@pytest.mark.parametrize("detach", [True, False])
def test_a_second_edit_sees_the_first(name, detach):
    z, about = arrays(name)
    alg = build(about)
    load(alg, z, "weights_random", "A_random_train")
    first, second = (batch(about["batches"][x]["edit_inner"]) for x in "AB")
    edited, _ = alg.eval().edit(first, detach_history=detach)
    edited, _ = edited.edit(second, detach_history=detach)
    for x in "AB":
        check_logits(edited(batch(about["batches"][x]["edit_outer"])), z, f"seq_A_then_B/logits_edited/edit_outer_{x}", 3e-5)
    assert not alg.added and all(edited.weight(n).requires_grad != detach for n in alg.inner)


def test_gtn_with_descent_is_mend_with_the_other_sign():
    z, about = arrays("mend_t5")
    g, _ = arrays("gtn_t5")
    alg = build(about)
    load(alg, z, "weights_random", "B_id")
    negative = MEND(alg.model, alg.inner, {"descent": True, "rank": alg.options.rank})
    negative.load_state(alg.state() | {"edit_lrs": -alg.net.edit_lrs.detach()})
    one = episode(about["batches"]["A"])
    ours = [a.eval().edit(one.edit_inner, detach_history=True)[0] for a in (alg, negative)]
    assert all(torch.equal(ours[0].weight(n), ours[1].weight(n)) for n in alg.inner)
    check_logits(ours[1](one.edit_outer), g, "descent=True/logits_edited/edit_outer")
    delta = ours[1].weight(alg.inner[0]) - alg.model.get_parameter(alg.inner[0])
    assert relative(delta, g["descent=True/delta_w/0"]) < 1e-4


@pytest.mark.parametrize(
    "case",
    [
        "combined",
        "combined_xavier",
        "separate",
        "one_sided",
        "one_sided_rev",
        "x_only",
        "delta_only",
        "no_norm",
        "three_hidden_rank3",
        "rank_above_dim",
        "no_modes",
        "zero_hidden",
    ],
)
def test_editor_variants_are_the_published(case):
    z, about = arrays("mend_editor_variants")
    golden = about["cases"][case]
    options = MENDOptions.of({k: v for k, v in golden["config"].items() if k not in ("hidden_dim", "act")})
    editor = FactorEditor(*golden["dims"], options, golden["n_modes"])
    weights = {k.removeprefix(f"{case}/weights/"): torch.tensor(z[k]) for k in z.files if k.startswith(f"{case}/weights/")}
    assert weights.keys() == {name for name, _ in editor.named_parameters()}
    editor.load_state_dict(weights, strict=False)
    u, delta = (torch.tensor(z[k]).flatten(0, 1) for k in ("u", "delta"))
    if golden["factors_swapped"]:
        u, delta = delta, u
    mask = (u != 0).any(-1) & (delta != 0).any(-1)
    u, delta = u[mask], delta[mask]
    out = editor.train()(u, delta, golden["train_mode_index"])
    for ours, key in zip(out, ("u_out", "delta_out")):
        assert relative(ours.detach(), z[f"{case}/train/{key}"]) < 1e-5
    ((out[0] * torch.tensor(z[f"{case}/w_u"])).sum() + (out[1] * torch.tensor(z[f"{case}/w_delta"])).sum()).backward()
    for name, p in editor.named_parameters():
        assert relative(p.grad if p.grad is not None else torch.zeros_like(p), z[f"{case}/grad/{name}"]) < 2e-5, name
    for key in ("u_mean", "u_std", "v_mean", "v_std", "k"):
        if f"{case}/stats/{key}" in z and not torch.isnan(torch.tensor(z[f"{case}/stats/{key}"])).all():
            assert relative(getattr(editor, key), z[f"{case}/stats/{key}"]) < 1e-5
    out = editor.eval()(0.5 * u, 2 * delta, None if golden["n_modes"] is None else 0)
    for ours, key in zip(out, ("u_out", "delta_out")):
        assert relative(ours.detach(), z[f"{case}/eval_half_u_double_delta_mode0/{key}"]) < 1e-5


def sine(shape, k):
    return torch.sin(k * torch.arange(1, math.prod(shape) + 1, dtype=torch.float32)).reshape(shape)


def test_idmlp_by_hand():
    net = IDMLP(3, 1, 2, "id", 2)
    with torch.no_grad():
        for i, layer in enumerate(net.layers):
            layer.u.copy_(sine((3, 2), 0.3 + i))
            layer.v.copy_(sine((2, 3), 0.9 + i))
            layer.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
            layer.mode_scale.weight[1] = torch.tensor([1, 2, 0.5])
            layer.mode_shift.weight[1] = torch.tensor([0, -0.1, 0.2])
    x = torch.tensor([[1, -2, 0.5], [0, 1, -1]])
    expected = [
        [[3.845485, -1.895069, 2.359454], [0.155903, 1.037213, 0.269243]],
        [[3.866701, -1.890138, 1.841761], [0.302685, 1.0, 0.102128]],
    ]
    for mode in (0, 1):
        assert relative(net(x, mode).detach(), expected[mode]) < 1e-5


def test_statistics_by_hand():
    editor = FactorEditor(2, 3, MENDOptions(), None).train()
    u, v = sine((4, 2), 1), sine((4, 3), 0.5)
    v[2] = 0
    keep = (v != 0).any(-1)
    out = editor(u[keep], v[keep], None)
    assert editor.k.item() == 3
    for name, value in {
        "u_mean": [0.546526, 0.380618],
        "u_std": [0.363007, 0.985848],
        "v_mean": [0.143266, 0.244801, 0.286400],
        "v_std": [0.978425, 0.831940, 0.650734],
    }.items():
        assert relative(getattr(editor, name), value) < 3e-6
    assert relative(out[0].detach(), [[0.812505, 0.536269], [-1.116799, -1.153748], [0.304294, 0.617479]]) < 3e-6


def test_statistics_in_blocks_are_those_of_single_rows():
    torch.manual_seed(0)
    rows = torch.randn(50, 4) * 3 + 100, torch.randn(50, 2)
    one, many = (FactorEditor(4, 2, MENDOptions(rank=2), None) for _ in range(2))
    one.count(*rows)
    for i in range(50):
        many.count(rows[0][i : i + 1], rows[1][i : i + 1])
    assert all(relative(getattr(one, k), getattr(many, k)) < 1e-5 for k in ("u_mean", "u_std", "v_std", "k"))
    first = FactorEditor(4, 2, MENDOptions(rank=2), None)
    first.count(rows[0][:1], rows[1][:1])
    assert torch.equal(first.u_std, torch.ones(4))


@pytest.mark.parametrize("name", ["gpt2-tiny", "t5-tiny", "bart-tiny", "bert-tiny"])
def test_update_from_factors_is_that_of_the_full_gradient(name):
    """Conv1D and Linear, with every parameter of the model frozen, in parts of one row and in one pass."""
    _, about = arrays("ft_residuals")
    model, one = learned_model(name), batch(about["batches"][name]["edit_inner"])
    inner = about["inner_params"][name]
    alg = MEND(model, inner, {"norm": False, "edit_lr": 0.5})
    weights = {n: model.get_parameter(n).clone().requires_grad_() for n in inner}
    loss = alg.score(forward(model, weights, one), one).nll
    full = dict(zip(inner, torch.autograd.grad(loss, list(weights.values()))))
    for size in (128, 1):
        for n, factors in gradient_factors(alg, one, size=size).items():
            product = factors.u.T @ factors.delta
            product = product if product.shape == full[n].shape and "transformer" in n else product.T
            assert relative(product, full[n]) < 1e-5
    before = {n: p.clone() for n, p in model.named_parameters()}
    edited, _ = alg.edit(one)
    for n in inner:  # the identity network makes it the gradient step, upwards as published
        assert relative(edited.weight(n).detach() - before[n], 0.5 * full[n]) < 1e-5
    downwards, _ = MEND(model, inner, {"norm": False, "edit_lr": 0.5, "descent": True}).edit(one)
    assert all(torch.allclose(downwards.weight(n) - before[n], before[n] - edited.weight(n), atol=1e-6) for n in inner)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())


def test_counts_of_the_published_sizes():
    """(n_hidden + 1)(2 D r + D + 2 n D) for each shape."""

    def count(shapes, n):
        with torch.device("meta"):
            return sum(p.numel() for d_in, d_out in shapes for p in FactorEditor(d_in, d_out, MENDOptions(), n).parameters())

    assert count([(1600, 6400), (6400, 1600)], 3) == 123_104_000
    assert count([(4096, 16384), (16384, 4096)], 3) == 315_146_240
    assert count([(1024, 4096), (4096, 1024)], 4) == 78_827_520
    assert count([(768, 3072), (3072, 768)], 3) == 59_089_920
    assert count([(768, 3072), (3072, 768)], 4) == 59_120_640
    assert count([(512, 2048), (2048, 512)], 4) == 39_413_760


def test_weights_without_gradient_stay_and_untrained_editors_are_refused():
    model = learned_model("gpt2-tiny")
    alg = MEND(model, ["transformer.h.2.mlp.c_proj.weight"], {"rank": 4})
    one = {
        "input_ids": torch.tensor([[5, 6, 7]]),
        "attention_mask": torch.ones(1, 3, dtype=torch.long),
        "labels": torch.tensor([[-100, -100, 7]]),
    }
    with pytest.raises(UserError, match="never been trained"):
        alg.eval().edit(one)
    with pytest.raises(UserError, match="no label is scored"):
        alg.train().edit(one | {"labels": torch.full((1, 3), -100)})
    alg.train().edit(one)
    model.eval()
    assert alg.net.mend["(128, 32)"].k.item() == 1  # one row: std 1 until there are two


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mlp_class": "MLP"}, "IDMLP"),
        ({"init": "zero"}, "init"),
        ({"one_sided": True}, "combine"),
        ({"rnak": 4}, "rank"),
        ({"combine": False, "x_only": True, "delta_only": True}, "exclude"),
        ({"rank": 0}, "rank"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        MEND(learned_model("gpt2-tiny"), ["transformer.h.2.mlp.c_proj.weight"], options)


@pytest.mark.parametrize(
    "names, message",
    [
        (["transformer.h.9.mlp.c_proj.weight"], "no parameter transformer.h.9"),
        ([], "at least one"),
        (["transformer.h.2.mlp.c_proj.bias"], "no matrix"),
        (["transformer.wte.weight"], "linear map"),
    ],
)
def test_bad_parameter_names(names, message):
    with pytest.raises(UserError, match=message) as error:
        MEND(learned_model("gpt2-tiny"), names, {})
    assert "\n" not in str(error.value)
