"""A few of the bad inputs that ``python -m tests.fuzz --cases N`` makes thousands of."""

from tests.fuzz import run


def test_bad_inputs(tmp_path):
    outcomes, failures = run(240, 0, tmp_path)
    assert not failures
    assert sum(count for (_, outcome), count in outcomes.items() if outcome == "refused") > 120
