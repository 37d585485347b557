"""The benchmark of statistics compares what it says it compares."""

import pytest
import torch

from editors.core.decoder import Decoder
from editors.core.sites import find_sites
from experiments.bench import __main__ as bench
from experiments.bench import stats
from experiments.bench.inputs import TINY, random_gpt2, word_tokenizer


def test_both_ways_give_the_same_moments(capsys):
    result = stats.main(["--tiny", "--texts", "120", "--repeats", "1", "--layers", "4,5,6", "--threads", "1"])
    assert result["difference"] < 1e-6 and result["ratio"] > 0
    assert "ratio" in capsys.readouterr().out


def test_different_moments_are_not_passed_over(monkeypatch):
    one_pass = stats._one_pass
    monkeypatch.setattr(stats, "_one_pass", lambda *args: {layer: m * 1.00001 for layer, m in one_pass(*args).items()})
    with pytest.raises(SystemExit, match="differ by more than"):
        stats.main(["--tiny", "--texts", "10", "--repeats", "1"])


def test_plain_loop_reads_every_token_once():
    model, tok = random_gpt2(TINY, 0), word_tokenizer(300)
    texts = stats._made_up_texts(130, TINY, 0)
    keys = []
    hook = model.transformer.h[2].mlp.c_proj.register_forward_pre_hook(lambda module, args: keys.append(args[0][0]))
    sites = find_sites(model)
    keys.clear()
    with torch.no_grad():
        for text in texts:
            model(input_ids=torch.tensor([tok(text)["input_ids"][:64]]))
        hook.remove()
        keys = torch.cat(keys)
        plain = stats._plain_pass(Decoder(model, tok, sites), texts, 2)
        assert torch.allclose(plain, keys.T @ keys / len(keys), rtol=1e-4, atol=1e-9)


def test_parts_are_chosen_by_name(capsys):
    bench.main(["stats", "--tiny", "--texts", "10", "--repeats", "1"])
    assert "ratio" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        bench.main(["stat"])
    assert caught.value.code == 2 and "invalid choice: 'stat'" in capsys.readouterr().err
