"""hparams files: what is shipped loads; what is wrong is said in one line."""

import json
from pathlib import Path

import pytest

import editors
from editors import EditingError
from tests.test_contract import HPARAMS

SHIPPED = sorted((Path(__file__).parent.parent / "hparams").glob("*/*.json"))
MEMIT = HPARAMS["MEMIT"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_shipped_files_load(path):
    editor = editors.load(path.parent.name, path)
    assert editor.hparams.layers == json.loads(path.read_text())["layers"]


def test_published_extras_are_accepted():
    """Files of the unified and AlphaEdit repositories load unchanged."""
    unified = {"calculate_objective_value": False, "update_norm_lambda": 0.5, "emmet_lambda": 0.1, "layer_selection": "all"}
    assert editors.load("MEMIT", MEMIT | unified).hparams.update_norm_lambda == 0.5
    assert editors.load("MEMIT", MEMIT | {"model_name": "Llama3-8B"})
    editors.load("ROME", HPARAMS["ROME"] | {"bias_update": False, "dynamic": False, "dynamic_multiplier": 1})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mom2_update_wieght": 1}, "unknown key 'mom2_update_wieght', did you mean 'mom2_update_weight'"),
        ({"v_lr": None}, "v_lr is null, expected a number"),
        ({"v_num_grad_steps": 2.5}, "v_num_grad_steps is 2.5, expected an integer"),
        ({"layers": []}, "layers"),
        ({"layers": [3, 3]}, "layers"),
        ({"layers": "3"}, "expected a list of an integer"),
        ({"fact_token": "subject_lst"}, "fact_token"),
        ({"mom2_update_weight": 0}, "above 0"),
    ],
)
def test_wrong_values(tmp_path, change, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(MEMIT | change))
    with pytest.raises(EditingError, match=message) as error:
        editors.load("MEMIT", path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_keys_are_all_named():
    some = {k: v for k, v in MEMIT.items() if k not in ("v_lr", "kl_factor")}
    with pytest.raises(EditingError, match="missing keys v_lr, kl_factor|missing keys kl_factor, v_lr"):
        editors.load("MEMIT", some)


def test_files_that_are_no_hparams(tmp_path):
    (tmp_path / "gpt2-xl.json").write_text("{}")
    with pytest.raises(EditingError, match="no such hparams file; there is gpt2-xl.json"):
        editors.load("MEMIT", tmp_path / "gpt2xl.json")
    (tmp_path / "broken.json").write_text('{"layers": [1')
    with pytest.raises(EditingError, match="not readable as JSON"):
        editors.load("MEMIT", tmp_path / "broken.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(EditingError, match="expected one JSON object"):
        editors.load("MEMIT", tmp_path / "list.json")


def test_unknown_editor():
    with pytest.raises(EditingError, match="unknown editor 'memitt', did you mean 'MEMIT'"):
        editors.load("memitt", MEMIT)


def test_unsupported_switches_are_refused():
    with pytest.raises(EditingError, match="dynamic: true is not supported"):
        editors.load("ROME", HPARAMS["ROME"] | {"dynamic": True})


def test_power_law_of_the_weight_decay():
    hp = dict(HPARAMS["FT"], weight_decay=False, wd_power_law=[-0.87028798, 0.15589562])
    assert editors.load("FT", hp).hparams.decay(10) == pytest.approx(0.1575, abs=1e-4)
    assert editors.load("FT", hp | {"legacy_wd_power_law": True}).hparams.decay(10) == 0
