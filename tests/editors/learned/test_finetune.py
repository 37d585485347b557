"""FT on residuals: the published steps, and their end."""

import pytest
import torch

from common.errors import UserError
from editors.learned.finetune import FineTune
from tests.conftest import relative
from tests.editors.learned.conftest import arrays, batch, check_logits, learned_model

RUNS = ["gpt2-tiny/lr0.001", "t5-tiny/lr0.002", "bert-tiny/lr0.001", "bart-tiny/lr0.001", "gpt2-tiny/lr5e-06"]


@pytest.mark.parametrize("start", RUNS)
def test_golden(start):
    z, about = arrays("ft_residuals")
    for name, run in about["runs"].items():
        if not name.startswith(start):
            continue
        model, one = learned_model(run["model"]), batch(about["batches"][run["model"]]["edit_inner"])
        alg = FineTune(
            model,
            about["inner_params"][run["model"]],
            {
                "edit_lr": run["lr"],
                "max_edit_steps": run["max_edit_steps"],
                "grad_clip": run["grad_clip"],
                "legacy_off_by_one": True,
            },
        )
        edited, info = alg.edit(one)
        assert len(info["losses"]) == run["evaluations"], name
        assert info["losses"] == pytest.approx(run["nll_per_evaluation"], rel=1e-3 if run["max_edit_steps"] > 4 else 5e-5)
        for i, inner in enumerate(alg.inner):
            residual = edited.weight(inner) - model.get_parameter(inner)
            assert residual.norm().item() == pytest.approx(run["residual_norms"][i], rel=2e-3 if run["lr"] < 1e-4 else 1e-4)
            if f"{name}/residual/{i}" in z and run["lr"] > 1e-4:
                assert relative(residual, z[f"{name}/residual/{i}"]) < 1e-4, name
        check_logits(
            edited(batch(about["batches"][run["model"]]["edit_outer"])),
            z,
            f"{name}/logits_edited/edit_outer",
            1e-3 if run["max_edit_steps"] > 4 else 1e-4,
        )


def test_locality():
    z, about = arrays("ft_residuals")
    run = about["locality_run"]
    one = batch(about["batches"]["gpt2-tiny"]["edit_inner"])
    alg = FineTune(
        learned_model("gpt2-tiny"),
        about["inner_params"]["gpt2-tiny"],
        {
            "edit_lr": run["lr"],
            "max_edit_steps": run["max_edit_steps"],
            "cedit": run["cedit"],
            "locality": True,
            "legacy_off_by_one": True,
        },
    )
    with pytest.raises(UserError, match="unrelated inputs"):
        alg.edit(one)
    drawn = []

    def draw():
        drawn.append(1)
        return batch(run["loc"])

    alg.local = draw
    edited, info = alg.edit(one)
    assert info["losses"] == pytest.approx([nll for _, nll, _, _ in run["trace"]], rel=5e-5) and len(drawn) == 3
    for i in (0, 1):
        assert relative(edited.weight(alg.inner[i]) - alg.model.get_parameter(alg.inner[i]), z[f"locality/residual/{i}"]) < 1e-4
    fixed = FineTune(alg.model, alg.inner, {"edit_lr": 1e-3, "max_edit_steps": 4, "locality": True, "oracle": False})
    fixed.local, drawn = draw, drawn[:0]
    fixed.edit(one)
    assert len(drawn) <= 1


def build(**options):
    _, about = arrays("ft_residuals")
    one = batch(about["batches"]["gpt2-tiny"]["edit_inner"])
    return FineTune(learned_model("gpt2-tiny"), about["inner_params"]["gpt2-tiny"], {"edit_lr": 1e-3, **options}), one


def test_no_step_is_lost():
    one_step, one = build(max_edit_steps=1)
    edited, info = one_step.edit(one)
    two_published, _ = build(max_edit_steps=2, legacy_off_by_one=True)
    assert all(torch.equal(edited.weight(n), two_published.edit(one)[0].weight(n)) for n in one_step.inner)
    assert len(info["losses"]) == 1


@pytest.mark.parametrize("rank", [None, 2])
def test_edits_are_learned_and_accumulate(rank):
    torch.manual_seed(0)
    alg, one = build(max_edit_steps=60, rank=rank, edit_lr=1e-2)
    edited, info = alg.edit(one)
    assert alg.score(edited(one), one).acc == 1 and len(info["losses"]) < 60
    if rank:
        residual = edited.weight(alg.inner[0]) - alg.weight(alg.inner[0])
        assert torch.linalg.matrix_rank(residual, rtol=1e-4) <= rank
    again, info = edited.edit(one)
    assert len(info["losses"]) == 1 and all(torch.equal(again.weight(n), edited.weight(n)) for n in alg.inner)


def test_bad_options():
    for options, message in (
        ({"opt": "Sgdx"}, "torch.optim"),
        ({"rank": 0}, "rank"),
        ({"max_edit_steps": 0}, "max_edit_steps"),
        ({"time_limit": 0}, "time_limit"),
        ({"time_limit": -1.0}, "time_limit"),
        ({"opt": "LBFGS"}, "ft.opt: LBFGS can't take a step"),
    ):
        with pytest.raises(UserError, match=message):
            build(**options)
    assert len(build(time_limit=1e-9)[0].edit(build()[1])[1]["losses"]) == 1


@pytest.mark.parametrize("steps", [1, 5])
def test_numbers_that_are_not_finite_stop(steps):
    alg, one = build(edit_lr=1e38, max_edit_steps=steps)
    with pytest.raises(UserError, match="fine-tuning: .* not finite|fine-tuning: the loss is nan"):
        alg.edit(one)
