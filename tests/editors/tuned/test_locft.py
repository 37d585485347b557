"""LocFT-BF: equal to the published code, and what its own keys do."""

import json
from functools import partial

import numpy as np
import pytest
import torch

import editors
from editors.base import Task
from editors.core.prompts import pad_batch
from tests.conftest import GOLDEN, relative, ROOT
from tests.editors.test_contract import HPARAMS, REQUESTS

BEYOND = next(p for p in (GOLDEN / "beyond", ROOT / "tests" / "golden" / "beyond") if p.is_dir())
CASES = sorted(path.stem.removeprefix("locft_") for path in BEYOND.glob("locft_*.npz"))
quiet = pytest.mark.filterwarnings("ignore::editors.core.recall.TargetNotReached")


@quiet
@pytest.mark.parametrize("name", CASES)
def test_delta_equals_published(golden_model, monkeypatch, name):
    """Theirs pads on the left and tells the model no positions, which GPT-2's then count from the padding on."""
    monkeypatch.setattr("editors.tuned.locft.pad_batch", partial(pad_batch, side="left"))
    about, arrays = (json.loads((BEYOND / f"locft_{name}.json").read_text()), np.load(BEYOND / f"locft_{name}.npz"))
    model, tok = golden_model(name)
    requests = {request["case_id"]: request for request in json.loads((GOLDEN / "requests.json").read_text())}
    hparams = {"layers": [about["layer"]], "rewrite_module_tmp": about["parameter"].replace(f"h.{about['layer']}.", "h.{}."),
               **{key: about[key] for key in ("lr", "weight_decay", "batch_size", "num_steps")}}
    edit = editors.load("LocFT", hparams).edit(model, tok, [requests[case] for case in about["case_ids"]], progress=False)
    assert list(edit.deltas()) == [about["parameter"]]
    delta = edit.deltas()[about["parameter"]]
    assert relative(delta, arrays[arrays.files[0]]) < 1e-4
    assert float(delta.norm()) == pytest.approx(about["norm"], rel=1e-4)


def epochs(tiny_gpt2, requests, **more):
    editor = editors.load("LocFT", HPARAMS["LocFT"] | more)
    batches = editor.epochs(Task.of(*tiny_gpt2, requests))
    return [[target for batch in next(batches) for target in batch.targets] for _ in range(3)]


def test_an_epoch_sees_every_request_once_in_an_order_of_its_own(tiny_gpt2):
    requests = [REQUESTS[0] | {"subject": f"Orla Venn the {i}th", "target_new": {"str": f"{i}"}} for i in range(10)]
    shuffled = epochs(tiny_gpt2, requests, batch_size=3)
    assert len({str(sorted(epoch)) for epoch in shuffled}) == 1 and len({str(epoch) for epoch in shuffled}) == 3
    assert shuffled == epochs(tiny_gpt2, requests, batch_size=3) != epochs(tiny_gpt2, requests, batch_size=3, seed=1)
    plain = epochs(tiny_gpt2, requests, batch_size=3, shuffle=False)
    assert plain[0] == plain[1] == plain[2]


def test_the_end_of_text_is_learned_unless_told_otherwise(tiny_gpt2):
    end = tiny_gpt2[1].eos_token_id
    assert all(target[-1] == end for target in epochs(tiny_gpt2, REQUESTS)[0])
    assert not any(end in target for target in epochs(tiny_gpt2, REQUESTS, end_of_text=False)[0])


@quiet
def test_a_batch_below_the_floor_takes_no_step_and_ends_the_training(tiny_gpt2):
    edit = editors.load("LocFT", HPARAMS["LocFT"] | {"loss_floor": 1e3}).edit(*tiny_gpt2, REQUESTS)
    assert len(edit.info["loss"]) == 1 and not any(delta.any() for delta in edit.deltas().values())


@quiet
def test_padding_enters_no_loss(tiny_gpt2):
    """Alone or beside a longer request: the same losses."""
    editor, long = editors.load("LocFT", HPARAMS["LocFT"] | {"shuffle": False}), REQUESTS[1] | {
        "prompt": "On market days in the old town, when the ferry was late, {} plays"}
    (both,) = next(editor.epochs(Task.of(*tiny_gpt2, [REQUESTS[0], long])))
    alone = [next(editor.epochs(Task.of(*tiny_gpt2, [request])))[0] for request in (REQUESTS[0], long)]
    with torch.no_grad():
        losses = [float(batch.loss(tiny_gpt2[0])) for batch in (both, *alone)]
    assert losses[0] == pytest.approx(sum(losses[1:]) / 2, rel=1e-5)


@pytest.mark.parametrize("change, message", [
    ({"batch_size": 0}, "batch_size: 0 must be at least 1"), ({"loss_floor": -1}, "loss_floor: -1 must be"),
    ({"shuffle": 1}, "shuffle is 1, expected true or false"), ({"breadth": 1}, "unknown key 'breadth'"),
])
def test_bad_hparams(change, message):
    with pytest.raises(editors.EditingError, match=message):
        editors.load("LocFT", HPARAMS["LocFT"] | change)
