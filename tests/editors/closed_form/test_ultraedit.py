"""UltraEdit: equal to the published code over two turns, the identity behind its factors, and what its state promises."""

import copy
import json

import numpy as np
import pytest
import torch

import editors
from editors.closed_form.ultraedit import regularised, UltraEditHParams
from editors.core.normaliser import Normaliser
from editors.core.prompts import Request
from editors.sequence import EditSequence
from tests.conftest import GOLDEN, relative, ROOT

BEYOND = next(p for p in (GOLDEN / "beyond", ROOT / "tests" / "golden" / "beyond") if p.is_dir())
CASES = sorted(path.stem.removeprefix("ultraedit_") for path in BEYOND.glob("ultraedit_*.npz"))
HPARAMS = dict(modules=["transformer.h.{1-2}.mlp.c_proj"], lr=1e-2, batch_size=2)


def published(name):
    return json.loads((BEYOND / f"ultraedit_{name}.json").read_text()), np.load(BEYOND / f"ultraedit_{name}.npz")


def requests_of(about):
    """With the prompt's first word as subject, for which UltraEdit has no use."""
    return [{"prompt": prompt.replace(prompt.split()[0], "{}", 1), "subject": prompt.split()[0], "target_new": target.strip()}
            for prompt, target in about["prompts"]]


@pytest.mark.filterwarnings("ignore::editors.core.recall.TargetNotReached")
@pytest.mark.parametrize("name", CASES)
def test_two_turns_equal_published(golden_model, monkeypatch, name):
    about, arrays = published(name)
    model, tok = golden_model(name)
    # One target of theirs begins with a space, to which they add another; here spaces around a target do not count.
    tokens = {prompt: tok(" " + target).input_ids for prompt, target in about["prompts"]}
    monkeypatch.setattr(Request, "target_ids", lambda request, *_: tokens[request.text])
    editor = editors.load("UltraEdit", {"modules": about["modules"], "lr": about["lr"], "batch_size": about["batch_size"]})
    sequence, requests = EditSequence(editor, model, tok, progress=False), requests_of(about)
    for turn in range(about["turns"]):
        edit = sequence.edit(requests[turn * about["n_edits"]:(turn + 1) * about["n_edits"]])
        for module in about["modules"]:
            delta = edit.deltas()[f"{module}.weight"]
            delta = delta if "gpt2" in name else delta.T
            assert relative(delta, arrays[f"turn{turn}.{module}"]) < 1e-4
    (state,) = [Normaliser(tensor) for tensor in sequence._memory.tensors().values()]
    assert state.count == arrays["norm.(256, 64).n"]
    assert relative(state.mean, arrays["norm.(256, 64).mean"].ravel()) < 1e-4
    assert relative(state.std, arrays["norm.(256, 64).std"].ravel()) < 1e-4
    sequence.revert()


@pytest.mark.parametrize("n, d_in, d_out", [(3, 8, 5), (8, 8, 5), (20, 8, 5)])
def test_push_through_identity(n, d_in, d_out):
    """H^T (H H^T + I)^{-1} U = (H^T H + I)^{-1} H^T U, whichever of the two is solved; low-rank with few keys."""
    draw = torch.Generator().manual_seed(n)
    keys, rows = (torch.randn(n, width, generator=draw, dtype=torch.float64) for width in (d_in, d_out))
    left, right = regularised(keys, rows)
    assert (left is None) == (n >= d_in)
    change = right if left is None else left @ right.T
    assert relative((keys.T @ keys + torch.eye(d_in)) @ change, keys.T @ rows) < 1e-12


def requests(n):
    return [{"prompt": "{} lives in the city of", "subject": f"Orla Venn the {number}th", "target_new": "Castavel"}
            for number in range(n)]


