"""Sites are found without looking at a model's name, do what they are said to do, and finding them changes nothing."""

import gc
import weakref

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from common.errors import UserError
from editors.core.modules import by_row, evaluating, first, get_module, get_plain_module, logits_of
from editors.core.sites import find_sites, weight_of
from editors.core.wrappers import plain_parameters
from tests.models import ARCHITECTURES, INNER, LAYERS, VOCABULARY, WIDTH, tiny_model

# block list, down_proj, mlp, attn, attn_out within the block; decoder, embed, final_norm.
_LLAMA = ("model.layers", "mlp.down_proj", "mlp", "self_attn", "self_attn.o_proj", "model", "model.embed_tokens",
          "model.norm")
_FALCON = ("transformer.h", "mlp.dense_4h_to_h", "mlp", "self_attention", "self_attention.dense", "transformer",
           "transformer.word_embeddings", "transformer.ln_f")
EXPECTED = {
    **dict.fromkeys(["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2"], _LLAMA),
    **dict.fromkeys(["falcon", "falcon_new", "bloom"], _FALCON),
    "gpt2": ("transformer.h", "mlp.c_proj", "mlp", "attn", "attn.c_proj", "transformer", "transformer.wte",
             "transformer.ln_f"),
    "gptj": ("transformer.h", "mlp.fc_out", "mlp", "attn", "attn.out_proj", "transformer", "transformer.wte",
             "transformer.ln_f"),
    "gpt_neox": ("gpt_neox.layers", "mlp.dense_4h_to_h", "mlp", "attention", "attention.dense", "gpt_neox",
                 "gpt_neox.embed_in", "gpt_neox.final_layer_norm"),
    "opt": ("model.decoder.layers", "fc2", "fc2", "self_attn", "self_attn.out_proj", "model.decoder",
            "model.decoder.embed_tokens", "model.decoder.final_layer_norm"),
}


