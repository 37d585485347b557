"""Fingerprints tell models apart, and nothing but models."""

import torch

from editors.core.fingerprint import model_fingerprint
from tests.models import tiny_model


def test_same_weights_same_fingerprint_for_any_number_of_threads():
    model, before = tiny_model("llama"), torch.get_num_threads()
    big = torch.nn.Linear(1500, 1500, dtype=torch.float32)
    try:
        prints = set()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            prints.add((model_fingerprint(model), model_fingerprint(big)))
    finally:
        torch.set_num_threads(before)
    assert len(prints) == 1
    assert model_fingerprint(tiny_model("llama")) == model_fingerprint(model)


def test_one_changed_bit_changes_it():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        model = tiny_model("gpt2").to(dtype)
        before = model_fingerprint(model)
        with torch.no_grad():
            weight = model.transformer.h[1].mlp.c_proj.weight
            weight[3, 5] = torch.nextafter(weight[3, 5].float() + 0.01, torch.tensor(9.0)).to(dtype)
        assert model_fingerprint(model) != before
    assert model_fingerprint(tiny_model("gpt2", seed=1)) != model_fingerprint(tiny_model("gpt2"))
