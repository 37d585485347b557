"""Whether a model may be run with padding on the left and from a cache is tried on the model itself."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

import editors
from common.errors import UserError
from editors.core.batching import Batching, batching, check_continues
from experiments.metrics.incremental import continue_rows, extend, read
from experiments.metrics.scoring import ask, Plan
from tests.models import ARCHITECTURES, tiny_model, tiny_tokenizer

_SIZES = dict(vocab_size=320, hidden_size=32, num_hidden_layers=4, bos_token_id=1, eos_token_id=2, pad_token_id=0)
_MODERN = dict(_SIZES, num_attention_heads=4, num_key_value_heads=2, intermediate_size=56)
_MAMBA2 = dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=4)
RECURRENT = {
    "MambaConfig": dict(_SIZES, state_size=8),
    "Mamba2Config": dict(_SIZES, state_size=8, num_heads=8, head_dim=8, n_groups=2, chunk_size=4),
    "RwkvConfig": dict(_SIZES, attention_hidden_size=32, context_length=64),
    "JambaConfig": dict(_MODERN, num_experts=2, mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False, attn_layer_period=2,
                        attn_layer_offset=1),
    "FalconH1Config": dict(_MODERN, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1,
                           mamba_chunk_size=4),
    "Qwen3NextConfig": dict(_MODERN, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
                            linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
                            shared_expert_intermediate_size=16),
    "BambaConfig": dict(_MODERN, **_MAMBA2, attn_layer_indices=[1, 3]),
    "RecurrentGemmaConfig": dict(_MODERN, lru_width=32, attention_window_size=6, head_dim=8),
    "OpenAIGPTConfig": dict(vocab_size=320, n_embd=32, n_layer=4, n_head=4, n_positions=64),
}


def recurrent(name, **more):
    config = getattr(transformers, name)(**RECURRENT[name], **more)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_attention_alone_allows_everything(arch):
    assert batching(tiny_model(arch)) == Batching(True, True, True)
    assert batching(tiny_model(arch).to(torch.bfloat16)) == Batching(True, True, True)


@pytest.mark.parametrize("name", RECURRENT)
def test_metrics_equal_a_plain_loop(name):
    """Scores and continuations do not depend on what else is in the batch, and are those of rows read alone."""
    model, tok = recurrent(name), tiny_tokenizer()
    assert not batching(model).continues and batching(model).right
    prompts = [(5, 30, 77), (9, 200, 14, 61, 90, 33, 7), (88,), (12, 13, 14)]
    targets = [(41, 17), (100,), (60, 61, 62, 63), (5, 6)]
    plan = Plan()
    for prompt, target in zip(prompts, targets):
        plan.score(prompt, target)
        plan.generate(prompt, target)
    answers = ask(model, tok, plan)
    for prompt, target in zip(prompts, targets):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        nll = -logits[range(len(target)), target].mean()
        score = answers.scores[prompt, target]
        assert abs(score.nll - nll) < 1e-4 * nll and score.predicted == tuple(logits.argmax(-1).tolist())


def test_reading_anew_equals_the_cache(monkeypatch):
    model = tiny_model("llama")
    rows, tokens, mask = [[5, 6, 7], [9]], torch.tensor([[3, 4], [8, 0]]), torch.tensor([[1, 1], [1, 0]])

    def all_of_it():
        prefix, logits = read(model, rows, 0)
        both = prefix.select([1, 0])
        more = extend(model, both, tokens, mask)
        new = continue_rows(model, prefix.select([0, 1, 1]), logits[[0, 1, 1]], lambda x, *_: x.argmax(-1),
                            lambda row, ids: len(ids) > 3 + row)
        return logits, more[mask == 1], new

    cached = all_of_it()
    monkeypatch.setattr("experiments.metrics.incremental.continues", lambda model: False)
    anew = all_of_it()
    torch.testing.assert_close(anew[:2], cached[:2], rtol=1e-4, atol=1e-5)
    assert anew[2] == cached[2]


def test_what_needs_a_cache_ends_in_one_line():
    model = recurrent("JambaConfig")
    with pytest.raises(UserError, match="JambaForCausalLM goes on from no key/value cache .* an edit by X would be wrong"):
        check_continues(model, "an edit by X")
    with pytest.raises(UserError, match="RwkvForCausalLM reads padding into its states"):
        check_continues(recurrent("RwkvConfig"), "an edit by X")
    requests = [{"prompt": "{} plays", "subject": "Orla Venn", "target_new": {"str": "chess"}}]
    rome = editors.load("ROME", {"layers": [1], "fact_token": "subject_last", "v_num_grad_steps": 1, "v_lr": 0.5,
                                 "v_loss_layer": 3, "v_weight_decay": 0.5, "clamp_norm_factor": 4, "kl_factor": 0.06,
                                 "mom2_adjustment": False, "mom2_dataset": "x", "mom2_n_samples": 1,
                                 "context_template_length_params": [[5, 1]]})
    with pytest.raises(UserError, match="an edit by ROME would be wrong"):
        rome.edit(model, tiny_tokenizer(), requests)
    name = next(name for name, _ in model.named_modules() if name.endswith("layers.1.feed_forward"))
    ft = editors.load("FT", {"layers": [1], "rewrite_module_tmp": name.replace(".1.", ".{}."), "num_steps": 1, "lr": 1e-3,
                             "weight_decay": 0, "norm_constraint": False})
    assert ft.edit(model, tiny_tokenizer(), requests).deltas()


def test_models_that_are_no_decoders():
    config = transformers.BertConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                     intermediate_size=56)
    with pytest.raises(UserError, match="is no decoder"):
        batching(AutoModelForCausalLM.from_config(config).eval())
