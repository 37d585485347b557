"""The trainer: optimiser steps, side-by-side episodes, validation, checkpoints that go on bit by bit, and what stops it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from common.errors import UserError
from editors.learned import checkpoint, optimisers
from editors.learned.algorithms import algorithm
from editors.learned.averages import Averages
from editors.learned.episode import joined
from editors.learned.run_log import LOG
from editors.learned.trainer import BEST, LAST, TrainConfig, Trainer, _flat
from tests.conftest import relative
from tests.editors.learned.trained import INNER, OPTIONS, TEXTS, Texts, texts_episode


def build(name, model, tok, folder, seed=0, options=None, **config):
    torch.manual_seed(seed)
    alg = algorithm(name).build(model, INNER, {**OPTIONS.get(name, {}), **(options or {})})
    config = TrainConfig(
        **{"lr": 1e-3, "lr_lr": 1e-2, "accumulate_bs": 2, "train_base": False, "log_interval": 2, "val_interval": 4, **config}
    )
    trainer = Trainer(alg, config, Texts(tok), Texts(tok), folder, original=model, progress=False)
    return trainer


@pytest.fixture(scope="module")
def frozen(tiny_gpt2):
    import copy

    return copy.deepcopy(tiny_gpt2[0]).requires_grad_(False), tiny_gpt2[1]


@pytest.mark.parametrize(
    "name, options",
    [
        ("efk", {}),
        ("enn", {"first_order": False}),
        ("mend", {"norm": False, "edit_lr": 0.1}),
        ("mend", {}),
        ("mend", {"shared": False}),
    ],
)
def test_side_by_side_is_one_after_another(frozen, tmp_path, name, options):
    """The same reported numbers and the same gradients, up to rounding."""
    model, tok = frozen
    trainer = build(name, model, tok, tmp_path, options=options, accumulate_bs=4, train_base=name == "enn")
    episodes = [texts_episode(tok, i) for i in range(4)]
    alone = [trainer.step(episode, training=True) for episode in episodes]
    single = [None if p.grad is None else p.grad.clone() for p in trainer.alg.outer_parameters()]
    moments = {key: buffer.clone() for key, buffer in trainer.alg.net.named_buffers() if name == "mend"}
    for key, buffer in trainer.alg.net.named_buffers():
        if key in moments:
            buffer.fill_(float("nan"))
    for p in trainer.alg.outer_parameters():
        p.grad = None
    together = trainer.step(joined(episodes), training=True)
    keys = "loss/edit", "loss/loc", "loss/total", "edit/acc", "edit/log_prob", "edit/prob", "token_acc/pre", "token_acc/post"
    for key in keys:
        assert together[key] == pytest.approx(sum(stats[key] for stats in alone) / 4, rel=1e-4, abs=1e-6), key
    for p, grad in zip(trainer.alg.outer_parameters(), single):
        assert (p.grad is None) == (grad is None)
        if grad is not None and grad.abs().max() > 1e-7:
            assert relative(p.grad, grad) < 1e-3
    for key, buffer in trainer.alg.net.named_buffers():
        assert key not in moments or relative(buffer, moments[key]) < 1e-5, key


def test_some_rows_tell_how_many_they_are(frozen, tmp_path):
    """Success on rows of one kind weighs by their number, which is not reported itself."""
    model, tok = frozen
    trainer, averages = build("efk", model, tok, tmp_path), Averages()
    items = [SimpleNamespace(flip=i > 0, hard=()) for i in range(3)]
    one, two, three = (replace(texts_episode(tok, i), extras={"items": (item,)}) for i, item in enumerate(items))
    for episode, flipped in ((one, 0), (joined([two, three]), 2)):
        stats = trainer.step(episode, training=False)
        assert stats.get("n_rows/edit/acc_flip", 0) == flipped
        averages.add(stats, len(episode.pos_pairs), episode.segments)
    assert "edit/acc_flip" in averages.means() and not any(key.startswith("n_rows") for key in averages.means())


def test_episodes_of_different_sizes_are_not_joined(frozen):
    _, tok = frozen
    one, two = texts_episode(tok, 0), texts_episode(tok, 1)

    both = joined([one, two])
    assert both.segments == 2 and both.pos_pairs.tolist() == [[0, 0], [1, 1]]
    double = {name: torch.cat([rows, rows]) for name, rows in one.loc.items()}
    assert joined([one, replace(two, loc=double)]) is None and joined([one, replace(two, edit_outer=None)]) is None


def test_step_sizes_have_their_own_rate(frozen, tmp_path):
    """With a gradient of 1 Adam moves a parameter by its rate."""
    model, tok = frozen
    for legacy, moved in ((False, 1e-2), (True, 1e-3)):
        trainer = build("mend", model, tok, tmp_path, lr_lr_without_effect=legacy)
        rates = trainer.alg.net.edit_lrs
        before = rates.detach().clone()
        for p in trainer.alg.outer_parameters():
            p.grad = torch.full_like(p, 1e-3)
        trainer._optimise()
        assert torch.allclose(before - rates, torch.full_like(rates, moved), rtol=1e-3)


def test_the_first_optimiser_step(frozen, tmp_path):
    model, tok = frozen
    for legacy, steps in ((False, [2, 4, 6]), (True, [3, 5])):
        trainer = build("efk", model, tok, tmp_path, parallel=3, accumulate_first_step_plus_one=legacy, max_iters=6, save=False)
        steps_at = []
        trainer._optimise = lambda trainer=trainer, steps_at=steps_at: steps_at.append(trainer.iteration) or {"grad": 0.0}
        trainer.run()
        assert steps_at == steps


@pytest.mark.parametrize("name, config", [("mend", {}), ("efk", {}), ("enn", {}), ("efk", {"opt": "Muon"})], ids=str)
def test_a_killed_run_goes_on_bit_by_bit(frozen, tmp_path, name, config):
    model, tok = frozen
    whole = build(name, model, tok, tmp_path / "whole", max_iters=10, **config)
    whole.run()
    part = build(name, model, tok, tmp_path / "part", max_iters=8, **config)
    part._loop()
    part.log({"loss": 1.0})  # logged after the checkpoint, before the kill: goes when the run goes on
    with open(tmp_path / "part" / LOG, "a") as file:
        file.write(json.dumps({"step": 9}) + '\n{"step": 10, "lo')
    again = build(name, model, tok, tmp_path / "part", seed=7, max_iters=10, **config)
    again.restore(tmp_path / "part" / LAST)
    assert again.iteration == 8
    again.run()
    for key, tensor in whole.alg.state().items():
        assert torch.equal(tensor, again.alg.state()[key]), key
    assert whole.early.state() == again.early.state()
    lines = [json.loads(line) for line in (tmp_path / "part" / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines) and lines[-1]["step"] == 10


def test_muon_steps_matrices_and_adam_the_rest():
    """The same as both of torch.optim side by side; a matrix of one row is for Adam."""
    def net():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Embedding(7, 6), torch.nn.Linear(6, 4), torch.nn.Linear(4, 1))

    ours, apart = net(), net()
    one = optimisers.build("Muon", [{"params": list(ours.parameters()), "lr": 0.02}], ours)
    muon = torch.optim.Muon([apart[1].weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.Adam([apart[0].weight, apart[1].bias, *apart[2].parameters()], lr=0.02)
    for step in range(4):
        for model, steppers in ((ours, [one]), (apart, [muon, adam])):
            model(torch.tensor([1, 2, 5])).square().sum().backward()
            for stepper in steppers:
                for group in stepper.param_groups:
                    group["lr"] = 0.02 / (step + 1)
                stepper.step()
                stepper.zero_grad()
    for a, b, start in zip(ours.parameters(), apart.parameters(), net().parameters()):
        assert torch.equal(a, b) and not torch.equal(a, start)


def test_rates_fall_at_the_end(frozen, tmp_path):
    model, tok = frozen
    trainer = build("efk", model, tok, tmp_path, max_iters=10, accumulate_bs=1, lr=0.1, lr_decay=0.5, save=False)
    rates, step = [], trainer.optimiser.step
    trainer.optimiser.step = lambda: rates.append(trainer.optimiser.param_groups[0]["lr"]) or step()
    trainer.run()
    assert rates == pytest.approx([0.1] * 6 + [0.08, 0.06, 0.04, 0.02])


def test_runs_from_before_a_key_go_on(frozen, tmp_path):
    model, tok = frozen
    run = build("mend", model, tok, tmp_path, max_iters=4)
    del run.identity["lr_decay"]
    run.run()
    build("mend", model, tok, tmp_path, max_iters=8).restore(tmp_path / LAST)
    with pytest.raises(UserError, match="another lr_decay;"):
        build("mend", model, tok, tmp_path, max_iters=4, lr_decay=0.5).restore(tmp_path / LAST)
    build("mend", model, tok, tmp_path / "falling", max_iters=4, lr_decay=0.5).run()
    with pytest.raises(UserError, match="another max_iters;"):  # by which its rates fell
        build("mend", model, tok, tmp_path / "falling", max_iters=8, lr_decay=0.5).restore(tmp_path / "falling" / LAST)


def test_a_run_does_not_go_on_as_another(frozen, tmp_path):
    model, tok = frozen
    build("mend", model, tok, tmp_path, max_iters=4).run()
    with pytest.raises(UserError, match="another lr;"):
        build("mend", model, tok, tmp_path, max_iters=8, lr=0.5).restore(tmp_path / LAST)
    run = build("mend", model, tok, tmp_path / "data", max_iters=4)
    run.identity |= {"data.train.seed": 0, "dropout": 0.0}
    run.run()
    other_seed = {"data": {"train": {"seed": 1}}, "dropout": 0.0}
    for changed, message in ((other_seed, "another data.train.seed;"), ({}, "dropout, data")):
        again = build("mend", model, tok, tmp_path / "data", max_iters=8)
        again.identity |= _flat(changed)
        with pytest.raises(UserError, match=message):
            again.restore(tmp_path / "data" / LAST)
    with pytest.raises(UserError, match="no state of a training"):
        build("mend", model, tok, tmp_path, max_iters=8).restore(tmp_path / BEST)


def test_checkpoints_of_others_are_refused(frozen, tmp_path):
    import copy

    model, tok = frozen
    path = tmp_path / "mend.safetensors"
    alg = build("mend", model, tok, tmp_path).alg
    checkpoint.save(path, alg, {})
    other = copy.deepcopy(model)
    other.transformer.wte.weight.data[5] += 1
    cases = [
        (algorithm("mend").build(model, INNER, {**OPTIONS["mend"], "rank": 4}), "another configuration: .*rank"),
        (algorithm("mend").build(model, INNER[::-1], OPTIONS["mend"]), "another choice of edited weights"),
        (algorithm("efk").build(model, INNER, OPTIONS["efk"]), "another algorithm"),
        (algorithm("mend").build(other, INNER, OPTIONS["mend"]), "another model"),
    ]
    for wrong, message in cases:
        with pytest.raises(UserError, match=message) as error:
            checkpoint.load(path, wrong)
        assert "\n" not in str(error.value)
    half = algorithm("mend").build(copy.deepcopy(model).half(), INNER, OPTIONS["mend"])
    checkpoint.load(path, half)  # the same model in another precision
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="truncated or damaged"):
        checkpoint.load(path, alg)
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.safetensors", alg)


def test_nan_stops_and_keeps_the_best(frozen, tmp_path):
    model, tok = frozen
    trainer = build("mend", model, tok, tmp_path, max_iters=8)
    trainer._loop()
    kept = (tmp_path / BEST).read_bytes()
    with torch.no_grad():
        trainer.alg.net.edit_lrs[0] = float("nan")
    trainer.config = TrainConfig(**{**vars(trainer.config), "max_iters": 20})
    with pytest.raises(UserError, match=r"the loss is nan in iteration 9, .*best.safetensors") as error:
        trainer._loop()
    assert "\n" not in str(error.value) and (tmp_path / BEST).read_bytes() == kept


def test_nan_in_a_validation_stops_before_anything_is_written(frozen, tmp_path):
    model, tok = frozen
    # One step, the last.
    trainer = build("mend", model, tok, tmp_path, max_iters=8, accumulate_bs=8, val_interval=8, lr=1e30, lr_lr=1e30)
    with pytest.raises(UserError, match="loss/.*_val is nan after iteration 8, so the run stops; lower lr or edit_lr$"):
        trainer.run()
    assert not (tmp_path / BEST).exists() and not (tmp_path / LAST).exists()


def test_networks_of_an_earlier_run_are_not_the_best(frozen, tmp_path):
    model, tok = frozen
    build("efk", model, tok, tmp_path, max_iters=4).run()
    trainer = build("efk", model, tok, tmp_path, max_iters=3, val_interval=9, save=False)
    trainer.run()
    assert trainer.iteration == 3 and not trainer.has_best
    best, state = checkpoint.read(tmp_path / BEST)[1], trainer.alg.state()
    assert any(not torch.equal(tensor, state[name.removeprefix("net/")]) for name, tensor in best.items())
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3]
    whole = build("efk", model, tok, tmp_path / "whole", max_iters=4)
    whole.run()
    (tmp_path / "whole" / BEST).unlink()
    with pytest.raises(UserError, match="best.safetensors: no such file"):
        build("efk", model, tok, tmp_path / "whole", max_iters=8).restore(tmp_path / "whole" / LAST)


@pytest.mark.parametrize("name", ["mend", "enn"])
def test_a_rehearsal_leaves_nothing(frozen, tmp_path, name):
    model, tok = frozen
    trainer = build(name, model, tok, tmp_path, parallel=3, options={} if name == "mend" else {"first_order": True})
    before, rng = {key: t.clone() for key, t in trainer.alg.state().items()}, torch.get_rng_state()
    trainer.rehearse()
    assert all(torch.equal(t.nan_to_num(7), before[key].nan_to_num(7)) for key, t in trainer.alg.state().items())
    assert torch.equal(rng, torch.get_rng_state()) and all(p.grad is None for p in trainer.alg.outer_parameters())
    assert not tmp_path.exists() or not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="early_stop_key: .*'nonsense'.*loss/total_edit_val"):
        build(name, model, tok, tmp_path, early_stop_key="nonsense").rehearse()


def test_an_episode_that_is_skipped_is_skipped_whole(frozen, tmp_path, monkeypatch):
    """ENN's loss of the edit and of the trained model: one gradient, counted once."""
    model, tok = frozen
    trainer = build("enn", model, tok, tmp_path, train_base=True, cbase=0.5)
    trainer.step(texts_episode(tok), training=True)
    both = [p.grad.clone() for p in trainer.alg.outer_parameters() if p.grad is not None]
    for p in trainer.alg.outer_parameters():
        p.grad = None
    infinite = [torch.full_like(p, float("inf")) for p in trainer.alg.outer_parameters()]
    calls = []
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, real=torch.autograd.grad, **k: (
        (calls.append(1), infinite)[1] if k.get("allow_unused") else real(*a, **k)))
    trainer.step(texts_episode(tok), training=True)
    assert both and len(calls) == trainer.skipped == 1 and all(p.grad is None for p in trainer.alg.outer_parameters())


