"""What a model makes of targets equals a plain pass over prompt and target, for every kind of decoder and tokenizer."""

import warnings

import pytest
import torch

import editors
from editors.core.prompts import parse_requests, prompt_ids
from editors.core.recall import recall, TargetNotReached
from tests.models import ARCHITECTURES, tiny_model, tiny_tokenizer

FACTS = [{"prompt": "{} works as a", "subject": subject, "target_new": {"str": target}}
         for subject, target in (("Tamsin Brackholt", "native city"), ("Orla", "clock"), ("Orla", "clockmaker"))]
FACTS += [{"prompt": "The native language of {} is", "subject": "Orla Venn", "target_new": {"str": "N"}}]
HPARAMS = {"layers": [1], "num_steps": 1, "lr": 1e-8, "norm_constraint": False, "weight_decay": 0}


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "granite", "gpt_oss"])
def test_equals_a_plain_pass(arch):
    model, tok = tiny_model(arch), tiny_tokenizer("byte_level_bos")
    requests = parse_requests(FACTS, tok)
    told = recall(model, tok, requests)
    for request, probability, said in zip(requests, told.probability, told.said):
        prompt, target = list(prompt_ids(tok, request.text)), request.target_ids(tok)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        log_p = logits.log_softmax(-1)[range(len(target)), target].sum()
        assert probability == pytest.approx(float(log_p.exp()), rel=1e-3)
        assert said == (logits.argmax(-1).tolist() == target)


def test_targets_that_are_not_reached_are_named():
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    with pytest.warns(TargetNotReached, match=r"4 of 4 targets were not reached.*'Tamsin Brackholt works as a native city' "
                                              r"\(probability .*, \.\.\.$"):
        edit = editors.load("FT", HPARAMS).edit(model, tok, FACTS)
    assert edit.info["reached"] == [False] * 4 and all(0 <= p < 1 for p in edit.info["target_probability"])


def test_targets_that_are_reached_are_not():
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error", TargetNotReached)
        edit = editors.load("FT", HPARAMS | {"num_steps": 60, "lr": 0.05}).edit(model, tok, [FACTS[3] | {"target_new": "the"}])
    assert edit.info["reached"] == [True] and edit.info["target_probability"][0] > 0.01


def test_contradictions_are_told():
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    line = "requests 1 and 2 continue 'Orla works as a' by ' clock' and by ' clockmaker': the model can say one at the most"
    with pytest.warns(UserWarning, match=line):
        editors.load("FT", HPARAMS).edit(model, tok, FACTS)
