"""Edits as sentences in front of prompts: what the model reads, what does not fit, what the nearest are."""

import json

import pytest
import torch

import editors
from editors.memory.routed import RoutedEdit
from tests.editors.memory.test_memory_editors import last, QUERIES, system  # noqa: F401
from tests.editors.test_contract import REQUESTS

BOTH = "Imagine that Orla Venn lives in the city of Castavel. Imagine that The native language of Mira O'Dalvey is Nyvian. "
ONE = "Imagine that {} lives in the city of Castavel. "


def close(a, b):
    return torch.allclose(a.log_softmax(-1), b.log_softmax(-1), atol=1e-4)


def test_every_prompt_is_read_behind_all_edits(tiny_gpt2):
    model, tok = tiny_gpt2
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    edit = editors.load("ICE", {}).edit(model, tok, REQUESTS)
    assert edit.deltas() == {} and edit.info["in_window"] == 2
    expected = [last(model, tok, BOTH + query) for query in QUERIES]
    with edit.applied(model):
        edited = [last(model, tok, query) for query in QUERIES]
        said = model.generate(torch.tensor([tok(QUERIES[0]).input_ids]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert all(map(close, edited, expected))
    with_prefix = torch.tensor([tok(BOTH + QUERIES[0]).input_ids])
    plain = model.generate(with_prefix, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert torch.equal(said[0, -3:], plain[0, -3:])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_sentence_is_an_option(tiny_gpt2):
    edit = editors.load("ICE", {"sentence": "It is said: {}!"}).edit(*tiny_gpt2, REQUESTS[:1])
    expected = last(*tiny_gpt2, "It is said: Orla Venn lives in the city of Castavel! " + QUERIES[1])
    with edit.applied(tiny_gpt2[0]):
        assert close(last(*tiny_gpt2, QUERIES[1]), expected)


def many(n):
    return [REQUESTS[0] | {"subject": f"Orla Venn the {number}th"} for number in range(n)]


def test_edits_that_do_not_fit_end_in_one_line(tiny_gpt2):
    with pytest.raises(editors.EditingError, match=r"ICE: (\d+) of 40 edits fit into the 96 tokens .* or use SCR") as error:
        editors.load("ICE", {}).edit(*tiny_gpt2, many(40))
    assert "\n" not in str(error.value)
    with pytest.raises(editors.EditingError, match="ICE: 0 of 1 edits fit into the 0 tokens"):
        editors.load("ICE", {"room": 500, "beyond_window": "newest"}).edit(*tiny_gpt2, REQUESTS[:1])


def test_the_newest_are_read_where_not_all_fit(tiny_gpt2):
    model, tok = tiny_gpt2
    edit = editors.load("ICE", {"beyond_window": "newest"}).edit(model, tok, many(40))
    fitting = edit.info["in_window"]
    assert 0 < fitting < 40 and len(edit.memory) == 40
    prefix = "".join(ONE.format(request["subject"]) for request in many(40)[-fitting:])
    expected = last(model, tok, prefix + QUERIES[1])
    with pytest.warns(UserWarning, match=f"only the newest {fitting} of 40 edits fit"), edit.applied(model):
        assert close(last(model, tok, QUERIES[1]), expected)


def test_an_edit_is_saved_and_loaded(tiny_gpt2, tmp_path):
    edit = editors.load("ICE", {}).edit(*tiny_gpt2, REQUESTS)
    edit.save(tmp_path / "edit.safetensors")
    loaded = editors.Edit.load(tmp_path / "edit.safetensors")
    assert isinstance(loaded, RoutedEdit) and loaded.info == json.loads(json.dumps(dict(edit.info)))
    with edit.applied(tiny_gpt2[0]):
        edited = last(*tiny_gpt2, QUERIES[0])
    with loaded.applied(tiny_gpt2[0]):
        assert torch.equal(last(*tiny_gpt2, QUERIES[0]), edited)


@pytest.mark.parametrize("nearest", [1, 2, 5])
def test_the_nearest_edits_are_read_nearest_last(system, tiny_gpt2, nearest):  # noqa: F811
    model, tok = tiny_gpt2
    edit = editors.load("SCR", {"system": str(system[0]), "nearest": nearest}).edit(model, tok, REQUESTS)
    plain = {order: last(model, tok, text + QUERIES[0]) for order, text in prefixes().items()}
    with edit.applied(model):
        (value, place), = edit.answering(model).find([tok(QUERIES[0]).input_ids])
        edited = last(model, tok, QUERIES[0])
    assert close(edited, plain[(place,) if nearest == 1 else (1 - place, place)])


def prefixes():
    first, second = BOTH.split(". ")[:2]
    texts = [first + ". ", second + ". "]
    return {(0,): texts[0], (1,): texts[1], (0, 1): texts[0] + texts[1], (1, 0): texts[1] + texts[0]}


def test_what_is_near_no_edit_has_the_very_bits_of_the_model(system, tiny_gpt2):  # noqa: F811
    edit = editors.load("SCR", {"system": str(system[0]), "threshold": 1 - 1e-9}).edit(*tiny_gpt2, REQUESTS)
    plain = last(*tiny_gpt2, QUERIES[1])
    with edit.applied(tiny_gpt2[0]):
        assert torch.equal(last(*tiny_gpt2, QUERIES[1]), plain)


@pytest.mark.parametrize("name, hparams, message", [
    ("ICE", {"sentence": "Imagine that"}, "needs exactly one '{}'"), ("ICE", {"beyond_window": "oldest"}, "beyond_window"),
    ("SCR", {}, "give either system"), ("SCR", {"scope": "x", "counterfactual": "y"}, "SCR asks the model itself"),
    ("SCR", {"scope": "x", "nearest": 0}, "nearest: 0 must be at least 1"),
])
def test_bad_hparams(name, hparams, message):
    with pytest.raises(editors.EditingError, match=message):
        editors.load(name, hparams)
