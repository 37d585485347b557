"""The configuration of a run: the flags that others rely on, and what follows from them."""

import dataclasses
import json
import re

import pytest

from common.errors import UserError
from experiments.evaluate import main
from experiments.run.config import ALWAYS, command_line, GROUPS, IF_SET, OR_NULL, RunConfig, WITH_TASKS
from experiments.sweep import sweep_flags
from tests.conftest import GOLDEN

DEFAULTS = {
    "model_name": "world", "dtype": "auto", "device": "auto",
    "ds_name": None, "dataset_size_limit": None, "sample_num": None, "index_file": None, "max_edits": None,
    "alg_name": None, "hparams_fname": None, "set": None, "num_edits": 1, "context_templates": None, "use_cache": False,
    "conserve_memory": False, "seed": 0, "save_edits": False,
    "skip_generation_tests": False, "generation_test_interval": 1, "contains_length": 0,
    "sequential": False, "checkpoint_steps": 10, "history_eval_steps": 0, "history_sample": None, "perplexity_corpus": None,
    "perplexity_tokens": None,
    "save_model": False, "save_model_interval": 100, "save_model_location": None,
    "language": None, "language_eval": None, "languages_measured": None, "pairing": None, "profile": None, "bilingual": None,
    "add_attention": False, "top_num_heads": None, "alpha": None, "head_ind": None, "load_attention": None,
    "save_attention_heads": None, "load_delta": None, "save_delta_matrix": None, "save_figure": None, "eval_on_others": False,
    "do_downstream_eval": False, "downstream_eval_steps": 100, "downstream_tasks": None, "number_of_few_shots": "-1",
    "number_of_tests": None, "gen_len": 3, "legacy_rte_labels": False, "downstream_data": None,
    "results_dir": "results", "data_dir": None, "dir_name": None, "continue_from_run": None, "stats_dir": None,
}
"""Commands, scripts and the run.json of earlier runs have these names: they stay."""
SETTLED = {
    ALWAYS: {"alg_name", "num_edits", "seed", "generation_test_interval", "skip_generation_tests", "sequential",
             "history_eval_steps", "history_sample", "perplexity_corpus"},
    OR_NULL: {"perplexity_tokens", "language", "language_eval", "languages_measured", "pairing", "profile", "bilingual",
              "top_num_heads", "alpha", "head_ind", "load_attention", "load_delta", "eval_on_others"},
    WITH_TASKS: {"downstream_eval_steps", "gen_len", "legacy_rte_labels"},
    IF_SET: set(),
}


def parse(*words):
    return RunConfig(**vars(command_line().parse_args(["--alg_name", "FT", *words])))


def test_flags_and_defaults():
    assert parse().flags() == DEFAULTS | {"alg_name": "FT"} == RunConfig(alg_name="FT").flags()


@pytest.mark.parametrize("words, flags", [
    ("--hparams x.json --dataset_name cf", {"hparams_fname": "x.json", "ds_name": "cf"}),
    ("--device_map auto", {"device": "map"}),
    ("--sequential --save_edits False --save_model=yes", {"sequential": True, "save_model": True}),
    ("--do_downstream_eval 1 --legacy_rte_labels", {"do_downstream_eval": True, "legacy_rte_labels": True}),
    ("--top_num_heads 8,16 --alpha 1,2.5", {"top_num_heads": [8, 16], "alpha": [1.0, 2.5]}),
    ("--generation_test_interval -1 --sample_num 3 --seed 7", {"generation_test_interval": -1, "sample_num": 3, "seed": 7}),
])
def test_words(words, flags):
    assert parse(*words.split()).flags() == DEFAULTS | {"alg_name": "FT"} | flags


