"""The closed forms, as theorems and against numbers worked out in float64."""

import pytest
import torch

from common.errors import UserError
from editors.core.solve import (
    Factor, Gram, alphaedit_as_published, emmet, factorise, memit, null_space, prune, rect, rome_direction,
)

C = torch.tensor([[1, 0.5, 0], [0.5, 2, 0], [0, 0, 4]], dtype=torch.float64)
K = torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=torch.float64)
R = torch.tensor([[1, 2], [3, 4]], dtype=torch.float64)


def random_problem(d=24, n=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(d, 4 * d, generator=generator, dtype=torch.float64)
    return keys @ keys.T / (4 * d), torch.randn(d, n, generator=generator, dtype=torch.float64)


def test_memit_numbers():
    expected = torch.tensor([[0.18032787, 0.50819672, 0.38524590], [0.83606557, 0.90163934, 0.87704918]], dtype=torch.float64)
    assert torch.allclose(R @ memit(factorise(C), 1.0, K).T, expected, atol=1e-8)
    ridged = torch.tensor([[0.17856519, 0.50069649, 0.38359311], [0.81972365, 0.89042026, 0.87435638]], dtype=torch.float64)
    assert torch.allclose(R @ memit(factorise(C, ridge=0.05), 1.0, K).T, ridged, atol=1e-8)


@pytest.mark.parametrize("n", [1, 5, 23, 24, 60])  # below, at and above d: two ways to the same solution
@pytest.mark.parametrize("weight", [0.1, 15000.0])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_memit_solves_its_system(n, weight, ridge):
    moment, keys = random_problem(n=n)
    solution = memit(factorise(moment, ridge), weight, keys)
    system = weight * (moment + ridge * torch.eye(24, dtype=torch.float64)) + keys @ keys.T
    assert torch.allclose(solution, torch.linalg.solve(system, keys), rtol=1e-9, atol=1e-12)


def test_memit_minimises_its_objective():
    """The update is the minimum of lambda |Delta C^{1/2}|^2 + |Delta K - R|^2: the gradient vanishes there."""
    moment, keys = random_problem()
    residual = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    delta = (residual @ memit(factorise(moment), 30.0, keys).T).requires_grad_()
    objective = 30.0 * torch.trace(delta @ moment @ delta.T) + (delta @ keys - residual).square().sum()
    (gradient,) = torch.autograd.grad(objective, delta)
    assert gradient.norm() < 1e-10 * residual.norm()


def test_memit_does_not_depend_on_the_order_of_the_batch():
    moment, keys = random_problem()
    residual = torch.randn(7, 5, dtype=torch.float64)
    order = torch.tensor([3, 1, 4, 0, 2])
    one = residual @ memit(factorise(moment), 30.0, keys).T
    two = residual[:, order] @ memit(factorise(moment), 30.0, keys[:, order]).T
    assert torch.allclose(one, two, atol=1e-13)


def test_rome_maps_the_key_onto_the_value_and_least_disturbs_the_rest():
    """W' k = v, and of all such W' none has a smaller |(W' - W) C^{1/2}| (ROME eq. 2)."""
    moment, keys = random_problem(n=1)
    key = keys[:, 0]
    u = rome_direction(factorise(moment), key)
    assert torch.isclose(u.norm(), torch.tensor(1.0, dtype=torch.float64))
    residual = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    delta = residual[:, None] @ u[None] / (u @ key)
    assert torch.allclose(delta @ key, residual)
    # C-orthogonality: any other solution differs by D with D k = 0, and trace(delta C D^T) = 0 then.
    other = torch.randn(7, 24, dtype=torch.float64)
    other -= (other @ key)[:, None] @ key[None] / (key @ key)
    assert abs(torch.trace(delta @ moment @ other.T)) < 1e-10


def test_rome_without_statistics_uses_the_key_itself():
    key = torch.tensor([3.0, 4.0])
    assert torch.allclose(rome_direction(None, key), torch.tensor([0.6, 0.8], dtype=torch.float64))


def test_a_singular_moment_says_layer_count_rank_and_remedy():
    keys = torch.randn(24, 10, dtype=torch.float64)
    with pytest.raises(UserError, match=r"block 5: .*rank 10 of 24 after 10 keys\).*mom2_n_samples"):
        factorise(keys @ keys.T, where="block 5", count=10)
    with pytest.raises(UserError, match="NaN"):
        factorise(torch.full((3, 3), float("nan")), where="block 5")


def test_emmet_numbers():
    exact = torch.tensor([[0.1875, 1.1875, 0.8125], [1.1875, 2.1875, 1.8125]], dtype=torch.float64)
    assert torch.allclose(R @ emmet(factorise(C), 1.0, K, 0.0).T, exact, atol=1e-12)
    assert torch.allclose(exact @ K, R)
    soft = torch.tensor([[0.18032787, 0.50819672, 0.38524590], [0.83606557, 0.90163934, 0.87704918]], dtype=torch.float64)
    assert torch.allclose(R @ emmet(factorise(C), 10.0, K, 0.1).T, soft, atol=1e-8)
    ridged = torch.tensor([[0.17856519, 0.50069649, 0.38359311], [0.81972365, 0.89042026, 0.87435638]], dtype=torch.float64)
    assert torch.allclose(R @ emmet(factorise(C, ridge=0.05), 10.0, K, 0.1).T, ridged, atol=1e-8)
    single = torch.tensor([[0.82051282, -0.20512821, 0.17948718], [2.46153846, -0.61538462, 0.53846154]], dtype=torch.float64)
    for weight, slack in ((1.0, 0.0), (7.0, 0.3)):
        assert torch.allclose(R[:, :1] @ emmet(factorise(C), weight, K[:, :1], slack).T, single, atol=1e-8)


@pytest.mark.parametrize("slack", [0.1, 2.0])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_emmet_of_several_is_memit_with_scaled_statistics(slack, ridge):
    moment, keys = random_problem()
    factor = factorise(moment, ridge)
    assert torch.allclose(emmet(factor, 40.0, keys, slack), memit(factor, 40.0 * slack, keys), rtol=1e-10, atol=1e-14)


def test_emmet_of_one_is_rome():
    moment, keys = random_problem(n=1)
    u = rome_direction(factorise(moment), keys[:, 0])
    assert torch.allclose(emmet(factorise(moment), 3.0, keys, 0.7)[:, 0], u / (u @ keys[:, 0]), atol=1e-12)


def test_emmet_holds_its_constraint_and_least_disturbs_the_rest():
    moment, keys = random_problem()
    residual = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    delta = residual @ emmet(factorise(moment), 1.0, keys, 0.0).T
    assert torch.allclose(delta @ keys, residual, atol=1e-10)
    # Stationary along every change that keeps the constraint.
    free = torch.eye(24, dtype=torch.float64) - keys @ torch.linalg.pinv(keys)
    assert (delta @ moment @ free).norm() < 1e-9


def test_emmet_refuses_dependent_keys_without_slack():
    moment, keys = random_problem()
    twice = torch.cat([keys, keys[:, :1]], 1)
    for seed in range(50):  # whether the last pivot comes out as 0 is a matter of rounding
        generator = torch.Generator().manual_seed(seed)
        turned = torch.linalg.qr(torch.randn(len(keys), len(keys), dtype=torch.float64, generator=generator))[0]
        with pytest.raises(UserError, match="emmet_lambda above 0"):
            emmet(factorise(turned @ moment @ turned.T), 1.0, turned @ twice, 0.0)
    assert torch.isfinite(emmet(factorise(moment), 1.0, twice, 0.1)).all()


@pytest.mark.parametrize("d, n", [(3, 2), (130, 1), (300, 10), (260, 200)])
def test_a_factor_absorbs_keys(d, n):
    moment, keys = random_problem(d, n)
    updated = factorise(moment).plus(keys).lower
    assert torch.allclose(updated, torch.linalg.cholesky(moment + keys @ keys.T), rtol=1e-9, atol=1e-11)


def test_absorbing_many_batches_stays_exact():
    moment, _ = random_problem(40)
    factor, total = factorise(moment), moment.clone()
    for seed in range(200):
        _, keys = random_problem(40, 3, seed)
        factor, total = factor.plus(keys), total + keys @ keys.T
    assert torch.allclose(factor.lower, torch.linalg.cholesky(total), rtol=1e-10)


def test_alphaedit_numbers():
    project = null_space(C, 1.0)
    assert project.rank == 1
    earlier = project(torch.diag(torch.tensor([0.5, 0, 0.25], dtype=torch.float64).sqrt()))
    factor = Factor(torch.eye(3, dtype=torch.float64) * 10**0.5).plus(earlier)
    expected = torch.tensor([[0.01281609, -0.00530860, 0], [0.10032983, -0.04155798, 0]], dtype=torch.float64)
    assert torch.allclose(R @ memit(factor, 1.0, project(K)).T, expected, atol=1e-8)
    published = alphaedit_as_published(project, Gram(torch.diag(torch.tensor([0.5, 0, 0.25]))), 10, K)
    assert published.dtype == torch.float32 and torch.allclose(R.float() @ published.T, expected.float(), atol=1e-7)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])  # the kept basis is that of the null space, or of its complement
