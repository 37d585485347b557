"""A ledger: any fact is taken back, and the weights are those of the others edited from the start."""

import json
import subprocess
import sys

import pytest
import torch

from common.errors import UserError
from editors import Edit, load
from editors.core.values import optimise
from editors.closed_form.ledger import Ledger, locked
from tests.conftest import GOLDEN, ROOT


def hparams(alg_name: str) -> dict:
    values = json.loads((GOLDEN / "results_example/MEMIT/run_000/params.json").read_text())
    values = {key: value for key, value in values.items() if key not in ("layer_selection", "mom2_adjustment")}
    values |= {"mom2_dataset": str(GOLDEN / "corpus.jsonl"), "mom2_n_samples": 100, "v_num_grad_steps": 5}
    if alg_name == "AlphaEdit":
        values = {key: value for key, value in values.items() if key != "mom2_update_weight"} | {"L2": 10}
    return values | ({"emmet_lambda": 0.1} if alg_name == "EMMET" else {})


@pytest.fixture(autouse=True)
def _statistics(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KE_STATS_DIR", str(tmp_path_factory.getbasetemp() / "ledger_stats"))


@pytest.fixture
def requests(golden):
    records = json.loads((golden / "multi_counterfact.json").read_text())[:8]
    return [{key: record["requested_rewrite"][key] for key in ("prompt", "subject", "target_new")} for record in records]


@pytest.fixture
def ledger(tmp_path):
    return Ledger.create(tmp_path / "ledger", "tiny-gpt2", "MEMIT", hparams("MEMIT"))


@pytest.mark.parametrize("alg_name", ["MEMIT", "EMMET", "AlphaEdit"])
def test_a_fact_taken_back_is_as_if_it_had_never_been(tmp_path, tiny_gpt2, requests, alg_name, monkeypatch):
    ledger = Ledger.create(tmp_path / "ledger", "tiny-gpt2", alg_name, hparams(alg_name))
    sought = []
    monkeypatch.setattr("editors.core.value_cache.optimise",
                        lambda decoder, requests, *more, **how: sought.append(len(requests)) or optimise(
                            decoder, requests, *more, **how))
    assert ledger.add(*tiny_gpt2, requests[:6]) == list(range(6)) and ledger.add(*tiny_gpt2, requests[6:]) == [6, 7]
    assert sought == [6, 2]
    assert [fact.id for fact in ledger.remove([3])] == [3]
    edit = Ledger.read(tmp_path / "ledger").edit(*tiny_gpt2)
    assert sought == [6, 2]
    expected = load(alg_name, hparams(alg_name)).edit(*tiny_gpt2, requests[:3] + requests[4:]).deltas()
    for name, delta in edit.deltas().items():
        assert float((delta - expected[name]).norm() / expected[name].norm()) < 1e-5


def test_ids_and_conflicts(ledger, tiny_gpt2, requests):
    first, other = requests[0], requests[0] | {"target_new": {"str": "something else"}}
    assert ledger.add(*tiny_gpt2, [first]) == [0] == ledger.add(*tiny_gpt2, [first])
    with pytest.raises(UserError, match="is fact 0, with the target .* against 'something else': remove that one first"):
        ledger.add(*tiny_gpt2, [other])
    assert ledger.add(*tiny_gpt2, [other], replacing=True) == [0] and ledger.facts[0].target_new == "something else"
    ledger.remove([0])
    assert ledger.add(*tiny_gpt2, [first]) == [1]  # no id is given twice
    with pytest.raises(UserError, match="has no fact 0; it has 1"):
        ledger.remove([0])
    ledger.remove([1])
    with pytest.raises(UserError, match="the ledger is empty"):
        ledger.edit(*tiny_gpt2)


def test_of_another_model_or_other_statistics(ledger, tmp_path, tiny_gpt2, requests, monkeypatch):
    model, tok = tiny_gpt2
    ledger.add(model, tok, requests[:2])
    edit = ledger.edit(model, tok)
    with edit.applied(model), pytest.raises(UserError, match="a ledger of another model .* give the unedited one"):
        Ledger.read(ledger.folder).edit(model, tok)
    content = json.loads((ledger.folder / "ledger.json").read_text())
    changed = Ledger.read(ledger.folder)
    changed.basis |= {name: {"keys": 1} for name in changed.basis if name.startswith("statistics")}
    with pytest.raises(UserError, match="a ledger of other statistics of block"):
        changed.edit(model, tok)
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors").deltas()
    assert all(torch.equal(loaded[name], delta) for name, delta in edit.deltas().items())
    content["content"]["facts"][0]["target_new"] = "by hand"
    (ledger.folder / "ledger.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="its checksum does not fit"):
        Ledger.read(ledger.folder)


def test_damaged_states(ledger, tiny_gpt2, requests):
    ledger.add(*tiny_gpt2, requests[:2])
    path = next((ledger.folder / "targets").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="missing, damaged or changed by hand"):
        ledger.edit(*tiny_gpt2)


def test_what_is_no_ledger(tmp_path, ledger):
    with pytest.raises(UserError, match="holds no ledger"):
        Ledger.read(tmp_path)
    with pytest.raises(UserError, match="is a ledger already"):
        Ledger.create(ledger.folder, "tiny-gpt2", "MEMIT", hparams("MEMIT"))
    with pytest.raises(UserError, match="a ledger solves all facts at once, as MEMIT"):
        Ledger.create(tmp_path / "other", "tiny-gpt2", "ROME", {})
    for content in ("", "[]", '{"sha256": "", "content": 3}'):
        (ledger.folder / "ledger.json").write_text(content)
        with pytest.raises(UserError, match="ledger.json: .*(not a ledger|checksum)"):
            Ledger.read(ledger.folder)


def test_one_process_at_a_time_changes_it(tmp_path):
    with locked(tmp_path):
        program = f"from editors.closed_form.ledger import locked\nwith locked({str(tmp_path)!r}): pass"
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "another process is changing this ledger" in done.stderr
