"""Prompts read once, and continued from their cache, give what a pass over the whole text gives: on every architecture."""

import copy
import random

import pytest
import torch
from models import ARCHITECTURES, VOCABULARY, tiny_model
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from editors.core.prompts import encode_target, prompt_ids
from experiments.metrics import incremental
from experiments.metrics.scoring import Plan, ask, compare


@pytest.fixture(scope="module")
def tok():
    words = Tokenizer(token_models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w0")


PROMPTS = [(5, 9, 7), (11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22), (30,), (5, 9, 7, 8)]
TARGETS = [(40,), (41, 42), (43, 44, 45, 46)]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_equal_to_a_pass_over_the_whole_text(arch, tok):
    model = tiny_model(arch)
    plan = Plan()
    for i, prompt in enumerate(PROMPTS):
        for target in TARGETS[i % 2:]:
            plan.score(prompt, target)
        if i != 2:
            plan.generate(prompt, TARGETS[i % 3])
    answers = ask(model, tok, plan)
    assert len(answers.scores) == 10 and len(answers.texts) == 3
    for (prompt, target), score in answers.scores.items():
        with torch.no_grad():
            logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1:-1]
        assert score.nll == pytest.approx(-logits.log_softmax(-1)[range(len(target)), target].mean().item(), rel=1e-4)
        assert score.predicted == tuple(logits.argmax(-1).tolist())
    for prompt, text in answers.texts.items():
        ids = list(prompt)
        for word in text.split():
            with torch.no_grad():
                assert f"w{model(torch.tensor([ids])).logits[0, -1].argmax()}" == word
            ids.append(int(word[1:]))


def test_generation_ends_with_the_end_token(tok):
    model = tiny_model("gpt2")
    plan = Plan()
    plan.generate(PROMPTS[0], TARGETS[0])
    words = ask(model, tok, plan).texts[PROMPTS[0]].split()
    assert len(words) == 5
    model.generation_config.eos_token_id = int(words[2][1:])
    assert ask(model, tok, plan).texts[PROMPTS[0]].split()[:2] == words[:2]
    assert len(ask(model, tok, plan).texts[PROMPTS[0]].split()) == words.index(words[2]) + 1


def test_too_long_and_empty_prompts_are_errors(tok):
    model = tiny_model("gpt2")
    plan = Plan()
    plan.score(tuple(range(127)), (1, 2))
    with pytest.raises(UserError, match="129 tokens, more than the model's 128 positions"):
        ask(model, tok, plan)
    plan = Plan()
    plan.score((), (1, 2))
    with pytest.raises(UserError, match="tokenises to nothing"):
        ask(model, tok, plan)


def test_generation_stays_within_the_model_positions(tok):
    model = tiny_model("gpt2")
    plan = Plan()
    plan.generate(tuple(range(10, 136)), (1,))
    assert len(ask(model, tok, plan).texts[tuple(range(10, 136))].split()) == 2


@pytest.mark.parametrize(("predicted", "target", "expected"), [
    (" Paris.", "Paris", (True, True)),
    (" Paris", "Paris", (True, True)),
    (" Paris\nIt", " Paris", (True, True)),
    (' Paris." She', "Paris", (True, True)),
    (" Paris, which is", "Paris", (False, True)),
    (" Paris and", "Paris", (False, True)),
    (" Paris.5", "Paris", (False, True)),
    (" Parisian.", "Paris", (False, False)),
    (" New Paris.", "Paris", (False, False)),
    (" paris.", "Paris", (False, False)),
    (" Washington, D.C. It", "Washington, D.C.", (True, True)),
    (" Washington, D.C.", "Washington, D.C.", (True, True)),
    ("", "Paris", (False, False)),
])
def test_compare(predicted, target, expected):
    assert compare(predicted, target) == expected


def test_a_bos_stands_before_the_prompt_once(tok):
    tok = copy.deepcopy(tok)
    tok.bos_token, tok.eos_token = "w1", "w2"
    tok.backend_tokenizer.post_processor = TemplateProcessing(single="w1 $A w2", special_tokens=[("w1", 1), ("w2", 2)])
    assert prompt_ids(tok, "w5 w9") == (1, 5, 9)
    assert encode_target(tok, " w7 w8") == [7, 8]


def test_batches_hold_every_row_once_with_little_padding():
    model = tiny_model("gpt2")
    rng = random.Random(0)
    rows = [(0,) * rng.choice([3, 4, 5, 9, 10, 40]) for _ in range(500)]
    groups = incremental.batches(model, rows)
    assert sorted(i for group in groups for i in group) == list(range(500))
    for group in groups:
        widths = [len(rows[i]) for i in group]
        assert len(group) * max(widths) <= incremental.token_budget(model)
        assert len(group) * max(widths) - sum(widths) <= max(64, len(group) * max(widths) // 8)
    assert len(groups) < 15
    assert incremental.batches(model, []) == []
