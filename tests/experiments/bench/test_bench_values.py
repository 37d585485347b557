"""The benchmark of target states compares what it says it compares."""

import pytest

from experiments.bench import solve, values


@pytest.mark.parametrize("layer", ["0", "1"])
def test_both_ways_give_the_same_states(capsys, layer):
    result = values.main(["--tiny", "--requests", "2", "--layer", layer, "--threads", "1"])
    assert result["difference"] < values.TOLERANCE and result["ratio"] > 0
    assert "ratio" in capsys.readouterr().out


@pytest.mark.parametrize(("main", "words", "message"), [
    (values.main, ["--tiny", "--layer", "99"], "the model has blocks 0 to"),
    (values.main, ["--requests", "0"], "a whole number from 1"),
    (solve.main, ["--weight", "-1"], "a number above 0"),
])
def test_mistakes(capsys, main, words, message):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    error, = capsys.readouterr().err.splitlines()
    assert message in error
