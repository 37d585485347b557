"""Context templates are seeded, belong to one model, and leave the global random state alone."""

import copy
import random

import numpy as np
import pytest
import torch

from common.errors import UserError
from editors.core import contexts
from editors.core.contexts import MEMIT_STARTS, as_groups, context_templates
from editors.core.prompts import tokenize
from tests.models import ARCHITECTURES, TOKENIZERS, tiny_model, tiny_tokenizer


def fresh(kind="memit", arch="gpt2", tokenizer="byte_level", seed=0, model_seed=0, **options):
    return context_templates(tiny_model(arch, seed=model_seed), tiny_tokenizer(tokenizer), kind, seed=seed, **options)


def well_formed(groups):
    return all(t.count("{}") == t.count("{") == t.count("}") == 1 and t == t.strip() for group in groups for t in group)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_memit_groups(kind):
    groups = fresh(tokenizer=kind)
    assert groups[0] == ["{}"] and len(groups) == 2 and well_formed(groups)
    assert all(t.startswith(start) and t.endswith(". {}") for t, start in zip(groups[1], MEMIT_STARTS, strict=True))
    assert not any(special in t for t in groups[1] for special in ("<bos>", "<eos>", "<pad>"))


def test_rome_list():
    groups = fresh("rome")
    assert len(groups) == 1 and groups[0][0] == "{}" and len(groups[0]) == 21 and well_formed(groups)
    assert all(t.endswith(". {}") for t in groups[0][1:]) and len(set(groups[0])) > 10
    assert len(fresh("rome", length_params=[[4, 3], [8, 2]])[0]) == 6


def test_same_seed_same_texts():
    assert fresh(seed=1) == fresh(seed=1) != fresh(seed=2)
    assert fresh("rome", seed=1) == fresh("rome", seed=1) != fresh("rome", seed=2)


def test_global_random_states_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = fresh()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    torch.manual_seed(99)
    assert fresh() == first


def test_kept_for_each_model():
    """Sampled once a model, kind and seed, even when the weights change; another model has its own texts."""
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    groups = context_templates(model, tok, "memit")
    with torch.no_grad():
        model.transformer.wte.weight.mul_(-1)
    assert context_templates(model, tok, "memit") == groups != fresh(model_seed=1)
    groups[1].clear()  # the caller's copy
    assert len(context_templates(model, tok, "memit")[1]) == 5


@pytest.mark.parametrize("kind", ["memit", "rome"])
def test_kept_for_each_tokenizer(kind):
    """A model that is used with another tokenizer, or another BOS, gets the texts of that one."""
    model, tok = tiny_model("gpt2"), tiny_tokenizer("byte_level")
    contexts = [context_templates(model, tok, kind)]
    contexts.append(context_templates(model, tiny_tokenizer("metaspace"), kind))
    assert contexts[0] != contexts[1] == fresh(kind, tokenizer="metaspace")
    assert context_templates(model, copy.deepcopy(tok), kind) == contexts[0]
    if kind == "rome":
        other = copy.deepcopy(tok)
        other.bos_token = other.convert_ids_to_tokens(40)
        assert context_templates(model, other, kind) != contexts[0]


def test_contexts_longer_than_the_model():
    assert len(fresh("rome", length_params=[[128, 1]])[0]) == 2
    with pytest.raises(UserError, match="contexts of 129 tokens can't be sampled: the model has 128 positions"):
        fresh("rome", length_params=[[5, 1], [129, 1]])


@pytest.mark.parametrize("arch", ARCHITECTURES)
@torch.no_grad()
def test_every_token_is_one_of_the_five_likeliest(arch):
    """Against full passes without a cache: starts are kept, unequal as they are, and what follows is top-5."""
    model = tiny_model(arch).train()
    starts = [[1, 7, 9], [1, 8], [1, 30, 31, 32, 33], [1]]
    ids = contexts._sample(model, starts, 10, torch.Generator().manual_seed(0))
    assert ids.shape == (4, 10) and model.training
    model.eval()
    for row, start in zip(ids.tolist(), starts):
        assert row[: len(start)] == start
        logits = model(torch.tensor([row])).logits[0]
        for position in range(len(start), 10):
            assert row[position] in logits[position - 1].topk(contexts.TOP_K).indices


