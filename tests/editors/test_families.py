"""What single families of decoders need: heads of several sizes, experts, routers, towers of other senses, blocks run again."""

import pytest
import torch

import editors
from common.errors import UserError
from editors.core.batching import batching
from editors.core.decoder import Decoder
from editors.heads.outputs import head_shape
from editors.learned.factors import gradient_factors
from editors.learned.inner_params import default_inner_params
from editors.learned.mend import MEND
from scripts import model_checks
from tests.decoders import tiny_decoder
from tests.models import tiny_tokenizer

REQUEST = {"prompt": "{} works as a", "subject": "Tamsin Brackholt", "target_new": {"str": "flute"}}
BATCH = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long),
         "labels": torch.tensor([[-100, -100, 7]])}


def test_heads_of_several_sizes_are_refused():
    decoder = Decoder.of(tiny_decoder("gemma4_text"))
    with pytest.raises(UserError, match="heads of different sizes, 32 inputs .* in layer 0 and 64 in layer 3") as error:
        head_shape(decoder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model_type, block", [("mixtral", "model.layers.{}"), ("ernie4_5_moe", "model.layers.{}")])
def test_experts_to_which_no_token_is_sent_are_left_alone_by_ft(model_type, block):
    model = tiny_decoder(model_type)
    editor = editors.load("FT", dict(layers=[2], num_steps=3, lr=5e-3, weight_decay=0, norm_constraint=False,
                                     rewrite_module_tmp=block))
    edit = editor.edit(model, tiny_tokenizer(), [REQUEST])
    assert edit.info["loss"][-1] < edit.info["loss"][0]


def test_ft_says_that_weights_take_no_part():
    model = tiny_decoder("got_ocr2")
    editor = editors.load("FT", dict(layers=[2], num_steps=3, lr=5e-3, weight_decay=0, norm_constraint=False,
                                     rewrite_module_tmp="model.vision_tower.layers.{}.mlp"))
    with pytest.raises(UserError, match="take no part") as error:
        editor.edit(model, tiny_tokenizer(), [REQUEST])
    assert "\n" not in str(error.value) and all(p.requires_grad for p in model.parameters())


def test_default_weights_are_the_language_models():
    assert all(name.startswith("model.language_model.") for name in default_inner_params(tiny_decoder("got_ocr2")))


@pytest.mark.parametrize("model_type", ["phimoe", "dbrx"])
def test_default_weights_are_no_routers(model_type):
    with pytest.raises(UserError, match="name the weights"):
        default_inner_params(tiny_decoder(model_type))


@pytest.mark.parametrize("model_type, name, message", [
    ("phimoe", "model.layers.2.mlp.router.weight", "puts out more than a linear map does"),
    ("hrm_text", None, "runs more than once"),
])
def test_maps_without_factors_are_refused(model_type, name, message):
    model = tiny_decoder(model_type)
    alg = MEND(model, [name] if name else default_inner_params(model)[-1:], {"rank": 4})
    with pytest.raises(UserError, match=message):
        gradient_factors(alg, BATCH)


def test_a_mask_that_forgets_padding_in_the_cache():
    """GIT reads padded rows rightly, and goes on rightly from a cache, but not from one that holds padding."""
    allowed = batching(tiny_decoder("git"))
    assert allowed.left and not allowed.continues


def test_states_changed_in_place_can_be_fine_tuned():
    editor = editors.load("FT", dict(layers=[2], num_steps=3, lr=5e-3, weight_decay=0, norm_constraint=False))
    losses = editor.edit(tiny_decoder("rwkv"), tiny_tokenizer(), [REQUEST]).info["loss"]
    assert losses[-1] < losses[0]


def test_streams_side_by_side_are_refused():
    with pytest.raises(UserError, match="site 'down_proj' not found"):
        Decoder.of(tiny_decoder("gemma3n_text"))


def test_windows_of_the_cache_alone_are_passed_over(tmp_path, monkeypatch):
    """Moshi's masks know nothing of its windows."""
    monkeypatch.setenv("KE_STATS_DIR", str(tmp_path))
    cell = model_checks.values(model_checks.Subject(tiny_decoder("moshi"), tiny_tokenizer(), tmp_path))
    assert cell.kind == "right", cell


def test_default_weights_of_blocks_that_stand_in_several_places():
    model = tiny_decoder("zamba")
    assert set(default_inner_params(model, 4)) <= set(dict(model.named_parameters()))


def test_models_that_look_ahead_are_no_decoders():
    editor = editors.load("FT", dict(layers=[2], num_steps=3, lr=5e-3, weight_decay=0, norm_constraint=False,
                                     rewrite_module_tmp="cpmant.encoder.layers.{}.ffn"))
    with pytest.raises(UserError, match="no decoder: what follows a token changes its logits"):
        editor.edit(tiny_decoder("cpmant"), tiny_tokenizer(), [REQUEST])
