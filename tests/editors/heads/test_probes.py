"""Probes: the minimum that scikit-learn looks for, for all heads at once; the split; the ranking."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from common.errors import UserError
from editors.heads import probes


def examples(n=60, heads=12, d=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, heads, d, generator=generator), torch.tensor([True, False]).repeat(n // 2)


@pytest.mark.parametrize("n, d, scale", [(60, 8, 1.0), (10, 24, 1.0), (60, 8, 30.0), (400, 64, 1.0)])
def test_equals_scikit_learn(n, d, scale):
    """Fewer examples than dimensions, and far apart, too."""
    x, y = examples(n, 6, d)
    x = x * scale
    fitted = probes.fit(x, y)
    for head in range(6):
        regression = LogisticRegression(max_iter=10000, tol=1e-10).fit(x[:, head].numpy().astype(np.float64), y.numpy())
        np.testing.assert_allclose(fitted.weight[head], regression.coef_[0], atol=2e-4)
        assert fitted.intercept[head] == pytest.approx(regression.intercept_[0], abs=2e-3)
        assert np.array_equal(fitted.predict(x)[:, head], regression.predict(x[:, head].numpy().astype(np.float64)))


def test_is_a_minimum():
    """The gradient vanishes: w = sum of y (1 - sigma) x, and the intercept's errors cancel."""
    x, y = examples()
    fitted = probes.fit(x, y)
    margin = torch.einsum("npd,pd->np", x.double(), fitted.weight) + fitted.intercept
    sign = 2.0 * y.double()[:, None] - 1
    miss = sign * torch.sigmoid(-sign * margin)
    assert torch.allclose(torch.einsum("np,npd->pd", miss, x.double()), fitted.weight, atol=1e-4)
    assert miss.sum(0).abs().max() < 1e-4


def test_separable_examples_have_a_finite_minimum():
    x, y = examples()
    x = x + 100 * (2 * y.float() - 1)[:, None, None]
    fitted = probes.fit(x, y)
    assert torch.isfinite(fitted.weight).all() and (fitted.predict(x) == y[:, None]).all()


def test_features_that_float32_cannot_tell_apart():
    """Their Hessian's condition is beyond float32; the head beside them is what it is alone."""
    x, y = examples(heads=2)
    plain = probes.fit(x[:, 1:], y)
    x[:, 0] = 3e3 * (x[:, 0, :1] + 1e-4 * x[:, 0])
    curvature = x[:, 0].T @ x[:, 0] / 4 + torch.eye(8)
    assert torch.linalg.cholesky_ex(curvature)[1] != 0
    fitted = probes.fit(x, y)
    margin = torch.einsum("npd,pd->np", x.double(), fitted.weight) + fitted.intercept
    sign = 2.0 * y.double()[:, None] - 1
    gradient = torch.einsum("np,npd->pd", sign * torch.sigmoid(-sign * margin), x.double()) - fitted.weight
    assert gradient[0].abs().max() < 1e-4 * x[:, 0].abs().sum()
    assert torch.allclose(fitted.weight[1], plain.weight[0], atol=1e-6)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_outputs_that_are_not_finite_are_refused(value):
    x, y = examples()
    x[3, 2, 1] = value
    with pytest.raises(UserError, match="head outputs are not finite: load the model in a wider dtype"):
        probes.fit(x, y)


def test_in_parts_as_at_once(monkeypatch):
    x, y = examples()
    whole = probes.fit(x, y)
    monkeypatch.setattr(probes, "CHUNK_FLOATS", 1)
    parts = probes.fit(x, y)
    assert torch.allclose(whole.weight, parts.weight, atol=1e-8)


def test_one_class_is_refused():
    x, y = examples()
    with pytest.raises(UserError, match="both classes"):
        probes.fit(x, torch.ones_like(y))


def test_a_planted_head_ranks_first_and_equals_keep_their_order():
    x, y = examples(200, 12, 8)
    x[:, 7] += 3 * (2 * y.float() - 1)[:, None]
    fitted = probes.fit(x[:140], y[:140])
    accuracy = (fitted.predict(x[140:]) == y[140:, None]).double().mean(0).reshape(3, 4)
    assert probes.rank(accuracy, 1) == [(1, 3)]
    assert probes.rank(torch.ones(2, 3), 4) == [(0, 0), (0, 1), (0, 2), (1, 0)]


@pytest.mark.parametrize("number", [0, 7])
def test_only_heads_that_there_are(number):
    with pytest.raises(UserError, match=f"top_num_heads: {number} of the model's 6 heads"):
        probes.rank(torch.ones(2, 3), number)


def test_split_by_fact():
    training, validation = probes.split(range(10), 0.3, 123)
    assert len(training) == 7 and sorted(training + validation) == list(range(10)) and training != sorted(training)
    assert probes.split([4, 2, 9], 0.3, None) == ([4, 2], [9])
    for voters in ([], [3]):
        with pytest.raises(UserError, match=f"{len(voters)} voting facts can't be split"):
            probes.split(voters, 0.3, 123)
