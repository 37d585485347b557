"""hparams files: what is shipped loads; what is wrong is said in one line."""

import dataclasses
import json
import warnings

import pytest

from common.errors import UserError
import editors
from tests.conftest import ROOT
from tests.editors.test_contract import HPARAMS

SHIPPED = sorted((ROOT / "hparams").glob("*/*.json"))
MEMIT = HPARAMS["MEMIT"]


@pytest.mark.filterwarnings("ignore:.*without effect")
@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_shipped_files_load(path):
    editor = editors.load(path.parent.name, path)
    assert getattr(editor.hparams, "layers", None) == json.loads(path.read_text()).get("layers")


# layers, clamp, steps, loss layer, weight decay, and what each editor has of its own.
XL, J = ([13, 14, 15, 16, 17], 0.75, 20, 47, 0.5), ([3, 4, 5, 6, 7, 8], 0.75, 25, 27, 0.5)
LLAMA_2 = ([5], 4, 25, 31, 1e-3)
NULL_SPACE = {"L2": 10, "nullspace_threshold": 0.02, "dynamic_multiplier": None}
PUBLISHED = {
    "EMMET/gpt2-xl": (([17], *XL[1:]), {"mom2_update_weight": 10000, "dynamic_multiplier": 10}),
    "EMMET/EleutherAI_gpt-j-6B": (([5], *J[1:]), {"mom2_update_weight": 100000, "dynamic_multiplier": 10}),
    "EMMET/Llama-2-7B": (LLAMA_2, {"mom2_update_weight": 100000, "dynamic_multiplier": 10}),
    "EMMET/gpt2-xl_unified": (([17], *XL[1:]), {"mom2_update_weight": 1000, "dynamic_multiplier": None}),
    "EMMET/EleutherAI_gpt-j-6B_unified": (([5], *J[1:]), {"mom2_update_weight": 1, "dynamic_multiplier": None}),
    "EMMET/Llama-2-7B_unified": (LLAMA_2, {"mom2_update_weight": 1, "dynamic_multiplier": None}),
    "MEMIT/gpt2-xl": (XL, {"mom2_update_weight": 20000, "dynamic_multiplier": None}),
    "MEMIT/EleutherAI_gpt-j-6B": (J, {"mom2_update_weight": 15000, "dynamic_multiplier": None}),
    "MEMIT/gpt2-xl_efficient": (XL, {"mom2_update_weight": 20000, "dynamic_multiplier": 10}),
    "MEMIT/EleutherAI_gpt-j-6B_efficient": (J, {"mom2_update_weight": 100000, "dynamic_multiplier": 10}),
    "MEMIT/Llama-2-7B": (([4, 5, 6, 7, 8], *LLAMA_2[1:]),
                         {"mom2_update_weight": 15000, "update_norm_lambda": 0.01, "dynamic_multiplier": 10}),
    "MEMIT/Llama-2-7B_unified": (LLAMA_2, {"mom2_update_weight": 1, "update_norm_lambda": 0, "dynamic_multiplier": None}),
    "MEMIT/Llama-3-8B": (([4, 5, 6, 7, 8], 0.75, 25, 31, 0.5), {"mom2_update_weight": 15000, "v_lr": 0.1}),
    "AlphaEdit/gpt2-xl": (XL, NULL_SPACE),
    "AlphaEdit/EleutherAI_gpt-j-6B": (J, NULL_SPACE),
    "AlphaEdit/Llama-3-8B": (([4, 5, 6, 7, 8], 0.75, 25, 31, 0.5), NULL_SPACE | {"v_lr": 0.1}),
}


@pytest.mark.filterwarnings("ignore:.*without effect")
@pytest.mark.parametrize("name", PUBLISHED)
def test_values_are_the_published_ones(name):
    common, published = PUBLISHED[name]
    hparams = editors.load(name.split("/")[0], ROOT / "hparams" / f"{name}.json").hparams
    fields = ("layers", "clamp_norm_factor", "v_num_grad_steps", "v_loss_layer", "v_weight_decay")
    assert tuple(getattr(hparams, field) for field in fields) == common
    expected = {"v_lr": 0.5, "kl_factor": 0.0625, "fact_token": "subject_last", "mom2_n_samples": 100000, "dynamic": False}
    expected |= published
    expected |= {"emmet_lambda": 0.1} if name.startswith("EMMET") else {}
    assert {key: getattr(hparams, key) for key in expected} == expected


