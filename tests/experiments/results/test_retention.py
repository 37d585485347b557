"""Curves of sequential editing, against numbers computed by hand."""

import math

import numpy as np
import pytest

from experiments.results import retention


def test_buckets_of_five_drop_the_tail():
    edits, means = retention.bucket_means([1, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1])
    assert edits.tolist() == [5, 10] and means.tolist() == pytest.approx([0.6, 0.2])
    assert retention.bucket_means([1, 0, 1])[1].size == 0


def test_buckets_pass_over_what_is_missing():
    _, means = retention.bucket_means([None, 1, 0, None, None, None], 3)
    assert means[0] == 0.5 and math.isnan(means[1])


def test_the_moving_average_is_trailing_and_shorter_at_the_start():
    values = [float(v) for v in range(1, 13)]
    expected = [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6.5, 7.5]  # the mean of 1..n, then of ten
    assert retention.moving_average(values).tolist() == pytest.approx(expected)
    assert retention.moving_average([1, math.nan, 3], 2).tolist() == [1, 1, 3]


COUNTERFACT = {
    "rewrite_prompts_probs": [{"target_new": 1.0, "target_true": 2.0}], "rewrite_prompts_correct": [True],
    "paraphrase_prompts_probs": [{"target_new": 1.0, "target_true": 2.0}, {"target_new": 3.0, "target_true": 2.0}],
    "paraphrase_prompts_correct": [True, False],
    "neighborhood_prompts_probs": [{"target_new": 1.0, "target_true": 2.0}], "neighborhood_prompts_correct": [True],
}
ZSRE = {"rewrite_prompts_correct": [False, True, True], "paraphrase_prompts_correct": [True, True, False],
        "neighborhood_prompts_correct": [True, False]}


def test_measures_of_counterfact():
    for last_token in (False, True):  # concerns zsRE only
        values = retention.measures(COUNTERFACT, last_token)
        names = ("rewrite_success", "paraphrase_success", "neighborhood_success", "paraphrase_acc")
        chosen = {key: values[key] for key in names}
        assert chosen == {"rewrite_success": 1, "paraphrase_success": 0.5, "neighborhood_success": 0, "paraphrase_acc": 0.5}
        assert values["right"] == 1
    assert retention.measures({}) == {}


def test_measures_of_zsre_take_the_mean_or_the_last_token():
    values = retention.measures(ZSRE)
    expected = {"rewrite_acc": 2 / 3, "paraphrase_acc": 2 / 3, "neighborhood_acc": 0.5, "right": 0}
    assert values == {key: pytest.approx(value) for key, value in expected.items()}
    expected = {"rewrite_acc": 1, "paraphrase_acc": 0, "neighborhood_acc": 0.5, "right": 1}
    assert retention.measures(ZSRE, last_token=True) == expected


def test_retention_curve():
    good, bad = ({f"{group}_success": value for group in ("rewrite", "paraphrase", "neighborhood")} for value in (1.0, 0.5))
    history = {20: {1: good, 2: bad}, 10: {1: good}}
    assert retention.retention_curve(history, "rewrite_success") == [(10, 100, None), (20, 75, pytest.approx(25))]
    assert [mean for _, mean, _ in retention.retention_curve(history, "score")] == pytest.approx([100, 75])
    assert retention.retention_curve(history, "rewrite_acc") == []


def right(*flags):
    """{edit: measures} of edits 1, 2, ...; None: not measured."""
    return {edit: {"right": float(flag)} for edit, flag in enumerate(flags, 1) if flag is not None}


def test_forgetting():
    # Edits 1, 2, 3, 5, 6 are learnt. 1 is forgotten at 4 and comes back, 2 at 6, 6 at once; 4 was never learnt.
    cases = list(right(1, 1, 1, 0, 1, 0).values())[:5] + [{"right": 1.0}]
    history = {2: right(1, 1), 6: right(1, 0, 1, 0, 1, 0), 4: right(0, None, 1, 0)}
    forgetting = retention.forgetting(cases, history)
    assert forgetting.learnt.tolist() == [1, 2, 3, 5, 6]
    assert forgetting.forgotten.tolist() == [[1, 4], [2, 6], [6, 6]]
    assert forgetting.lengths.tolist() == [3, 4, 0]
    assert forgetting.share(2) == (0, 0)
    assert forgetting.share(4) == (25, pytest.approx(100 / 3))
    assert forgetting.share(6) == (50, 60)


def test_forgetting_of_what_was_never_learnt():
    forgetting = retention.forgetting([{"right": 0.0}, {}], {2: right(0, 0)})
    assert forgetting.learnt.size == forgetting.lengths.size == 0
    assert forgetting.share(2) == (0, 0)
    assert isinstance(forgetting.lengths, np.ndarray)
