"""What single families of decoders need: heads of several sizes, experts, routers, towers of other senses, blocks run again."""

import pytest
import torch

import editors
from common.errors import UserError
from editors.core.decoder import Decoder
from editors.heads.outputs import head_shape
from editors.learned.factors import gradient_factors
from editors.learned.inner_params import default_inner_params
from editors.learned.mend import MEND
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


def test_models_that_look_ahead_are_no_decoders():
    editor = editors.load("FT", dict(layers=[2], num_steps=3, lr=5e-3, weight_decay=0, norm_constraint=False,
                                     rewrite_module_tmp="cpmant.encoder.layers.{}.ffn"))
    with pytest.raises(UserError, match="no decoder: what follows a token changes its logits"):
        editor.edit(tiny_decoder("cpmant"), tiny_tokenizer(), [REQUEST])