def some_ids(batch=2, tokens=9):
    return torch.randint(3, VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_names(arch):
    blocks, *inner, decoder, embed, norm = EXPECTED[arch]
    sites = find_sites(tiny_model(arch))
    assert (sites.layers, sites.d_model, sites.block) == (LAYERS, WIDTH, blocks + ".{}")
    assert [sites.down_proj, sites.mlp, sites.attn, sites.attn_out] == [f"{blocks}.{{}}.{name}" for name in inner]
    assert (sites.decoder, sites.embed, sites.final_norm, sites.lm_head) == (decoder, embed, norm, "lm_head")
    assert sites.name("down_proj", 2) == f"{blocks}.2.{inner[0]}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@torch.no_grad()
def test_head_gives_the_models_logits(arch):
    """From the decoder's output and from the last block's, on other tokens than those of the probe."""
    model, ids = tiny_model(arch), some_ids()
    sites, caught = find_sites(model), []
    block = get_module(model, sites.name("block", LAYERS - 1))
    handle = block.register_forward_hook(lambda module, args, output: caught.append(first(output)))
    logits = model(ids).logits
    handle.remove()
    hidden = get_module(model, sites.decoder)(ids).last_hidden_state
    torch.testing.assert_close(logits_of(model, sites.lm_head, hidden), logits)
    normed = get_module(model, sites.final_norm)(caught[0])
    torch.testing.assert_close(logits_of(model, sites.lm_head, normed[:, 3]), logits[:, 3])


# BLOOM's MLP is always four times as wide as the model.
SHAPES = [(arch, square) for arch in ARCHITECTURES for square in (False, True) if (arch, square) != ("bloom", True)]


@pytest.mark.parametrize("arch, square", SHAPES)
@torch.no_grad()
def test_weight_in_its_own_orientation(arch, square):
    """Adding u v^T, laid out as in_first says, adds u (v . k) to the projection's output; also where d_in == d_out."""
    names = {"gpt2": "n_inner", "gptj": "n_inner", "opt": "ffn_dim"}
    names |= dict.fromkeys(["falcon", "falcon_new"], "ffn_hidden_size")
    size = {names.get(arch, "intermediate_size"): WIDTH} if square else {}
    model = tiny_model(arch, **size)
    sites = find_sites(model)
    name, weight, in_first = weight_of(model, sites, 1)
    assert model.get_parameter(name) is weight and in_first == (arch == "gpt2")
    assert not square or weight.shape == (WIDTH, WIDTH)
    projection, ids = get_module(model, sites.name("down_proj", 1)), some_ids()
    inputs_and_outputs = []
    projection.register_forward_hook(lambda m, args, output: inputs_and_outputs.append((args[0], output)))
    model(ids)
    d_out, d_in = (weight.shape[1], weight.shape[0]) if in_first else weight.shape
    u, v = torch.randn(d_out), torch.randn(d_in)
    weight += torch.outer(v, u) if in_first else torch.outer(u, v)
    model(ids)
    (k, before), (k_again, after) = inputs_and_outputs
    torch.testing.assert_close(k, k_again)
    torch.testing.assert_close(after - before, (k @ v)[..., None] * u, atol=1e-4, rtol=1e-4)
    assert by_row(after, 2).shape == (2, 9, WIDTH)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_other_dtypes(arch, dtype):
    assert find_sites(tiny_model(arch).to(dtype)) == find_sites(tiny_model(arch))


def state_of(model):
    hooks = [
        len(getattr(m, table)) for m in model.modules()
        for table in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_backward_hooks")
    ]
    modes = [m.training for m in model.modules()]
    gradients = [(p.requires_grad, p.grad) for p in model.parameters()]
    return hooks, modes, gradients, model.config.to_dict(), {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("overrides", [None, {"rewrite_module_tmp": "transformer.h.{}.mlp.c_fc"}])
def test_the_model_is_left_as_it_was(overrides):
    """Also in train mode (with dropout, which must not blur the verification), and when finding fails."""
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    model.transformer.h[1].eval()
    model.transformer.h[2].mlp.c_fc.weight.requires_grad_(False)
    before, random = state_of(model), torch.get_rng_state()
    if overrides is None:
        find_sites(model)
    else:
        with pytest.raises(UserError):
            find_sites(model, overrides)
    after = state_of(model)
    assert before[:4] == after[:4] and all(torch.equal(v, after[4][k]) for k, v in before[4].items())
    assert torch.equal(random, torch.get_rng_state())


def test_evaluating_restores_modes_after_an_error():
    model = tiny_model("gpt2").train()
    model.transformer.h[0].eval()
    before = [m.training for m in model.modules()]
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(m.training for m in model.modules())
        raise RuntimeError
    assert [m.training for m in model.modules()] == before


def test_cached_for_the_models_lifetime():
    model = tiny_model("gpt2")
    sites = find_sites(model)
    assert find_sites(model) is sites and find_sites(model, {"ln_f_module": None}) is sites
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_published_templates():
    """The module names of the published GPT-2, GPT-J and GPT-NeoX files, the last with a head that has a new name now."""
    gpt2 = tiny_model("gpt2")
    names = {
        "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj", "layer_module_tmp": "transformer.h.{}",
        "mlp_module_tmp": "transformer.h.{}.mlp", "attn_module_tmp": "transformer.h.{}.attn",
        "ln_f_module": "transformer.ln_f", "lm_head_module": "transformer.wte",  # the tied embedding
    }
    assert find_sites(gpt2, names) == find_sites(gpt2)
    neox = tiny_model("gpt_neox")
    names = {
        "rewrite_module_tmp": "gpt_neox.layers.{}.mlp.dense_4h_to_h", "layer_module_tmp": "gpt_neox.layers.{}",
        "ln_f_module": "gpt_neox.final_layer_norm", "lm_head_module": "embed_out",
    }
    assert find_sites(neox, names) == find_sites(neox)


def test_an_override_is_used():
    model = tiny_model("gpt2")
    sites = find_sites(model, {"rewrite_module_tmp": "transformer.h.{}.attn.c_proj"})
    assert sites.down_proj == "transformer.h.{}.attn.c_proj"
    assert weight_of(model, sites, 0)[0] == "transformer.h.0.attn.c_proj.weight"


@pytest.mark.parametrize("overrides, message", [
    ({"rewrite_module_tmp": "transformer.h.{}.mpl.c_proj"},
     "no module 'transformer.h.0.mpl.c_proj'; nearest: 'transformer.h.0.mlp.c_proj'"),
    ({"rewrite_module_tmp": "transformer.h.{}.mlp.c_fc"},
     r"site 'down_proj' not found; transformer.h.0.mlp.c_fc returns \[1, 4, 128\]"),
    ({"rewrite_module_tmp": "transformer.h.{}.mlp"}, "transformer.h.0.mlp is a GPT2MLP; wanted a linear map"),
    ({"rewrite_module_tmp": "transformer.h.3.mlp.c_proj"}, "needs exactly one {} for the layer number"),
    ({"ln_f_module": "transformer.lnf"}, "no module 'transformer.lnf'; nearest: 'transformer.ln_f'"),
    ({"ln_f_module": "transformer.h.0.ln_1"},
     r"site 'final_norm' not found; transformer.h.0.ln_1\(last block\) is not the output of"),
    ({"lm_head_module": "transformer.wpe"},
     "lm_head_module 'transformer.wpe' is not the head of GPT2LMHeadModel, which is 'lm_head'"),
    ({"rewrite_module": "x"}, "unknown site 'rewrite_module'; known: rewrite_module_tmp, "),
])
def test_mistaken_overrides(overrides, message):
    with pytest.raises(UserError, match=message) as error:
        find_sites(tiny_model("gpt2"), overrides)
    assert "\n" not in str(error.value)


def test_a_projection_that_does_not_feed_its_block_is_refused():
    model = tiny_model("gpt2")
    for block in model.transformer.h:
        block.aside = nn.Linear(WIDTH, WIDTH)
        block.ln_2.register_forward_hook(lambda module, args, output, block=block: (block.aside(output), output)[1])
    with pytest.raises(UserError, match="changing transformer.h.0.aside at a token does not change transformer.h.0 there"):
        find_sites(model, {"rewrite_module_tmp": "transformer.h.{}.aside"})


def build(config_class, auto=AutoModelForCausalLM, **entries):
    common = dict(
        vocab_size=VOCABULARY, num_hidden_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=INNER, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )
    return auto.from_config(getattr(transformers, config_class)(**{**common, **entries})).eval()


@pytest.mark.parametrize("config_class, entries", [
    ("GraniteConfig", {"logits_scaling": 3.0, "residual_multiplier": 0.3}),
    ("CohereConfig", {"logit_scale": 0.3}),
])
@torch.no_grad()
def test_scaled_logits(config_class, entries):
    model, ids = build(config_class, **entries), some_ids()
    sites = find_sites(model)
    hidden = get_module(model, sites.decoder)(ids).last_hidden_state
    torch.testing.assert_close(logits_of(model, sites.lm_head, hidden), model(ids).logits)


@pytest.mark.parametrize("make, message", [
    (lambda: tiny_model("opt", do_layer_norm_before=False),
     "OPTForCausalLM: site 'final_norm' not found; what runs behind .*: nothing"),
    (lambda: tiny_model("opt", word_embed_proj_dim=16),
     r"site 'final_norm' not found; .*\(last block\) is not the output of"),
    (lambda: transformers.GPT2Model(transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=50)),
     "GPT2Model: site 'lm_head' not found"),
    (lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=50, d_model=32, num_layers=2, num_heads=2, d_kv=8, d_ff=56)), "is an encoder-decoder"),
    (lambda: nn.Linear(3, 3), "Linear is not a Hugging Face model"),
], ids=["post_norm_opt", "projected_opt", "no_head", "encoder_decoder", "no_model"])
def test_models_that_cannot_be_served_are_refused(make, message):
    with pytest.raises(UserError, match=message) as error:
        find_sites(make())
    assert "\n" not in str(error.value)


