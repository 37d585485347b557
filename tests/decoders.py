"""Tiny random models of every causal language model type that the installed transformers know, built on the spot.

``tiny_decoder("gemma2")`` is like the models of ``tests.models``: 4 blocks, width 32, 4 heads and a vocabulary of 320.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.models import HEADS, INNER, LAYERS, perturbed_model, POSITIONS, VOCABULARY, WIDTH

TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
KV_HEADS, HEAD, EXPERT = 2, 8, 24

SIZES: dict[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers",
                     "num_encoder_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size", "emb_dim"), WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
                     "encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), KV_HEADS),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size", "dff",
                     "dense_intermediate_size", "intermediate_size_mlp"), INNER),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), EXPERT),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size"), 40),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions",
                     "context_length"), POSITIONS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "num_expert_group", "topk_group", "first_k_dense_replace", "mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "kv_channels",
                     "hidden_size_per_layer_input"), HEAD),
    "rotary_dim": 4,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head"), 8),
    **dict.fromkeys(("mamba_d_state", "mamba_chunk_size", "chunk_size", "ssm_state_size"), 16),
    "sliding_window": 6, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "is_decoder": True,
}
"""Entry -> its value in every configuration that has it."""

_MULTIPLIED = {"embedding_multiplier": 1.5, "residual_multiplier": 0.22, "logits_scaling": 0.5, "attention_multiplier": 0.3}
_DOTS3 = {"per_layer_config": None, "head_dim": 16, "index_head_dim": 8, "index_n_heads": 4}
_QWEN4 = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": POSITIONS,
          "indexer_compress_ratio": 2, "ngram_vocab_size_base": 500}
_HYBRID = ["linear_attention", "full_attention"] * (LAYERS // 2)
_ALTERNATING = ["sliding_attention", "full_attention"] * (LAYERS // 2)

ENTRIES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe"), {"logit_scale": 0.5}),
    "cpmant": {"dim_ff": INNER, "dim_head": HEAD},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {"text_config": _DOTS3, "vision_config": {"mlp_layer_types": ["dense"] * LAYERS, "adapter_in_dim": WIDTH,
                                                            "adapter_out_dim": WIDTH},
                   "audio_config": {"adapter_input_size": WIDTH, "adapter_output_size": WIDTH}},
    "dots3_note_text": _DOTS3,
    "gemma3n_text": {"layer_types": _ALTERNATING, "num_kv_shared_layers": 0,
                     "activation_sparsity_pattern": [0.95, 0.0, 0.95, 0.0]},
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), {"global_head_dim": 16}),
    **dict.fromkeys(("gemma4", "gemma4_unified"), {"text_config": {"global_head_dim": 16}}),
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 6},
    "falcon_h1": {"mamba_d_ssm": 64},
    **dict.fromkeys(("gemma2", "gemma3_text"), {"query_pre_attn_scalar": HEAD, "layer_types": _ALTERNATING}),
    **dict.fromkeys(("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared"), _MULTIPLIED),
    "granitemoehybrid": _MULTIPLIED | {"layer_types": _HYBRID},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "kimi_linear": {"linear_num_heads": 4, "linear_head_dim": 8, "layer_types": _HYBRID},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "minicpm3": {"scale_emb": 2, "dim_model_base": WIDTH},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "reformer": {"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16], "attention_head_size": 8,
                 "feed_forward_size": INNER},
    "roc_bert": {"pronunciation_embed_dim": 16, "shape_embed_dim": 16},
    "xlstm": {"hidden_size": 64, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "mamba_dt_rank": 4, "attention_head_dim": 16},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_key_value_heads": HEADS},
    "zaya": {"num_experts_per_tok": 1},
}
"""Type -> what its configuration needs besides, or otherwise."""

NOT_ALONE = {
    "blt": "reads patches of bytes with four models whose widths follow from each other; no small one was put together",
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "drafts from the states of another model"),
    "gemma3n": "its vision tower needs the package timm; `gemma3n_text` is its language model",
    **dict.fromkeys(("musicgen", "musicgen_melody"), "the class for this configuration takes that of its decoder instead, and "
                                                     "reads codes of sounds"),
}
"""Types that are no model by themselves, or not here -> why."""


def tiny_decoder(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A tiny random model of the type; raises whatever transformers do where it can't be built."""
    return perturbed_model(tiny_config(model_type), seed)


def tiny_config(model_type: str) -> PretrainedConfig:
    """A configuration of the type with the sizes of `SIZES` and `ENTRIES`."""
    return _sized(CONFIG_MAPPING[model_type], ENTRIES.get(model_type, {}))


def _sized(cls: type[PretrainedConfig], entries: Mapping[str, Any]) -> PretrainedConfig:
    default = cls()
    names = default.to_dict()
    chosen = {name: value for name, value in SIZES.items() if name in names}
    if "kv_lora_rank" in names:  # latent attention has keys of every head
        chosen["num_key_value_heads"] = HEADS
    for name in cls.sub_configs:
        part = getattr(default, name, None)
        if isinstance(part, PretrainedConfig):
            chosen[name] = _sized(type(part), entries.get(name, {}))
    return cls(**chosen | {name: value for name, value in entries.items() if name not in cls.sub_configs})