def test_projector(share):
    moment, keys = random_problem()
    values, vectors = torch.linalg.eigh(moment)
    count = int(share * 24)
    project = null_space(moment, float(values[count]))
    free = vectors[:, :count]
    assert project.rank == count and project.basis.shape[1] <= 12
    assert torch.allclose(project(keys), free @ (free.T @ keys), atol=1e-12)
    assert torch.allclose(project.dense(), free @ free.T, atol=1e-12)
    # The published form: X = (P (K K^T + Cp) + L2 I)^{-1} P K R^T.
    projection, cp = free @ free.T, torch.diag(torch.rand(24, dtype=torch.float64))
    system = projection @ (keys @ keys.T + cp) + 3 * torch.eye(24, dtype=torch.float64)
    published = torch.linalg.solve(system, projection @ keys)
    factor = Factor(torch.eye(24, dtype=torch.float64) * 3**0.5).plus(project(cp.sqrt()))
    assert torch.allclose(memit(factor, 1.0, project(keys)), published, atol=1e-12)


def test_rect_keeps_the_share_that_is_largest_relative_to_the_weight():
    update = torch.tensor([[1.0, 2.0], [3.0, 4.0], [-5.0, 0.1]])
    weight = torch.tensor([[1.0, -1.0], [30.0, 4.0], [1.0, 1e-9]])
    # |update / weight|: 1, 2, 0.1, 1, 5 and 9e6; int(0.6 * 6) = 3rd smallest is 1, and all at or above it stay.
    assert rect(update, weight, 0.4).tolist() == [[1.0, 2.0], [0.0, 4.0], [-5.0, pytest.approx(0.1)]]
    update, weight = torch.randn(50, 40), torch.randn(50, 40)
    assert int((rect(update, weight, 0.4) != 0).sum()) == 801  # the top 40 % and one more, as published


def test_rect_with_an_absolute_denominator():
    """A weight of -1e-8 makes the published ratio boundless; |w| + 1e-8 does not."""
    update = torch.tensor([1e-12, 1.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    weight = torch.tensor([-1e-8, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert rect(update, weight, 0.2).tolist() == [1e-12, 1.0, 0.0, 0.0, 0.0]
    assert rect(update, weight, 0.2, absolute=True).tolist() == [0.0, 1.0, 0.5, 0.0, 0.0]


def test_prune_dampens_only_what_exceeds_the_weight():
    assert torch.allclose(prune(torch.diag(torch.tensor([5.0, 0.5])), torch.diag(torch.tensor([3.0, 1.0]))),
                          torch.diag(torch.tensor([3.51082562, 0.5], dtype=torch.float64)), atol=1e-8)
    small, weight = torch.randn(6, 9) * 0.01, torch.randn(6, 9)
    assert torch.allclose(prune(small, weight).float(), small, atol=1e-7)
