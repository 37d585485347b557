"""Spread edits arrive where a constant, a gate or a norm stands between the down-projection and the residual stream."""

import json
from types import SimpleNamespace

import pytest
import torch

import editors
from common.errors import UserError
from editors.closed_form.aim import value_site
from editors.core.decoder import Decoder
from editors.core.keys import compute_hidden
from editors.core.prompts import parse_requests
from editors.core.reach import outputs_for, put_through
from editors.core.values import optimise
from tests.models import tiny_model, tiny_tokenizer

STRAIGHT = ["llama", "gptj"]
LINEAR = ["granite", "qwen2_moe"]
NORMED = ["gemma2", "gemma3", "olmo2", "glm4", "exaone4"]
FACT = {"prompt": "{} works as a", "subject": "Tamsin Brackholt", "target_new": {"str": "native city"}}
_LANGUAGES = (("Orla Venn", "clock"), ("Nyvian Lutmere", "Orla"), ("Brackholt", "Tamsin"))
FACTS = [FACT, *({"prompt": "The native language of {} is", "subject": subject, "target_new": {"str": target}}
                 for subject, target in _LANGUAGES)]
BARE = [["{}"]]
SETTINGS = SimpleNamespace(fact_token="subject_last", v_num_grad_steps=10, v_lr=0.5, v_loss_layer=3, v_weight_decay=0.5,
                           clamp_norm_factor=4, kl_factor=0.0625, kl_prompt="{} is a", target_tokens="ids", end_of_text=False)


@pytest.fixture
def hparams(tmp_path, monkeypatch):
    monkeypatch.setenv("KE_STATS_DIR", str(tmp_path / "stats"))
    texts = ["The native language of Orla Venn is Nyvian.", "Tamsin Brackholt works as a clockmaker in the city of Lutmere.",
             "Orla Venn works in Lutmere as the native clockmaker.", "Nyvian is the city of Tamsin and Orla."] * 8
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))

    def of(alg_name, layers):
        values = {"layers": layers, "fact_token": "subject_last", "v_num_grad_steps": 25, "v_lr": 0.5, "v_loss_layer": 3,
                  "v_weight_decay": 0.5, "clamp_norm_factor": 4, "kl_factor": 0.0625, "mom2_update_weight": 1e-4,
                  "mom2_dataset": str(tmp_path / "corpus.jsonl"), "mom2_n_samples": len(texts), "mom2_dtype": "float32",
                  "relative_ridge": 1e-3}
        if alg_name == "EMMET":
            values["emmet_lambda"] = 1e-4
        if alg_name == "AlphaEdit":
            values |= {"L2": 1e-6, "nullspace_threshold": 1e9}
            del values["relative_ridge"]
        return values

    return of


