"""Edit: apply, stack, revert, save, load."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from common.errors import UserError
from editors import Dense, Edit, LowRank
import editors
from tests.editors.test_contract import HPARAMS
from tests.models import tiny_model, tiny_tokenizer

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
    with pytest.raises(UserError, match="later edit"):
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
    with pytest.raises(UserError, match="nothing to revert"):
        edit.revert(model)
    with edit.applied(model), pytest.raises(UserError, match="already applied"):
        edit.apply(model)
    foreign = Edit({NAME: Dense(torch.zeros(3, 3))})
    with pytest.raises(UserError, match="another model"):
        foreign.apply(model)
    with pytest.raises(UserError, match="nearest|no parameter|another model"):
        Edit({"transformer.h.99.mlp.c_proj.weight": Dense(torch.zeros(3))}).apply(model)
    assert torch.equal(model.get_parameter(NAME), original)


def test_applied_reverts_after_an_error(model):
    original = model.get_parameter(NAME).clone()
    with pytest.raises(RuntimeError), low_rank(model).applied(model):
        raise RuntimeError
    assert torch.equal(model.get_parameter(NAME), original)


def test_only_edited_weights_are_kept(model):
    """No second copy of the model: an applied edit holds the originals of its own parameters alone."""
    from editors.edit import applied_to

    edit = low_rank(model)
    with edit.applied(model):
        originals, = applied_to(model).values()
        assert list(originals) == [NAME]


def test_damaged_files(model, tmp_path):
    path = tmp_path / "edit.safetensors"
    low_rank(model).save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="truncated"):
        Edit.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a file that Edit.save wrote"):
        Edit.load(path)
    save_file({"x": torch.zeros(1)}, path, metadata={"edit": json.dumps({"format": 99})})
    with pytest.raises(UserError, match="format 99"):
        Edit.load(path)
    for header in ([], 3, None, {"format": 1, "changes": []}, {"format": 1, "changes": {}},
                   {"format": 1, "changes": {}, "info": 3}):
        save_file({"x": torch.zeros(1)}, path, metadata={"edit": json.dumps(header)})
        with pytest.raises(UserError, match="not a file that Edit.save wrote"):
            Edit.load(path)
    with pytest.raises(UserError, match="no such"):
        Edit.load(tmp_path / "absent")


def test_saved_files_have_the_permissions_of_new_files(model, tmp_path):
    before = os.umask(0o027)
    try:
        low_rank(model).save(tmp_path / "new" / "edit.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "edit.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_failing_save_leaves_no_file(model, tmp_path):
    (tmp_path / "edit.safetensors").mkdir()
    with pytest.raises(OSError):
        low_rank(model).save(tmp_path / "edit.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["edit.safetensors"]


def test_the_smaller_form_is_kept():
    """128 x 32: factors of rank 25 hold 4,000 numbers, the product 4,096, factors of rank 26 more."""
    factors = [LowRank(torch.randn(128, rank), torch.randn(32, rank)) for rank in (25, 26)]
    assert factors[0].smaller() is factors[0]
    product = factors[1].smaller()
    assert isinstance(product, Dense) and torch.equal(product.delta, factors[1].left @ factors[1].right.T)
    assert product.smaller() is product


def test_an_edit_of_very_many_requests_is_stored_densely(tmp_path):
    """Applied, reverted, saved and loaded like any other; its delta is that of the factors."""
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    requests = [{"prompt": "{} works as a", "subject": f"Orla {i}", "target_new": " clockmaker"} for i in range(26)]
    corpus = tmp_path / "c.txt"
    corpus.write_text("\n".join(f"The city of {i} is {i * i}, and {i} is not." for i in range(60)))
    memit = editors.load("MEMIT", HPARAMS["MEMIT"] | {"mom2_dataset": str(corpus), "mom2_n_samples": 60, "v_num_grad_steps": 2})
    kinds, options = {}, dict(context_templates=["{}"], progress=False)
    for n in (25, 26):
        edit = memit.edit(model, tok, requests[:n], **options)
        kinds[n] = {type(change) for change in edit.changes.values()}
    assert kinds == {25: {LowRank}, 26: {Dense}}
    before = {name: p.clone() for name, p in model.state_dict().items()}
    edit.save(tmp_path / "edit.safetensors")
    for one in (edit, Edit.load(tmp_path / "edit.safetensors")):
        with one.applied(model):
            for name, delta in one.deltas().items():
                assert torch.equal(model.get_parameter(name), before[name] + delta)
                assert delta.abs().max() > 0 and delta.shape == before[name].shape
        assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


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


def test_an_edit_is_a_line():
    left, right = torch.ones(4, 2), torch.ones(3, 2)
    edit = Edit({"a.weight": LowRank(left, right), "b.weight": LowRank(left, right)}, {"editor": "MEMIT", "requests": 2})
    assert repr(edit) == "<Edit by MEMIT, 2 requests, 2 parameters of rank 2: a.weight to b.weight>"
    assert repr(Edit({})) == "<Edit by ?, ? requests, 0 parameters>"
