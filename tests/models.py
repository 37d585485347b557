"""Tiny random models of the supported architectures and tiny tokenizers, built on the spot (no download).

``tiny_model("llama")`` is a float32 model in eval mode with 4 blocks, width 32, 4 heads and a vocabulary of 320.
Norms, biases and embeddings are perturbed, because freshly initialised ones (1, 0 and tiny) would hide mistakes.
"""

import functools
import json
import string

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

LAYERS, WIDTH, HEADS, INNER, VOCABULARY, POSITIONS = 4, 32, 4, 56, 320, 128

# Names that most configurations share ...
_MODERN = dict(
    num_hidden_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=2,
    intermediate_size=INNER, max_position_embeddings=POSITIONS,
)
_ALTERNATING = ["sliding_attention", "full_attention"] * (LAYERS // 2)
# ... and what each adds. "falcon" is Falcon-7B's block (Aguila): one shared norm, multi-query, parallel attention.
_CONFIGS = {
    "gpt2": ("GPT2Config", dict(n_layer=LAYERS, n_embd=WIDTH, n_head=HEADS, n_positions=POSITIONS)),
    "gptj": ("GPTJConfig", dict(n_layer=LAYERS, n_embd=WIDTH, n_head=HEADS, n_positions=POSITIONS, rotary_dim=4)),
    "gpt_neox": ("GPTNeoXConfig", {**_MODERN, "num_key_value_heads": None}),
    "falcon": ("FalconConfig", dict(num_hidden_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=HEADS,
                                    multi_query=True, parallel_attn=True, bias=False, alibi=False)),
    "falcon_new": ("FalconConfig", dict(num_hidden_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=HEADS,
                                        num_kv_heads=2, new_decoder_architecture=True, bias=False, alibi=False)),
    "llama": ("LlamaConfig", _MODERN),
    "mistral": ("MistralConfig", {**_MODERN, "sliding_window": 6, "head_dim": 8}),
    "qwen2": ("Qwen2Config", {**_MODERN, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**_MODERN, "head_dim": 12}),
    "gemma2": ("Gemma2Config", {**_MODERN, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8,
                                "layer_types": _ALTERNATING, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3TextConfig", {**_MODERN, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8,
                                    "layer_types": _ALTERNATING}),
    "phi3": ("Phi3Config", {**_MODERN, "num_key_value_heads": 4}),
    "opt": ("OPTConfig", dict(num_hidden_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=HEADS, ffn_dim=INNER,
                              word_embed_proj_dim=WIDTH, max_position_embeddings=POSITIONS)),
    "bloom": ("BloomConfig", dict(n_layer=LAYERS, hidden_size=WIDTH, n_head=HEADS)),
    "olmo2": ("Olmo2Config", _MODERN),
}
ARCHITECTURES = list(_CONFIGS)
# Decoders in which what a down-projection puts out does not arrive in the residual stream as it is, and mixtures of experts.
_EXPERTS = {**_MODERN, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_CONFIGS |= {
    "granite": ("GraniteConfig", {**_MODERN, "residual_multiplier": 0.22}),
    "glm4": ("Glm4Config", {**_MODERN, "head_dim": 8}),
    "exaone4": ("Exaone4Config", {**_MODERN, "sliding_window": 6, "layer_types": _ALTERNATING}),
    "qwen2_moe": ("Qwen2MoeConfig", {**_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 40}),
    "llama4": ("Llama4TextConfig", {**_MODERN, "head_dim": 8, "intermediate_size_mlp": INNER, "num_local_experts": 4}),
    "ernie4_5_moe": ("Ernie4_5_MoeConfig", {**_EXPERTS, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 2,
                                            "moe_layer_start_index": 1}),
    "mixtral": ("MixtralConfig", {**_MODERN, "num_local_experts": 4}),
    "gpt_oss": ("GptOssConfig", {**_MODERN, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
                                 "layer_types": _ALTERNATING}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_EXPERTS, "num_experts": 4, "mlp_only_layers": [0]}),
}


def tiny_model(arch: str, seed: int = 0, attn_implementation: str = "eager", **overrides):
    """A tiny random model of an architecture in ``ARCHITECTURES``; ``overrides`` are configuration entries."""
    name, entries = _CONFIGS[arch]
    entries = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **entries, **overrides}
    entries = {key: value for key, value in entries.items() if value is not None or key in overrides}
    return perturbed_model(getattr(transformers, name)(**entries), seed, attn_implementation)


