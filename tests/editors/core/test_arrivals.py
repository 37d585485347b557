"""A down-projection is what does a down-projection's work: what it puts out arrives at its block's output, and how is known."""

import pytest
import torch
import transformers
from torch import nn

from common.errors import UserError
from editors.core.modules import first, get_module
from editors.core.sites import find_sites
from tests.models import INNER, LAYERS, VOCABULARY, WIDTH, tiny_model

KINDS = {
    "gpt2": "identity", "gptj": "identity", "falcon": "identity", "llama": "identity", "llama4": "identity",
    "granite": "constant", "qwen2_moe": "gate",
    "gemma2": "norm", "gemma3": "norm", "olmo2": "norm", "glm4": "norm", "exaone4": "norm",
}


@pytest.mark.parametrize("arch, kind", KINDS.items())
def test_what_arrives(arch, kind):
    arrivals = find_sites(tiny_model(arch)).arrivals
    assert [arrival.kind for arrival in arrivals] == [kind] * LAYERS
    if kind == "constant":
        assert [arrival.factor for arrival in arrivals] == pytest.approx([0.22] * LAYERS)


def test_a_wide_map_that_feeds_nothing_is_passed_over():
    """The widest map is tried first, and taken only if its output arrives."""
    model = tiny_model("llama")
    for block in model.model.layers:
        block.mlp.idle = nn.Linear(2 * INNER, WIDTH)
        block.mlp.register_forward_hook(
            lambda mlp, args, output: mlp.idle(torch.zeros(*output.shape[:-1], 2 * INNER)) * 0 + output)
    assert find_sites(model).down_proj == "model.layers.{}.mlp.down_proj"


def test_the_last_map_to_run_is_not_taken_for_the_down_projection():
    """As in Gemma 4's blocks a narrow gated map runs behind the MLP."""
    def add_per_layer_input(block, args, output):
        hidden = first(output)
        return hidden + block.per_layer_projection(torch.sigmoid(block.per_layer_gate(hidden)))

    model = tiny_model("llama")
    for block in model.model.layers:
        block.per_layer_gate, block.per_layer_projection = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)
        block.register_forward_hook(add_per_layer_input)
    sites = find_sites(model)
    assert sites.down_proj == "model.layers.{}.mlp.down_proj"
    assert [arrival.kind for arrival in sites.arrivals] == ["other"] * LAYERS


def test_experts_with_a_shared_one():
    sites = find_sites(tiny_model("ernie4_5_moe"))
    assert sites.down_projs == ("model.layers.0.mlp.down_proj",
                                *(f"model.layers.{i}.mlp.shared_experts.down_proj" for i in range(1, LAYERS)))
    assert sites.mixtures == (False, True, True, True)
    assert sites.name("mlp_out", 0) == "model.layers.0.mlp.down_proj" and sites.name("mlp_out", 1) == "model.layers.1.mlp"


def test_dense_layers_below_experts():
    """As DeepSeek's: the first blocks are dense, those above have shared experts under another name."""
    config = transformers.DeepseekV3Config(
        vocab_size=VOCABULARY, num_hidden_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=INNER, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_group=1, topk_group=1,
        q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, v_head_dim=8, qk_nope_head_dim=8, first_k_dense_replace=2)
    sites = find_sites(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval())
    names = ["mlp", "mlp", "mlp.shared_experts", "mlp.shared_experts"]
    assert sites.down_projs == tuple(f"model.layers.{i}.{name}.down_proj" for i, name in enumerate(names))


@pytest.mark.parametrize("arch", ["mixtral", "gpt_oss"])
def test_experts_alone(arch):
    sites = find_sites(tiny_model(arch))
    assert sites.down_projs == (None,) * LAYERS
    with pytest.raises(UserError, match="layer 2 is a mixture of experts without one that every token passes.*; FT of modules "
                                        "that you name .*, tracing and metrics work"):
        sites.name("down_proj", 2)


def test_dense_layers_among_experts():
    model = tiny_model("qwen3_moe")
    sites = find_sites(model)
    assert get_module(model, sites.name("down_proj", 0)).in_features == INNER
    with pytest.raises(UserError, match="layer 3 is a mixture of experts .*; edit layers 0"):
        sites.name("down_proj", 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("multiplier", [0.9, 0.99])
def test_constants_near_one_in_16_bits(dtype, multiplier):
    arrivals = find_sites(tiny_model("granite", residual_multiplier=multiplier).to(dtype)).arrivals
    assert {arrival.kind for arrival in arrivals} == {"constant"}
    assert [arrival.factor for arrival in arrivals] == pytest.approx([multiplier] * LAYERS, rel=5e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("arch", ["llama", "gpt2", "falcon", "opt", "gemma2", "olmo2"])
def test_other_precisions(arch, dtype):
    arrivals = find_sites(tiny_model(arch).to(dtype)).arrivals
    assert {arrival.kind for arrival in arrivals} == {KINDS.get(arch, "identity")}