def test_two_block_lists_are_told_apart():
    """A multimodal model's vision tower of as many blocks does not run on text."""
    text = transformers.LlamaConfig(
        vocab_size=VOCABULARY, num_hidden_layers=4, hidden_size=32, num_attention_heads=4, intermediate_size=56
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(text_config=text, vision_config=vision))
    assert find_sites(model).block == "model.language_model.layers.{}"


def test_layer_beyond_the_model():
    with pytest.raises(UserError, match="layer 4 does not exist: the model has layers 0 to 3"):
        find_sites(tiny_model("gpt2")).name("block", 4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("arch, targets", [("gpt2", ["c_proj"]), ("llama", ["down_proj", "o_proj"])])
def test_adapters_around_the_projection(arch, targets):
    """With peft the edit still belongs to the map inside the adapter."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=arch == "gpt2")
    model = peft.get_peft_model(tiny_model(arch), config)
    sites = find_sites(model)
    name, weight, in_first = weight_of(model, sites, 1)
    assert name == f"{find_sites(tiny_model(arch)).name('down_proj', 1)}.weight" and plain_parameters(model)[name] is weight
    assert in_first == (arch == "gpt2") == isinstance(get_plain_module(model, name.removesuffix(".weight")), Conv1D)


def test_dispatched_by_accelerate():
    accelerate = pytest.importorskip("accelerate")
    plain, model = tiny_model("llama"), tiny_model("llama")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "cpu" for i in range(LAYERS)}
    model = accelerate.dispatch_model(model, device_map=places, main_device="cpu", force_hooks=True)
    sites = find_sites(model)
    assert sites == find_sites(plain)
    if next(model.parameters()).is_meta:  # accelerate counts these as offloaded
        with pytest.raises(UserError, match="model.layers.1.mlp.down_proj.weight is offloaded and cannot be edited"):
            weight_of(model, sites, 1)


def test_quantised_weight_is_refused():
    model = tiny_model("llama")
    sites = find_sites(model)
    packed = nn.Parameter(torch.zeros(8, 8, dtype=torch.uint8), requires_grad=False)
    get_module(model, sites.name("down_proj", 1)).weight = packed
    with pytest.raises(UserError, match=r"down_proj.weight is quantised \(torch.uint8\) and cannot be edited"):
        weight_of(model, sites, 1)
