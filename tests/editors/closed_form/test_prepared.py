"""The trial of changes that ROME, MEMIT and their kin make layer by layer."""

import pytest
import torch

from editors.changes import Dense, LowRank
from editors.closed_form.prepared import to_change, trial
from editors.core.decoder import Decoder, Weight
from editors.core.sites import find_sites, weight_of
from tests.models import tiny_model


def bits(model):
    return {name: p.clone() for name, p in model.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError])
def test_the_exact_weights_are_back_whatever_happens(dtype, error):
    """Several layers, one of them twice, and an error in the middle."""
    model = tiny_model("gpt2").to(dtype)
    sites, before = find_sites(model), bits(model)
    rows, columns = weight_of(model, sites, 1)[1].shape
    low_rank, dense = LowRank(torch.randn(rows, 2), torch.randn(columns, 2)), Dense(torch.randn(rows, columns))

    def work():
        with trial(Decoder(model, None, sites)) as change:
            change(1, low_rank), change(2, dense), change(1, dense)
            changed = {name for name, p in model.state_dict().items() if not torch.equal(p, before[name])}
            assert changed == {weight_of(model, sites, layer)[0] for layer in (1, 2)}
            if error:
                raise error

    if error:
        with pytest.raises(error):
            work()
    else:
        work()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_a_change_of_the_wrong_shape_leaves_the_weights():
    model = tiny_model("llama")
    sites, before = find_sites(model), bits(model)
    with pytest.raises(RuntimeError), trial(Decoder(model, None, sites)) as change:
        change(1, LowRank(torch.ones(32, 1), torch.ones(56, 1)))
        change(2, Dense(torch.ones(3, 3)))
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_an_update_takes_the_orientation_of_the_weight(arch):
    """R A^T of the map d_in -> d_out, for Conv1D [d_in, d_out] and Linear [d_out, d_in]."""
    model = tiny_model(arch)
    weight = Decoder.of(model, None).weight(1)
    d_out, d_in = reversed(weight.parameter.shape) if weight.in_first else weight.parameter.shape
    left, right = torch.randn(d_out, 3, dtype=torch.float64), torch.randn(d_in, 3, dtype=torch.float64)
    wide = Weight(weight.name, weight.parameter.double(), weight.in_first)
    delta = to_change(wide, left, right).dense()
    torch.testing.assert_close(delta, (left @ right.T).T if weight.in_first else left @ right.T)
    narrow = Weight(weight.name, weight.parameter.bfloat16(), weight.in_first)
    assert to_change(narrow, left, right).left.dtype == torch.float32