def test_variants_share_files():
    for name in editors.names():
        assert (ROOT / "hparams" / (editors.editor_class(name).hparams_folder or name) / "world.json").is_file()


# What published files hold besides the fields of the editors here.
UNIFIED = {
    "calculate_objective_value": True, "emmet_lambda": 0.1, "layer_selection": "all", "mom2_adjustment": True,
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
    with pytest.raises(UserError, match=f"hparams: {key}: .* is not supported, only {json.dumps(EFFICIENT[key])}; ") as error:
        editors.load("MEMIT", MEMIT | EFFICIENT | {key: value})
    assert editors.closed_form.memit.MEMITHParams.fixed[key][1] in str(error.value) and "\n" not in str(error.value)


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
    with pytest.raises(UserError, match=message) as error:
        editors.load("MEMIT", path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_yaml_of_easyedit(tmp_path):
    path = tmp_path / "gpt2.yaml"
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in MEMIT.items() if key != "v_lr")
    path.write_text(text + 'alg_name: "MEMIT"\nmodel_name: "./gpt2"\nstats_dir: "./data"\ndevice: 0\nv_lr: 5e-1\n')
    with pytest.warns(UserWarning, match="EasyEdit's keys without effect here: alg_name, model_name, stats_dir, device$"):
        hparams = editors.load("MEMIT", path).hparams
    assert hparams == editors.load("MEMIT", MEMIT | {"v_lr": 0.5}).hparams
    path.write_text("layers: [1\nv_lr: :")
    with pytest.raises(UserError, match="gpt2.yaml: not readable as YAML") as caught:
        editors.load("MEMIT", path)
    assert "\n" not in str(caught.value)


def test_missing_keys_are_all_named():
    some = {k: v for k, v in MEMIT.items() if k not in ("v_lr", "kl_factor")}
    with pytest.raises(UserError, match="missing keys v_lr, kl_factor|missing keys kl_factor, v_lr"):
        editors.load("MEMIT", some)


def test_files_that_are_no_hparams(tmp_path):
    (tmp_path / "gpt2-xl.json").write_text("{}")
    with pytest.raises(UserError, match="no such hparams file; there is gpt2-xl.json"):
        editors.load("MEMIT", tmp_path / "gpt2xl.json")
    (tmp_path / "broken.json").write_text('{"layers": [1')
    with pytest.raises(UserError, match="not readable as JSON"):
        editors.load("MEMIT", tmp_path / "broken.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="expected one JSON object"):
        editors.load("MEMIT", tmp_path / "list.json")


def test_unknown_editor():
    with pytest.raises(UserError, match="unknown editor 'memitt', did you mean 'MEMIT'"):
        editors.load("memitt", MEMIT)


def test_unsupported_switches_are_refused():
    with pytest.raises(UserError, match="bias_update: true is not supported, only false"):
        editors.load("ROME", HPARAMS["ROME"] | {"bias_update": True})


def test_rect_absolute_needs_rect():
    with pytest.raises(UserError, match="rect_absolute: without effect unless rect_share is set"):
        editors.load("MEMIT", MEMIT | {"rect_absolute": True})
    assert editors.load("MEMIT_rect", MEMIT | {"rect_absolute": True}).hparams.rect_absolute


def test_power_law_of_the_weight_decay():
    hp = dict(HPARAMS["FT"], weight_decay=False, wd_power_law=[-0.87028798, 0.15589562])
    assert editors.load("FT", hp).hparams.decay(10) == pytest.approx(0.1575, abs=1e-4)
    assert editors.load("FT", hp | {"legacy_wd_power_law": True}).hparams.decay(10) == 0


@pytest.mark.parametrize("name, key, usual, other", [
    ("MEMAT", "same_layer", "sum", "last"), ("MEMIT", "context_groups", "two", "each"),
    ("EMMET", "target_tokens", "ids", "text"),
])
def test_what_a_profile_decides_is_no_key_of_its_own(name, key, usual, other):
    """Files that name such a key with its usual value load; another value is told what decides it."""
    values = {**HPARAMS[name], key: usual}
    assert editors.load(name, values).hparams == editors.load(name, HPARAMS[name]).hparams
    with pytest.raises(UserError, match=f"{key}: .*{other}.* is not supported, only .*{usual}.*profile"):
        editors.load(name, {**values, key: other})