def test_sampling_follows_the_models_probabilities():
    """Frequencies of the first token of 4,000 rows, against softmax over the five likeliest logits."""
    model = tiny_model("gpt2")
    ids = contexts._sample(model, [[1, 5]] * 4000, 3, torch.Generator().manual_seed(0))
    likeliest, tokens = model(torch.tensor([[1, 5]])).logits[0, -1].detach().topk(5)
    shares = (ids[:, 2:] == tokens).double().mean(0)
    assert (shares - likeliest.softmax(-1)).abs().max() < 0.03


@pytest.mark.parametrize("tokenizer", ["byte_level", "byte_level_bos"])
def test_lengths_count_every_token(tokenizer, monkeypatch):
    """10 tokens with start and BOS for MEMIT; a BOS and length - 1 tokens for ROME, never a second BOS."""
    sampled, sample = [], contexts._sample
    monkeypatch.setattr(contexts, "_sample", lambda *args: sampled.append(sample(*args)) or sampled[-1])
    fresh("memit", tokenizer=tokenizer)
    fresh("rome", tokenizer=tokenizer)
    tok = tiny_tokenizer(tokenizer)
    assert [tuple(ids.shape) for ids in sampled] == [(5, 10), (10, 5), (10, 10)]
    for row, start in zip(sampled[0].tolist(), tokenize(tok, MEMIT_STARTS)):
        assert row[: len(start[0])] == start[0] and (row[0] == tok.bos_token_id) == (tokenizer == "byte_level_bos")
    assert all((ids[:, 0] == tok.bos_token_id).all() for ids in sampled[1:])


def test_braces_and_line_breaks_become_spaces():
    tok = tiny_tokenizer()
    ids = torch.tensor([tok("The {x}\n\ncity{}", add_special_tokens=False)["input_ids"] + [tok.eos_token_id]])
    assert contexts._templates(tok, ids) == ["The x city. {}"]
    assert contexts._templates(tok, ids, as_it_is=True) == ["The  x \n\ncity  . {}"]


def test_start_longer_than_the_length_is_kept_whole():
    ids = contexts._sample(tiny_model("gpt2"), [list(range(5, 17)), [1]], 10, torch.Generator().manual_seed(0))
    assert ids.shape == (2, 12) and ids[0].tolist() == list(range(5, 17))


def test_broken_model_and_tokenizer_without_start():
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="logits are not finite"):
        context_templates(model, tiny_tokenizer(), "memit")

    class Bare:
        bos_token_id = eos_token_id = None

    with pytest.raises(UserError, match="neither a BOS nor an EOS"):
        context_templates(tiny_model("gpt2"), Bare(), "rome")


def test_mistaken_arguments():
    with pytest.raises(UserError, match="unknown kind of context templates 'emmet'; known: memit, rome"):
        fresh("emmet")
    for params in ([[5]], [[5, 0]]):
        with pytest.raises(UserError, match="length_params must be pairs"):
            fresh("rome", length_params=params)


def test_groups_of_given_templates():
    assert as_groups(["{}", "So. {}"]) == [["{}", "So. {}"]]
    assert as_groups([["{}"], ("So. {}", "{x} {}")]) == [["{}"], ["So. {}", "{x} {}"]]


@pytest.mark.parametrize("templates, message", [
    ("{}", "must be a list of texts"),
    ([], "must be a list of texts"),
    (["{}", ["So. {}"]], "mix texts and lists"),
    ([["{}"], []], "hold an empty list"),
    ([["{}", 5]], "context template 5 is not a text"),
    (["{}", "So."], r"'So.' has 0 '{}' and needs exactly one"),
    (["{} {}"], "has 2 '{}' and needs exactly one"),
])
def test_mistaken_templates(templates, message):
    with pytest.raises(UserError, match=message):
        as_groups(templates)
