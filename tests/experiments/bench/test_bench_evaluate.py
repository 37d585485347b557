"""The benchmark of the metrics compares like with like."""

import pytest

from experiments.bench import evaluate


def test_both_ways_agree(capsys):
    result = evaluate.main(["--tiny", "--cases", "4", "--repeats", "1"])
    assert result["difference"] < evaluate.TOLERANCE
    assert "ratio:" in capsys.readouterr().out


def test_a_difference_is_found(monkeypatch):
    plain = evaluate._plain_case
    def wrong(model, tok, record):
        result = plain(model, tok, record)
        result["neighborhood_prompts_probs"][9]["target_true"] *= 1.001
        return result
    monkeypatch.setattr(evaluate, "_plain_case", wrong)
    with pytest.raises(SystemExit, match="differ"):
        evaluate.main(["--tiny", "--cases", "2", "--repeats", "1"])
