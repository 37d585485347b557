"""The perplexity of a stream equals that of a plain loop over its windows."""

import math

import pytest
import torch

from common.errors import UserError
from editors.core.corpus import find_corpus
from experiments.metrics.perplexity import stream_ids, stream_perplexity
from experiments.run.models import load_model


def plain_loop(model, ids, length, stride):
    total, scored = 0.0, 1
    for start in range(0, len(ids), stride):
        end = min(start + length, len(ids))
        row = torch.tensor([ids[start:end]])
        with torch.no_grad():
            log_p = model(row).logits[0].log_softmax(-1)
        for place in range(scored, end):
            total -= log_p[place - 1 - start, ids[place]].item()
        scored = end
        if end == len(ids):
            break
    return math.exp(total / (len(ids) - 1))


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_gptj"])
@pytest.mark.parametrize("length, stride", [(32, None), (32, 31), (32, 5), (1000, 16), (10, 1)])
def test_equal_to_a_plain_loop(name, length, stride, request, golden):
    model, tok = request.getfixturevalue(name)
    ids = stream_ids(tok, find_corpus(str(golden / "corpus.jsonl")), 150)
    assert len(ids) == 150
    own = min(length, model.config.n_positions)
    measured = stream_perplexity(model, tok, ids, length, stride)
    assert measured.tokens == 150
    assert measured.perplexity == pytest.approx(plain_loop(model, ids, own, stride or own // 2), rel=1e-4)


def test_one_stream(tiny_gpt2, tmp_path):
    _, tok = tiny_gpt2
    lines, objects = tmp_path / "lines.txt", tmp_path / "objects.jsonl"
    text = " \n = Orla Venn = \n \n Orla Venn lives in Grauwald . \n"
    lines.write_text(text)
    objects.write_text('{"text": "Orla Venn"}\n\n{"text": "lives in Grauwald."}\n')
    assert "".join(find_corpus(str(lines)).stream()) == text
    assert list(stream_ids(tok, find_corpus(str(lines)))) == tok(text).input_ids
    assert list(stream_ids(tok, find_corpus(str(objects)))) == tok("Orla Venn\n\nlives in Grauwald.").input_ids
    assert list(stream_ids(tok, find_corpus(str(lines)), 3)) == tok(text).input_ids[:3]


def test_mistakes(tiny_gpt2, tmp_path):
    model, tok = tiny_gpt2
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(UserError, match="two tokens"):
        stream_ids(tok, find_corpus(str(tmp_path / "short.txt")))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 and more\n")
    with pytest.raises(UserError, match="not UTF-8"):
        stream_ids(tok, find_corpus(str(tmp_path / "latin.txt")))
    with pytest.raises(ValueError, match="unscored"):
        stream_perplexity(model, tok, [1, 2, 3], 8, 8)


@pytest.mark.slow
def test_as_is_usual_of_a_real_model(realdata):
    try:
        model, tok = load_model("smollm2")
    except UserError as error:
        pytest.skip(str(error))
    ids = stream_ids(tok, find_corpus(str(realdata / "wikitext2" / "test.txt")), 4096)
    assert stream_perplexity(model, tok, ids).perplexity < 50