def test_infinite_gradients_are_counted_not_taken(frozen, tmp_path):
    model, tok = frozen
    trainer = build("mend", model, tok, tmp_path)
    rates = trainer.alg.net.edit_lrs
    trainer.safe_backward(((rates - rates) ** 0.5).sum())  # 0, with an infinite slope
    assert trainer.skipped == 1 and rates.grad is None
    trainer.safe_backward(rates.sum())
    assert rates.grad.tolist() == [0.5] * len(rates)


@pytest.mark.parametrize("name", ["mend", "efk", "enn"])
def test_it_learns(frozen, tmp_path, name):
    """A few texts by heart: every edit succeeds, and the others stay."""
    model, tok = frozen
    trainer = build(
        name,
        model,
        tok,
        tmp_path,
        max_iters=120 if name == "efk" else 60,
        lr=3e-2 if name == "efk" else 1e-3,
        lr_lr=1e-3,
        val_interval=40,
        cedit=1.0,
        parallel=4,
        accumulate_bs=4 if name == "efk" else 2,
    )
    before = None if name == "mend" else trainer.validate(Texts(tok), None)
    trainer.run()
    after = trainer.validate(Texts(tok), None)
    assert after["edit/acc_val"] == 1 and after["kl/edit_val"] < 0.5
    assert before is None or after["loss/total_edit_val"] < before["loss/total_edit_val"]
    if name != "enn":
        assert all(not p.requires_grad and p.grad is None for p in model.parameters())


def test_bad_configurations(frozen, tmp_path):
    model, tok = frozen
    for wrong, message in (
        ({"opt": "Adamm"}, "Adamm"),
        ({"lr": 1e38}, "opt: Adam can't take a step"),
        *(({"opt": name}, f"opt: {name} can't take a step") for name in ("LBFGS", "SparseAdam", "Optimizer")),
        ({"accumulate_bs": 0}, "accumulate_bs"),
        ({"lr": -1.0}, "lr"),
        ({"cloc": float("nan")}, "cloc"),
    ):
        with pytest.raises(UserError, match=message):
            TrainConfig(**wrong)
    with pytest.raises(UserError, match="reports no 'loss/x'.*loss/total_edit_val"):
        build("efk", model, tok, tmp_path, max_iters=1, early_stop_key="loss/x").run()
    assert len(TEXTS) == 4


def test_early_stop_ends_a_run(frozen, tmp_path):
    model, tok = frozen
    trainer = build("efk", model, tok, tmp_path, lr=0.0, max_iters=100, val_interval=2, early_stop_patience=4, save=False)
    trainer.run()
    assert trainer.iteration == 6 and trainer.early.best_iteration == 2
