"""With end_of_text the end of the text is part of the target, and an answer stops behind it."""

import copy
import json
from pathlib import Path

import pytest
import torch

import data
import editors
from common.errors import UserError
from data.world import corpus_path
from editors.core.prompts import encode_target, parse_requests, prompt_ids, Request
from editors.core.value_rows import TokenisedRequest
from editors.heads.training import Settings, _FactRows
from editors.tuned.ft import _FTBatch
from experiments.run.models import load_model
from tests.models import tiny_model, tiny_tokenizer

HPARAMS = Path(__file__).resolve().parents[2] / "hparams"
REQUEST = Request("{} lives in", "Orla Venn", " Lutmere")


def test_ids():
    tok = tiny_tokenizer()
    ids = encode_target(tok, REQUEST.target_new, REQUEST.text)
    ended = [*ids, tok.eos_token_id]
    assert REQUEST.target_ids(tok) == ids and REQUEST.target_ids(tok, end_of_text=True) == ended
    for target_tokens in ("ids", "text"):
        built = TokenisedRequest.build(tok, 0, REQUEST, "subject_last", ["{}"], "{} is a", target_tokens, end_of_text=True)
        assert built.target == ended and built.rows == [[*prompt_ids(tok, REQUEST.text), *ids]]
    settings = Settings(lr=1, clamp=1, weight_decay=0, kl_factor=0, kl_prompt="{} is a", fact_token="subject_last",
                        end_of_text=True)
    facts = _FactRows.build(tok, REQUEST, ["{}"], "{} is a", settings)
    assert facts.target == ended and facts.rows == [[*prompt_ids(tok, REQUEST.text), *ids]]


def test_a_tokenizer_without_an_end():
    tok = copy.deepcopy(tiny_tokenizer())
    tok.eos_token = None
    with pytest.raises(UserError, match="end_of_text: the tokenizer has no end-of-text token"):
        REQUEST.target_ids(tok, end_of_text=True)
    assert REQUEST.target_ids(tok)


def test_loss_of_fine_tuning():
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    requests = [REQUEST, Request("The mother tongue of {} is", "Zoë", " Lutmere and Nyvian")]
    losses = []
    for request in requests:
        prompt, target = list(prompt_ids(tok, request.text)), request.target_ids(tok)
        log_p = model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
        of_tokens = [log_p[len(prompt) - 1, token] for token in target] + [log_p[-1, tok.eos_token_id]]
        losses.append(-sum(of_tokens) / len(of_tokens))
    loss = _FTBatch.build(tok, requests, torch.device("cpu"), ended=True).loss(model)
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


@pytest.mark.parametrize("alg_name", ["ROME", "MEMIT", "FT"])
def test_answers_end(alg_name, tmp_path):
    """The end of the text is likelier behind the targets of the world's facts, all together."""
    model, tok = load_model("world")
    requests = [record.request() for record in data.load("world", limit=4)]
    settings = json.loads((HPARAMS / alg_name / "world.json").read_text())
    if "mom2_dataset" in settings:
        settings |= {"mom2_dataset": str(corpus_path(tmp_path)), "mom2_n_samples": 1000}
    chances = []
    for end_of_text in (False, True):
        editor = editors.load(alg_name, settings | {"end_of_text": end_of_text})
        with editor.edit(model, tok, requests, progress=False).applied(model):
            chances.append([end_chance(model, tok, request) for request in parse_requests(requests, tok)])
    published, ended = (sum(of_requests) for of_requests in chances)
    assert ended > 10 * published


def end_chance(model, tok, request):
    row = [*prompt_ids(tok, request.text), *request.target_ids(tok)]
    with torch.no_grad():
        return model(torch.tensor([row])).logits[0, -1].softmax(-1)[tok.eos_token_id].item()
