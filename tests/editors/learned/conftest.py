"""Fixtures: outputs of the published learned editors, and the tiny models that they are of."""

import functools
import json

import numpy as np
import pytest
import torch

from editors.learned.classifier import BertClassifier
from tests.conftest import GOLDEN, relative

LEARNED = GOLDEN / "learned"
CLASSES = {"gpt2": "GPT2LMHeadModel", "t5": "T5ForConditionalGeneration", "bart": "BartForConditionalGeneration",
           "blender": "BlenderbotSmallForConditionalGeneration"}


@functools.cache
def learned_model(name: str, attention: str = "sdpa"):
    """A golden model in float32, frozen. Never changed by a test."""
    import transformers

    path, options = LEARNED / "models" / name, {"attn_implementation": attention, "dtype": torch.float32}
    kind = name.split("-")[0]
    if kind == "bert":
        model = BertClassifier.from_pretrained(path, attn_implementation=attention)
    else:
        model = getattr(transformers, CLASSES[kind]).from_pretrained(path, **options)
    return model.eval().requires_grad_(False)


def arrays(name: str):
    """(arrays, description) of a golden file."""
    if not (LEARNED / f"{name}.npz").is_file():
        pytest.skip(f"golden {name} is not beside this checkout")
    return np.load(LEARNED / f"{name}.npz"), json.loads((LEARNED / f"{name}.json").read_text())


def batch(ids: dict) -> dict:
    """A batch's tensors from their lists."""
    return {name: torch.tensor(rows) for name, rows in ids.items()}


def episode(batches: dict):
    """An Episode of golden batches; their rows belong to the edits in order."""
    from editors.learned.episode import Episode

    parts = {name: batch(ids) for name, ids in batches.items()}
    n = len(parts["edit_outer"]["input_ids"])
    return Episode(parts["edit_inner"], parts["edit_outer"], parts["loc"], parts.get("cond", {}),
                   torch.arange(n)[:, None].expand(n, 2))


def check_logits(logits, z, key, tolerance=1e-5):
    """Compares logits with their stored digest."""
    logits = logits.detach()
    if key in z:
        assert relative(logits, z[key]) < tolerance
    else:
        assert relative(logits[..., ::32], z[f"{key}/every32"]) < tolerance
        assert relative(logits.logsumexp(-1), z[f"{key}/lse"]) < tolerance
