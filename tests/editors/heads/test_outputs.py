"""Heads of every architecture: what they put out, and shifts of it by hooks and by biases."""

import copy

import pytest
import torch

from common.errors import UserError
from editors.changes import Dense
from editors.core.decoder import Decoder
from editors.core.prompts import pad_batch
from editors.core.modules import get_module
from editors.core.sites import find_sites
from editors.edit import Edit
from editors.heads.outputs import as_biases, check_heads, head_outputs, head_shape, last_tokens, projection, shifted
from tests.conftest import relative
from tests.models import ARCHITECTURES, HEADS, LAYERS, tiny_model, tiny_tokenizer

ROWS = [[5, 9, 17, 40, 3], [5, 9], [8, 8, 21]]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return tiny_model(request.param)


def logits(model, rows):
    batch = pad_batch(rows, 0)
    with torch.no_grad():
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.cat([row[: len(ids)] for row, ids in zip(out, rows)])


def test_outputs_are_what_the_projection_projects(model):
    """Each row alone, whole: the projection's output is bias + O concat(heads), and slices are the query heads."""
    sites = find_sites(model)
    count, size = head_shape(Decoder.of(model))
    assert count == HEADS
    outputs_of_rows = head_outputs(Decoder.of(model, tiny_tokenizer()), ROWS)
    assert outputs_of_rows.shape == (len(ROWS), LAYERS, count, size)
    for ids, outputs in zip(ROWS, outputs_of_rows):
        projected = {}

        def note(layer):
            return lambda module, args, out: projected.__setitem__(layer, (module, out.reshape(-1, out.shape[-1])[-1]))

        handles = [get_module(model, sites.name("attn_out", layer)).register_forward_hook(note(layer))
                   for layer in range(LAYERS)]
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
        [handle.remove() for handle in handles]
        for layer, (module, out) in projected.items():
            _, weight = projection(Decoder.of(model), layer)
            bias = 0 if module.bias is None else module.bias.detach()
            assert relative(weight @ outputs[layer].flatten() + bias, out) < 1e-5


def test_a_shift_moves_its_own_head_alone(model):
    """In its layer by its vector and no other head; nothing below."""
    count, size = head_shape(Decoder.of(model))
    clean = head_outputs(Decoder.of(model, tiny_tokenizer()), ROWS[:1])[0]
    layer, head, vector = LAYERS - 2, 1, torch.arange(1.0, size + 1)
    with shifted(Decoder.of(model), [(layer, head)], vector[None]):
        moved = head_outputs(Decoder.of(model, tiny_tokenizer()), ROWS[:1])[0] - clean
    expected = torch.zeros(layer + 1, count, size)
    expected[layer, head] = vector
    assert torch.allclose(moved[: layer + 1], expected, atol=1e-5)
    assert moved[layer + 1 :].abs().max() > 1e-4


def test_a_shift_everywhere_is_a_bias(model):
    """One head, and two heads of one layer; made where there was no bias and gone afterwards."""
    _, size = head_shape(Decoder.of(model))
    heads = [(1, 2), (2, 0), (2, 3)]
    vectors = torch.randn(3, size, generator=torch.Generator().manual_seed(1))
    before, bits = logits(model, ROWS), copy.deepcopy(model.state_dict())
    with shifted(Decoder.of(model), heads, vectors):
        hooked = logits(model, ROWS)
    edit = Edit({name: Dense(bias) for name, bias in as_biases(Decoder.of(model), heads, vectors).items()})
    assert len(edit.changes) == 2
    with edit.applied(model):
        folded = logits(model, ROWS)
    assert relative(folded, hooked) < 1e-5 < relative(folded, before)
    assert torch.equal(logits(model, ROWS), before)
    assert model.state_dict().keys() == bits.keys() and all(torch.equal(v, bits[k]) for k, v in model.state_dict().items())