@pytest.mark.parametrize("words, message", [
    ("--num_edits 0", "'0' should be a whole number from 1"), ("--contains_length -1", "'-1' should be a whole number from 0"),
    ("--generation_test_interval 0", "or -1 (never)"), ("--sequential maybe", "'maybe' should be True or False"),
    ("--top_num_heads 8,8", "or several different ones with commas between"), ("--alpha nan", "'nan' should be a number"),
    ("--device_map cuda", "'cuda' should be auto"), ("--profile own", "invalid choice: 'own'"), ("--seed -1", "2^63 - 1"),
])
def test_words_out_of_bounds(words, message, capsys):
    with pytest.raises(SystemExit):
        parse(*words.split())
    assert message in capsys.readouterr().err


def test_help_is_in_groups():
    text = command_line().format_help()
    assert [title for title in re.findall(r"^(\w+):$", text, re.M) if title != "options"] == list(GROUPS)
    assert {field.name for parts in GROUPS.values() for part in parts for field in dataclasses.fields(part)} == DEFAULTS.keys()


def test_what_a_run_that_goes_on_must_agree_in():
    config = RunConfig(alg_name="FT", eval_on_others=False, load_delta="")
    for way, names in SETTLED.items():
        assert config.settled(way).keys() == names
    assert config.settled(IF_SET, OR_NULL) == dict.fromkeys(SETTLED[OR_NULL])
    assert RunConfig(alg_name="FT", contains_length=9).settled(IF_SET) == {"contains_length": 9}


def test_sweeps_take_the_same_flags():
    flags = sweep_flags()
    assert flags == {name: value for name, value in (DEFAULTS | {"alg_name": "???"}).items()
                     if name not in ("dir_name", "continue_from_run", "set")}
    assert list(flags)[:4] == ["alg_name", "model_name", "hparams_fname", "ds_name"]


def test_completion():
    assert RunConfig(alg_name="FT", model_name="gpt2-xl").complete().flags() == DEFAULTS | {
        "alg_name": "FT", "model_name": "gpt2-xl", "ds_name": "mcf", "dir_name": "FT"}
    config = RunConfig(alg_name="MEMIT", add_attention=True)
    assert config.complete().flags() == DEFAULTS | {
        "alg_name": "MEMAT", "add_attention": True, "language": "english", "language_eval": "english", "top_num_heads": [16],
        "ds_name": "world", "dir_name": "MEMIT"}
    assert not config.language and config.complete().complete() == config.complete()
    assert RunConfig(alg_name="ITI", language="catalan").complete().alpha == [15.0]
    with pytest.raises(UserError, match="--add_attention goes with MEMIT, not with ROME"):
        RunConfig(alg_name="ROME", add_attention=True).complete()


@pytest.mark.parametrize("flags, message", [
    ({"alpha": [1.0]}, "--alpha has no effect without --add_attention, or --alg_name MEMAT"),
    ({"add_attention": True, "load_attention": "x"}, "--load_attention has no effect without --head_ind, which says"),
    ({"sequential": True, "perplexity_corpus": "x"},
     "--perplexity_corpus has no effect with --sequential and without --history_eval_steps"),
    ({"legacy_rte_labels": True}, "--legacy_rte_labels has no effect without --do_downstream_eval"),
    ({"pairing": "legacy"}, "--pairing has no effect without --language"),
])
def test_flags_without_effect(flags, message):
    with pytest.raises(UserError, match=message):
        RunConfig(alg_name="FT", **flags).check_needs()


def test_main_takes_a_configuration_or_keywords(run, hparams, tmp_path, tiny_gpt2):
    folder = run("FT", dataset_size_limit=1)
    config = RunConfig(alg_name="FT", hparams_fname=hparams("FT"), ds_name=str(GOLDEN / "multi_counterfact.json"),
                       skip_generation_tests=True, results_dir=tmp_path / "configured")
    again = main(config, tiny_gpt2, dataset_size_limit=1)
    flags, flags_again = (json.loads((path / "run.json").read_text())["flags"] for path in (folder, again))
    assert flags_again == flags | {"results_dir": str(tmp_path / "configured")}
    with pytest.raises(TypeError, match="num_edit"):
        main("FT", num_edit=1)