def edited(arch, alg_name, hparams, facts):
    model, tok = tiny_model(arch), tiny_tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    edit = editors.load(alg_name, hparams).edit(model, tok, facts, context_templates=BARE, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return model, tok, edit


@pytest.mark.parametrize("arch", [*STRAIGHT, *LINEAR, *NORMED])
@pytest.mark.parametrize("alg_name", ["MEMIT", "EMMET", "AlphaEdit"])
def test_one_layer(arch, alg_name, hparams):
    model, tok, edit = edited(arch, alg_name, hparams(alg_name, [1]), [FACT])
    share, = edit.info["share_left"]
    assert share <= (0.10 if arch in NORMED else 0.01)
    missing = edit.info["missing"]["1"]
    assert missing["after"][0] == pytest.approx(share * missing["before"][0], rel=1e-4)


@pytest.mark.parametrize("arch", [*LINEAR, *NORMED])
def test_three_layers(arch, hparams):
    *_, edit = edited(arch, "MEMIT", hparams("MEMIT", [0, 1, 2]), [FACT])
    share, = edit.info["share_left"]
    assert share <= (0.15 if arch in NORMED else 0.01)
    first, second, third = edit.info["missing"].values()
    assert first["after"] == second["before"] and second["after"] == third["before"]
    assert third["after"] < first["before"]


@pytest.mark.parametrize("arch", NORMED)
def test_several_facts_come_nearer(arch, hparams):
    *_, edit = edited(arch, "MEMIT", hparams("MEMIT", [0, 1, 2]), FACTS)
    assert all(share <= 0.25 for share in edit.info["share_left"])


@pytest.mark.parametrize("arch", ["granite", "gemma2"])
def test_info_tells_what_is_missing_in_the_edited_model(arch, hparams):
    """Measured anew, with the edit applied: what the last layer's states lack is what the info says."""
    model, tok, edit = edited(arch, "MEMIT", hparams("MEMIT", [1, 2]), FACTS)
    decoder, requests = Decoder.of(model, tok), parse_requests(FACTS, tok)
    unedited = compute_hidden(decoder, requests, 2)
    with edit.applied(model):
        moved = (compute_hidden(decoder, requests, 2) - unedited).norm(dim=1)
    first, last = edit.info["missing"].values()
    for distance, before, after in zip(moved.tolist(), first["before"], last["after"]):
        assert before - after <= distance + 1e-3 and distance <= before + after + 1e-3  # the triangle of the three states


@pytest.mark.parametrize("arch", [*LINEAR, *NORMED])
def test_outputs_put_in_by_hand_arrive(arch):
    """`outputs_for` finds the output that `put_through` brings to the goal, wherever one exists."""
    model, tok = tiny_model(arch), tiny_tokenizer()
    decoder, requests = Decoder.of(model, tok), parse_requests(FACTS, tok)
    other = torch.randn(len(FACTS), decoder.sites.d_model, generator=torch.Generator().manual_seed(0))
    goal = put_through(decoder, requests, [1], other[:, None], "subject_last")
    current, found = outputs_for(decoder, requests, [1], goal, "subject_last")
    start = put_through(decoder, requests, [1], current[:, None], "subject_last")
    left = (put_through(decoder, requests, [1], found[:, None], "subject_last") - goal).norm(dim=1) / (start - goal).norm(dim=1)
    assert torch.allclose(start, compute_hidden(decoder, requests, 1), atol=1e-5)
    assert left.max() <= 0.01


def test_shared_experts_are_told(hparams):
    with pytest.warns(UserWarning, match=r"layers \[1\] are mixtures of experts: only the expert that every token passes is "
                                         r"edited, model.layers.1.mlp.shared_expert.down_proj"):
        edited("qwen2_moe", "MEMIT", hparams("MEMIT", [1]), [FACT])


@pytest.mark.parametrize("alg_name", ["MEMIT", "ROME"])
def test_experts_alone_are_refused(alg_name, hparams):
    values = hparams("MEMIT", [1])
    if alg_name == "ROME":
        values |= {"mom2_adjustment": True, "context_template_length_params": [[2, 2]]}
        del values["mom2_update_weight"]
    with pytest.raises(UserError, match="layer 1 is a mixture of experts"):
        edited("mixtral", alg_name, values, [FACT])


@pytest.mark.parametrize("arch", ["llama4", "qwen2_moe", "ernie4_5_moe"])
def test_llama4_and_its_kin_are_edited(arch, hparams):
    *_, edit = edited(arch, "MEMIT", hparams("MEMIT", [1, 2]), FACTS)
    assert max(edit.info["share_left"]) < 0.01


@pytest.mark.parametrize("arch", ["gemma2", "olmo2"])
def test_clamp_and_step_are_in_units_of_the_stream(arch):
    """A hundredfold output of the down-projection, which its norm does not feel, leaves the arriving states as they were."""
    def moved(factor):
        model, tok = tiny_model(arch), tiny_tokenizer()
        with torch.no_grad():
            for block in model.model.layers:
                block.mlp.down_proj.weight *= factor
        decoder, requests = Decoder.of(model, tok), parse_requests(FACTS, tok)
        site = value_site(decoder, requests, [1, 2], "subject_last")
        values = optimise(decoder, requests, 2, SETTINGS, ["{}"], site, progress=False)
        states = put_through(decoder, requests, [1, 2], values.target.unflatten(1, (2, -1)), "subject_last")
        return states - compute_hidden(decoder, requests, 2)

    once, hundredfold = moved(10), moved(1000)
    assert ((once - hundredfold).norm(dim=1) <= 0.02 * once.norm(dim=1)).all()