def perturbed_model(config: transformers.PretrainedConfig, seed: int = 0, attn_implementation: str = "eager"):
    """A random float32 model of a configuration, in eval mode, none of whose parameters is 0 or 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation).float()
        with torch.no_grad():
            for parameter in model.parameters():
                # Norms leave 1, biases leave 0, attention comes to depend on content.
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


TOKENIZERS = ("byte_level", "byte_level_bos", "byte_level_eos", "prefix_space", "metaspace")
_CORPUS = ["The native language of Orla Venn is Nyvian.", "Tamsin Brackholt works as a clockmaker in the city of Lutmere."] * 8


@functools.cache
def tiny_tokenizer(kind: str = "byte_level") -> PreTrainedTokenizerFast:
    """A fast BPE tokenizer of at most 320 tokens; <pad>, <bos>, <eos> are 0, 1, 2.

    byte_level: GPT-2's way. byte_level_bos: with a BOS in front (Llama 3). byte_level_eos: with an EOS behind every text.
    prefix_space: a space before the first word. metaspace: SentencePiece's way, with BOS and unknown pieces (Llama 2).
    """
    specials = ["<pad>", "<bos>", "<eos>"]
    if kind == "metaspace":
        specials.append("<unk>")
        tok = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        tok.decoder = decoders.Metaspace(prepend_scheme="always")
        alphabet = sorted(string.printable.strip() + "\n\u2581àçäéëïØå日本")
    else:
        tok = tokenizers.Tokenizer(models.BPE())
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "prefix_space")
        tok.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(_CORPUS, trainer)
    if kind in ("byte_level_bos", "metaspace"):
        tok.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    elif kind == "byte_level_eos":
        tok.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    else:
        tok.post_processor = processors.ByteLevel(trim_offsets=False)
    names = dict(pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>" if kind == "metaspace" else None)
    return PreTrainedTokenizerFast(tokenizer_object=tok, **names)


TRAINED = ("byte_level_bpe", "llama2", "unigram")
TEXTS = {
    "Chinese": ["中国的首都是北京。", "日本的首都是东京。", "北京大学在北京。", "他说“东京是日本的首都”。", "奥运会于2008年在北京举行！"],
    "Japanese": ["日本の首都は東京です。", "東京タワーは東京にあります。", "京都は古い都です。", "「東京」と言いました。"],
    "Thai": ["เมืองหลวงของประเทศไทยคือกรุงเทพมหานคร", "กรุงเทพเป็นเมืองหลวง", "เชียงใหม่อยู่ในประเทศไทย"],
    "Korean": ["대한민국의 수도는 서울 입니다.", "서울은 큰 도시 입니다.", "부산은 항구 도시 입니다."],
    "Arabic": ["عاصمة مصر هي القاهرة.", "القاهرة مدينة كبيرة.", "هل القاهرة في مصر؟"],
    "Hindi": ["भारत की राजधानी दिल्ली है।", "दिल्ली एक बड़ा शहर है।", "मुंबई भारत में है।"],
    "Catalan": ["La ciutat de l'Alguer és a Sardenya.", "Viu a l’Alguer, la capital de l'illa.",
                "Parla d'Alacant i de l'Alguer."],
}


@functools.cache
def trained_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer trained on TEXTS and the words of the tiny ones; at most 900 tokens.

    byte_level_bpe: GPT-2's way, with a merge for whatever is frequent. llama2: as Llama 2's, a BPE over a whole text with "▁"
    for spaces and in front, bytes for unknown characters, and a decoder that strips the space in front. unigram:
    SentencePiece's other model, as in T5 and mBART.
    """
    corpus, specials = [text for texts in TEXTS.values() for text in texts * 8] + _CORPUS, ["<unk>", "<bos>", "<eos>"]
    if kind == "byte_level_bpe":
        tok = tokenizers.Tokenizer(models.BPE())
        tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        tok.train_from_iterator(corpus, trainers.BpeTrainer(
            vocab_size=700, special_tokens=specials, show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
        return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>")
    if kind == "unigram":
        tok = tokenizers.Tokenizer(models.Unigram())
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        tok.decoder = decoders.Metaspace(prepend_scheme="always")
        tok.train_from_iterator(corpus, trainers.UnigramTrainer(
            vocab_size=600, special_tokens=specials, unk_token="<unk>", show_progress=False))
    else:
        plain = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
        plain.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # words for training alone
        plain.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=sorted(
            string.ascii_letters + string.digits + string.punctuation + "\u2581")))
        state = json.loads(plain.to_str())["model"]
        pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(state["vocab"], key=state["vocab"].get)]
        tok = tokenizers.Tokenizer(models.BPE(
            {piece: i for i, piece in enumerate(pieces)}, [tuple(merge) for merge in state["merges"]],
            unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tok.normalizer = plain.normalizer
        tok.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                         decoders.Strip(" ", 1, 0)])
    tok.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    names = dict(bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<eos>")
    return PreTrainedTokenizerFast(tokenizer_object=tok, **names)


def taught(model, rows, steps: int = 300):
    """The model, trained until each row's target tokens are the likeliest ones. rows: (prompt, target) ids."""
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    with torch.enable_grad():
        for _ in range(steps):
            right, loss = True, 0.0
            for prompt, target in rows:
                logits = model(torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1:-1]
                loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(target))
                right &= logits.argmax(-1).tolist() == list(target)
            if right:
                return model.eval()
            adam.zero_grad()
            loss.backward()
            adam.step()
    raise AssertionError("the model has not learned its rows")
