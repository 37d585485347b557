"""The closed forms, as theorems and against numbers worked out in float64."""

import pytest
import torch

from editors.core.solve import factorise, memit, rome_direction
from editors.errors import EditingError

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
    with pytest.raises(EditingError, match=r"block 5: .*rank 10 of 24 after 10 keys\).*mom2_n_samples"):
        factorise(keys @ keys.T, where="block 5", count=10)
    with pytest.raises(EditingError, match="NaN"):
        factorise(torch.full((3, 3), float("nan")), where="block 5")