@pytest.mark.filterwarnings("ignore::editors.core.recall.TargetNotReached")
def test_order_within_a_sub_batch_does_not_matter(golden_model):
    """Nor, where no two rows are equally long, that of a whole turn: rows come together by their length."""
    about, _ = published("tiny-gpt2_f64")
    facts, (model, tok) = requests_of(about)[:4], golden_model("tiny-gpt2_f64")
    for size in (4, 2):
        editor = editors.load("UltraEdit", HPARAMS | {"batch_size": size})
        one, other = (editor.edit(model, tok, [facts[i] for i in order]).deltas() for order in ((0, 1, 2, 3), (3, 1, 0, 2)))
        assert all(relative(other[name], one[name]) < 1e-6 for name in one)


@pytest.mark.filterwarnings("ignore::editors.core.recall.TargetNotReached")
def test_state_of_a_sequence_does_not_grow(tiny_gpt2):
    sequence = EditSequence(editors.load("UltraEdit", HPARAMS), *tiny_gpt2, progress=False)
    sizes = []
    for turn in range(4):
        sequence.edit(requests(2 + turn))
        tensors = sequence._memory.tensors()
        sizes.append({name: tensor.untyped_storage().nbytes() for name, tensor in tensors.items()})
        assert not sequence._memory._staged
    assert sizes[0] == sizes[-1] == {"normaliser.256x64": 3 * 320 * 8}
    sequence.revert()


@pytest.mark.filterwarnings("ignore::editors.core.recall.TargetNotReached")
def test_each_map_may_have_its_own_statistics(tiny_gpt2):
    sequence = EditSequence(editors.load("UltraEdit", HPARAMS | {"normaliser": "module"}), *tiny_gpt2, progress=False)
    sequence.edit(requests(3))
    assert list(sequence._memory.tensors()) == [f"normaliser.transformer.h.{block}.mlp.c_proj" for block in (1, 2)]
    again = EditSequence(editors.load("UltraEdit", HPARAMS | {"normaliser": "module"}), *tiny_gpt2, progress=False)
    again._memory.restore(sequence._memory.tensors())
    assert list(again._memory.tensors()) == list(sequence._memory.tensors())
    sequence.revert()


def test_a_part_of_one_row_has_no_variance():
    normaliser = Normaliser.empty(2).plus([torch.tensor([[1.0, 2.0]])])
    assert torch.equal(normaliser.std, torch.zeros(2, dtype=torch.float64))
    after = normaliser.plus([torch.tensor([[3.0, 2.0]])])
    assert torch.isfinite(after(torch.ones(1, 2))).all() and after.count == 2


@pytest.mark.filterwarnings("ignore::editors.core.recall.TargetNotReached")
@pytest.mark.parametrize("module", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"])
def test_any_linear_map_of_a_block(tiny_gpt2, module):
    model, tok = copy.deepcopy(tiny_gpt2[0]), tiny_gpt2[1]
    hparams = HPARAMS | {"modules": ["transformer.h.{}." + module], "layers": [3], "lr": 1e-3}
    edit = editors.load("UltraEdit", hparams).edit(model, tok, requests(3))
    assert list(edit.changes) == [f"transformer.h.3.{module}.weight"]
    edit.apply(model)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("change, message", [
    ({"modules": ["transformer.h.{1-9}.mlp.c_proj"]}, "no module 'transformer.h.6.mlp.c_proj'; nearest"),
    ({"modules": ["transformer.h.1.mlp"]}, "is a GPT2MLP, no linear map"),
    ({"modules": ["lm_head"]}, "lm_head is not run once on every token"),
    ({"modules": ["transformer.h.{3-1}.mlp.c_proj"]}, "range of .* is empty"),
    ({"modules": ["transformer.h.{}.mlp.c_proj"]}, 'layers: needed where a path in modules has "{}"'),
    ({"modules": []}, "must be paths of linear maps"),
    ({"lr": 0}, "lr: 0 must be a finite number above 0"),
])
def test_bad_hparams(tiny_gpt2, change, message):
    with pytest.raises(editors.EditingError, match=message) as error:
        editors.load("UltraEdit", HPARAMS | change).edit(*tiny_gpt2, requests(1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted((ROOT / "hparams" / "UltraEdit").glob("*.json")), ids=lambda path: path.stem)
def test_shipped_files_name_maps(path):
    assert len(UltraEditHParams.of(path).paths()) >= 1
