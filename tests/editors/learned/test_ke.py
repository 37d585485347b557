"""KE: condition, gate, scale, shift and update are the published ones."""

import pytest
import torch

from common.errors import UserError
from editors.learned.ke import Condition, Conditioner, KE, KEOptions
from editors.learned.trainer import TrainConfig, Trainer
from tests.conftest import relative
from tests.editors.learned.conftest import arrays, batch, check_logits, episode, learned_model

CONFIG = TrainConfig(accumulate_bs=1, train_base=False)


def published(name: str) -> str:
    """The published name of one of KE's parameters."""
    name = name.replace("condition.lstm.", "condition.lstm._module.").replace(
        "condition.linear.", "condition.linear._linear_layers.0."
    )
    if name.startswith("conditioners."):
        _, parameter, _, rest = name.split(".", 3)
        rest = rest.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        )
        name = f"conditioners.{parameter}_conditioner.conditioners.{rest}"
    return name


def build(name):
    z, about = arrays(name)
    alg = KE(learned_model(about["model"]), about["inner_params"], {"hidden_dim": 12, "condition_dim": 10})
    state = alg.state()
    state |= {key: torch.tensor(z[f"weights/{published(key)}"]) for key in state if not key.startswith("condition.embedding")}
    alg.load_state(state)
    return alg, z, about


@pytest.mark.parametrize("name", ["ke_gpt2", "ke_t5", "ke_bert"])
def test_golden(name, tmp_path):
    alg, z, about = build(name)
    one = episode(about["batch"])
    vector = alg.net.condition(one.cond)
    assert relative(vector.detach(), z["condition_vector"]) < 1e-5
    for i, inner in enumerate(alg.inner):
        row, column, beta_row, beta_column, gate = alg.net.conditioners[inner.replace(".", "_")](vector)
        assert gate.item() == pytest.approx(float(z[f"gate/{i}"]), rel=1e-5)
        if f"scale_A/{i}" in z:
            assert relative(torch.outer(row[0], column[0]).detach(), z[f"scale_A/{i}"]) < 1e-5
            assert relative(torch.outer(beta_row[0], beta_column[0]).detach(), z[f"shift_B/{i}"]) < 1e-5
    stats = Trainer(alg, CONFIG, None, None, tmp_path).step(one, training=True)
    for key in ("loss/edit", "loss/loc", "edit/acc", "nll/pre", "nll/post", "loss/total"):
        assert stats[key] == pytest.approx(about["result"][key], rel=3e-4 if key == "loss/loc" else 2e-5, abs=1e-7), key
    checked = 0
    for key, p in alg.net.named_parameters():
        golden = f"ko/outer_grad/editor.{published(key)}"
        if golden in z:
            assert relative(p.grad, z[golden]) < 5e-5, key
            checked += 1
    assert checked > 10
    rows = torch.tensor(z["ko/embedding_grad_rows"]).long()
    assert relative(alg.net.condition.embedding.weight.grad[rows], z["ko/embedding_grad_values"]) < 5e-5
    edited, _ = alg.eval().edit(one.edit_inner, one.cond)
    for i, inner in enumerate(alg.inner):
        assert relative((edited.weight(inner) - alg.model.get_parameter(inner)).detach(), z[f"ko/delta_w/{i}"]) < 1e-4
    for part in ("edit_inner", "edit_outer", "loc"):
        check_logits(edited(getattr(one, part)), z, f"ko/logits_edited/{part}")


def test_several_edits():
    alg, _, about = build("ke_gpt2")
    one = batch(about["batch"]["edit_inner"])
    other = {**one, "labels": one["labels"].roll(-1, 1)}
    both = {key: torch.cat([one[key], other[key]]) for key in one}
    text = batch(about["batch"]["cond"])
    texts = {key: torch.cat([text[key], text[key].roll(1, 1) if key == "input_ids" else text[key]]) for key in text}
    looped, _ = alg.eval().edit(both, texts)
    step, _ = alg.edit(one, text)
    step, _ = step.edit(other, {key: rows[1:] for key, rows in texts.items()})
    assert all(torch.allclose(looped.weight(n), step.weight(n), atol=1e-7) for n in alg.inner)
    average, _ = KE(alg.model, alg.inner, {"hidden_dim": 12, "condition_dim": 10, "several": "average"}).edit(both, texts)
    assert average.added.keys() == set(alg.inner)
    with pytest.raises(UserError, match="one condition an edit"):
        alg.edit(both, text)
    with pytest.raises(UserError, match="condition"):
        alg.edit(both)
    with pytest.raises(UserError, match="several"):
        KEOptions(several="sum")


def test_counts_of_the_published_sizes():
    def count(vocabulary, width, shapes):
        with torch.device("meta"):
            parts = [
                Condition(torch.empty(vocabulary, width), 512, 768),
                *(Conditioner(*shape, KEOptions()) for shape in shapes),
            ]
        return sum(p.numel() for part in parts for p in part.parameters())

    assert count(30522, 768, 3 * [(3072, 768), (768, 3072)]) == 55_532_812
    assert count(50258, 1600, 3 * [(6400, 1600), (1600, 6400)]) == 141_571_468
