"""hparams files: what is shipped loads; what is wrong is said in one line."""

import dataclasses
import json
import warnings
from pathlib import Path

import pytest

import editors
from editors import EditingError
from tests.test_contract import HPARAMS

SHIPPED = sorted((Path(__file__).parent.parent / "hparams").glob("*/*.json"))
MEMIT = HPARAMS["MEMIT"]


@pytest.mark.filterwarnings("ignore:.*without effect")
@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_shipped_files_load(path):
    editor = editors.load(path.parent.name, path)
    assert editor.hparams.layers == json.loads(path.read_text())["layers"]


# What published files hold besides the fields of the editors here.
UNIFIED = {
    "calculate_objective_value": False, "emmet_lambda": 0.1, "layer_selection": "all", "mom2_adjustment": True,
}
EFFICIENT = UNIFIED | {
    "shuffle_text": False, "wikipedia_lang": "en", "skill_preservation": False, "skill_lambda": 1, "skill_sample_size": 10000,
    "random_vector_preservation": False, "identity_cov": False, "proj_dim": 6400,
}
EXTRAS = [
    ("MEMIT", {"layer_selection": "all", "mom2_adjustment": True}),
    ("MEMIT", UNIFIED | {"update_norm_lambda": 0.5}),
    ("MEMIT", EFFICIENT),
    ("MEMIT", {"model_name": "Llama3-8B"}),
    ("MEMIT", {"rewrite_module_tmps": ["transformer.h.{}.mlp.dense_4h_to_h", "transformer.h.{}.self_attention.head_out"]}),
    ("ROME", {"model_name": "Llama3-8B", "bias_update": False}),
    ("FT", {"kl_factor": 0}),
]


@pytest.mark.parametrize("name, extras", EXTRAS)
def test_published_extras_are_accepted_and_listed(name, extras):
    """Files of the unified, efficient, AlphaEdit and MEMAT repositories load unchanged; a warning names what has no effect."""
    with pytest.warns(UserWarning, match="without effect") as caught:
        hparams = editors.load(name, HPARAMS[name] | extras).hparams
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    cls, plain = type(hparams), editors.load(name, HPARAMS[name]).hparams
    for key, value in extras.items():
        if key in cls.ignored:
            assert f"{key} ({cls.ignored[key]})" in str(caught[0].message)
        elif key in cls.fixed:
            assert f"{key} (" not in str(caught[0].message) and value == cls.fixed[key][0]
        else:
            assert getattr(hparams, key) == value != getattr(plain, key)


@pytest.mark.parametrize("key, value", [
    ("skill_preservation", True), ("random_vector_preservation", True), ("identity_cov", True), ("shuffle_text", True),
    ("wikipedia_lang", "ca"),
])
def test_what_would_change_the_numbers_is_refused(key, value):
    with pytest.raises(EditingError, match=f"hparams: {key}: .* is not supported, only {json.dumps(EFFICIENT[key])}; ") as error:
        editors.load("MEMIT", MEMIT | EFFICIENT | {key: value})
    assert editors.memit.MEMITHParams.fixed[key][1] in str(error.value) and "\n" not in str(error.value)


def test_the_unified_files_of_rome_load():
    editors.load("ROME", HPARAMS["ROME"] | {"bias_update": False, "dynamic": False, "dynamic_multiplier": 1})


def test_nothing_is_both_a_field_and_left_out():
    for name in editors.names():
        cls = editors.editor_class(name).hparams_class
        fields = {field.name for field in dataclasses.fields(cls)}
        assert not fields & (cls.ignored.keys() | cls.fixed.keys()) and not cls.ignored.keys() & cls.fixed.keys()


def test_files_without_extras_raise_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        editors.load("MEMIT", MEMIT)


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
    with pytest.raises(EditingError, match="bias_update: true is not supported, only false"):
        editors.load("ROME", HPARAMS["ROME"] | {"bias_update": True})


def test_power_law_of_the_weight_decay():
    hp = dict(HPARAMS["FT"], weight_decay=False, wd_power_law=[-0.87028798, 0.15589562])
    assert editors.load("FT", hp).hparams.decay(10) == pytest.approx(0.1575, abs=1e-4)
    assert editors.load("FT", hp | {"legacy_wd_power_law": True}).hparams.decay(10) == 0
