"""The benchmark of learned editors compares what it says it compares."""

import pytest
import torch

from experiments.bench import learned

TINY = ["--tiny", "--edits", "6", "--rank", "4", "--side_by_side", "4", "--repeats", "1", "--tokens", "8"]


def test_all_ways_give_the_same_answers(capsys):
    result = learned.main([*TINY, "--threads", "1"])
    assert result["difference"] < 1e-4 and result["factors"] > 0 and "edits/s" in capsys.readouterr().out


def test_different_answers_are_not_passed_over(monkeypatch):
    monkeypatch.setattr(learned, "_answers", lambda logits: logits[:, -1] * torch.rand(1))
    with pytest.raises(SystemExit, match="differ by more than"):
        learned.main(TINY)