def test_a_shift_somewhere(model):
    """At the last token only: earlier tokens are untouched; padding on either side changes nothing."""
    _, size = head_shape(Decoder.of(model))
    vectors = torch.full((1, size), 0.7, requires_grad=True)
    alone = []
    for ids in ROWS:
        with shifted(Decoder.of(model), [(1, 0)], vectors, last_tokens([ids], "cpu")):
            alone.append(model(input_ids=torch.tensor([ids])).logits[0])
    clean = [model(input_ids=torch.tensor([ids])).logits[0] for ids in ROWS]
    for shift, plain in zip(alone, clean):
        assert torch.allclose(shift[:-1], plain[:-1], atol=1e-5) and not torch.allclose(shift[-1], plain[-1], atol=1e-5)
    batch = pad_batch(ROWS, 0)
    with shifted(Decoder.of(model), [(1, 0)], vectors, last_tokens(ROWS, "cpu")):
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    for row, ids, expected in zip(out, ROWS, alone):
        assert relative(row[: len(ids)].detach(), expected.detach()) < 1e-4
    (one,) = torch.autograd.grad(sum(a[-1].square().sum() for a in alone), vectors)
    (two,) = torch.autograd.grad(sum(row[len(ids) - 1].square().sum() for row, ids in zip(out, ROWS)), vectors)
    assert relative(two, one) < 1e-4


@pytest.mark.parametrize("heads, message", [
    ([(9, 0)], r"\[9, 0\] is no \(layer, head\) of this model, whose layers are 0 to 3 with heads 0 to 3"),
    ([(0, 4)], "heads 0 to 3"), ([(-1, 0)], "layers are 0 to 3"), ([(1, 1), (1, 1)], "twice"),
])
def test_heads_that_the_model_lacks(heads, message):
    model = tiny_model("llama")
    with pytest.raises(UserError, match=message):
        check_heads(heads, Decoder.of(model))


def test_the_last_of_a_layer_may_count_alone():
    model = tiny_model("falcon")
    vectors = torch.eye(8)[:2]
    summed = as_biases(Decoder.of(model), [(0, 1), (0, 2)], vectors)
    last = as_biases(Decoder.of(model), [(0, 1), (0, 2)], vectors, overwrite=True)
    second = as_biases(Decoder.of(model), [(0, 2)], vectors[1:])
    assert torch.equal(*(next(iter(b.values())) for b in (last, second)))
    assert not torch.allclose(*(next(iter(b.values())) for b in (last, summed)))


def test_a_bias_where_one_is_is_added_to():
    model = tiny_model("gpt2")
    name = "transformer.h.1.attn.c_proj.bias"
    before = model.get_parameter(name).detach().clone()
    edit = Edit({name: Dense(torch.ones(32))})
    with edit.applied(model):
        assert torch.equal(model.get_parameter(name), before + 1)
    assert torch.equal(model.get_parameter(name), before)


def test_made_biases_stack_save_and_load(tmp_path):
    model = tiny_model("falcon")
    name = "transformer.h.1.self_attention.dense.bias"
    one, two = Edit({name: Dense(torch.ones(32))}), Edit({name: Dense(torch.full((32,), 2.0))})
    one.save(tmp_path / "one.safetensors")
    loaded = Edit.load(tmp_path / "one.safetensors")
    loaded.apply(model)
    two.apply(model)
    assert torch.equal(model.get_parameter(name), torch.full((32,), 3.0))
    with pytest.raises(UserError, match="later edit"):
        loaded.revert(model)
    two.revert(model)
    assert torch.equal(model.get_parameter(name), torch.ones(32))
    loaded.revert(model)
    assert get_module(model, "transformer.h.1.self_attention.dense").bias is None
    assert name not in dict(model.named_parameters())
    assert torch.equal(one.plus(two).deltas()[name], torch.full((32,), 3.0))


def test_a_failing_apply_makes_no_bias(monkeypatch):
    import editors.edit as module

    model = tiny_model("falcon")
    bias, weight = "transformer.h.1.self_attention.dense.bias", "transformer.h.1.mlp.dense_4h_to_h.weight"
    edit = Edit({bias: Dense(torch.ones(32)), weight: Dense(torch.zeros_like(model.get_parameter(weight)))})
    original = module.add_to
    monkeypatch.setattr(module, "add_to", lambda parameter, change: (_ for _ in ()).throw(torch.OutOfMemoryError)
                        if parameter.ndim == 2 else original(parameter, change))
    with pytest.raises(torch.OutOfMemoryError):
        edit.apply(model)
    assert bias not in dict(model.named_parameters())


def test_a_bias_of_another_width_is_refused():
    model = tiny_model("falcon")
    with pytest.raises(UserError, match="another model"):
        Edit({"transformer.h.1.self_attention.dense.bias": Dense(torch.ones(5))}).apply(model)
    with pytest.raises(UserError, match="no parameter"):
        Edit({"transformer.ln_f.nothing": Dense(torch.ones(5))}).apply(model)
