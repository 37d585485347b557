"""Edit: apply, stack, revert, save, load."""

import json

import pytest
import torch
from safetensors.torch import save_file

from editors import Dense, Edit, EditingError, LowRank
from tests.models import tiny_model

NAME = "transformer.h.1.mlp.c_proj.weight"


@pytest.fixture
def model():
    return tiny_model("gpt2")


def low_rank(model, seed=0, rank=2, name=NAME):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = model.get_parameter(name).shape
    return Edit({name: LowRank(torch.randn(rows, rank, generator=generator), torch.randn(columns, rank, generator=generator))})


def test_stacked_edits_revert_to_the_exact_bits(model):
    original = model.get_parameter(NAME).clone()
    first, second = low_rank(model, 1), low_rank(model, 2)
    first.apply(model)
    middle = model.get_parameter(NAME).clone()
    second.apply(model, originals_device="cpu")
    with pytest.raises(EditingError, match="later edit"):
        first.revert(model)
    second.revert(model)
    assert torch.equal(model.get_parameter(NAME), middle)
    first.revert(model)
    assert torch.equal(model.get_parameter(NAME), original)


def test_disjoint_edits_revert_in_any_order(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    one, two = low_rank(model), low_rank(model, name="transformer.h.2.mlp.c_proj.weight")
    one.apply(model), two.apply(model), one.revert(model), two.revert(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_misuse_is_refused_and_changes_nothing(model):
    edit, original = low_rank(model), model.get_parameter(NAME).clone()
    with pytest.raises(EditingError, match="nothing to revert"):
        edit.revert(model)
    with edit.applied(model), pytest.raises(EditingError, match="already applied"):
        edit.apply(model)
    foreign = Edit({NAME: Dense(torch.zeros(3, 3))})
    with pytest.raises(EditingError, match="another model"):
        foreign.apply(model)
    with pytest.raises(EditingError, match="nearest|no parameter|another model"):
        Edit({"transformer.h.99.mlp.c_proj.weight": Dense(torch.zeros(3))}).apply(model)
    assert torch.equal(model.get_parameter(NAME), original)


def test_applied_reverts_after_an_error(model):
    original = model.get_parameter(NAME).clone()
    with pytest.raises(RuntimeError), low_rank(model).applied(model):
        raise RuntimeError
    assert torch.equal(model.get_parameter(NAME), original)


def test_only_edited_weights_are_kept(model):
    """No second copy of the model: an applied edit holds the originals of its own parameters alone."""
    from editors.edit import _applied

    edit = low_rank(model)
    with edit.applied(model):
        (_, originals), = _applied[model]
        assert list(originals) == [NAME]


def test_damaged_files(model, tmp_path):
    path = tmp_path / "edit.safetensors"
    low_rank(model).save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(EditingError, match="truncated"):
        Edit.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(EditingError, match="not a file that Edit.save wrote"):
        Edit.load(path)
    save_file({"x": torch.zeros(1)}, path, metadata={"edit": json.dumps({"format": 99})})
    with pytest.raises(EditingError, match="format 99"):
        Edit.load(path)
    with pytest.raises(EditingError, match="no such"):
        Edit.load(tmp_path / "absent")


def test_a_failing_apply_leaves_the_model_as_it_was(model, monkeypatch):
    import editors.edit as module

    before = {k: v.clone() for k, v in model.state_dict().items()}
    names = [NAME, "transformer.h.2.mlp.c_proj.weight"]
    edit = Edit({name: change for name in names for change in low_rank(model, name=name).changes.values()})
    original, calls = module.add_to, []

    def fail_second(parameter, change):
        calls.append(parameter)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        original(parameter, change)

    monkeypatch.setattr(module, "add_to", fail_second)
    with pytest.raises(torch.OutOfMemoryError):
        edit.apply(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    monkeypatch.undo()
    edit.apply(model)
    edit.revert(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
