"""A user's mistake ends in one clear line and exit code 2, with nothing half-written."""

import json
import os
import re
import shutil
import warnings

import pytest

from editors import Edit
from experiments import evaluate, summarize
from experiments.run.cli import run_program
from experiments.run.config import RunConfig
from experiments.run.hparams_file import load_editor


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    """Runs a program's command line in this process; returns its one error line. Checks that no result is left behind."""
    def start(module, *argv: str) -> str:
        monkeypatch.setattr("sys.argv", [module.__name__, *map(str, argv)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run_program(getattr(module, "command", module.main))
        errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert caught.value.code == 2 and len(errors) == 1
        assert not list(tmp_path.glob("results/*/*"))
        return errors[0].partition("error: ")[2]
    return start


@pytest.fixture
def flags(golden, hparams, tmp_path):
    """Flags of a valid evaluation; a test spoils one."""
    return {"--alg_name": "FT", "--model_name": golden / "tiny-gpt2", "--hparams_fname": hparams("FT"),
            "--ds_name": golden / "multi_counterfact.json", "--results_dir": tmp_path / "results"}


def arguments(flags: dict) -> list:
    return ["--skip_generation_tests", *(part for pair in flags.items() for part in pair)]


@pytest.mark.parametrize(("flag", "value", "message"), [
    ("--alg_name", "MENIT", "unknown editor 'MENIT', did you mean 'MEMIT'"),
    ("--model_name", "gpt2-xll", "'gpt2-xll'.*did you mean 'gpt2-xl'"),
    ("--model_name", "gpt2", "'gpt2': not on this machine, and the Hugging Face hub can't be reached"),
    ("--model_name", "./nowhere", "'./nowhere': no such folder"),
    ("--ds_name", "mfc", "unknown data set 'mfc'; did you mean 'mcf'"),
    ("--ds_name", "nowhere/set.json", "nowhere/set.json: no such file"),
    ("--hparams_fname", "gpt2-x.json", "no such hparams file; there is .*gpt2-x"),
    ("--num_edits", "13", "--num_edits 13: .*has only 12 records"),
    ("--num_edits", "0", "--num_edits: '0' should be a whole number from 1"),
    ("--num_edits", "1e3", "--num_edits: '1e3' should be a whole number from 1"),
    ("--generation_test_interval", "0", "'0' should be a whole number from 1, or -1"),
    ("--seed", "-1", "'-1' should be a whole number from 0"),
    ("--continue_from_run", "run_003", "--continue_from_run run_003: no such run"),
    ("--device", "cuda:99", "--device cuda:99: not available here"),
    ("--device", "meta", "--device meta: not available here"),
    ("--device", "mps", "--device mps: not available here .{,130}; use auto"),
    ("--dtype", "float23", "invalid choice: 'float23'"),
])
def test_flags(program, flags, flag, value, message):
    assert re.search(message, program(evaluate, *arguments({**flags, flag: value})))


def test_a_model_without_hyper_parameters_of_its_own(program, flags):
    del flags["--hparams_fname"]
    line = program(evaluate, *arguments({**flags, "--model_name": "wrld"}))
    assert "FT has no hyper-parameters of its own for the model 'wrld'; did you mean 'world'?; let --hparams_fname auto" in line
    assert "world_constr.json" in line
    assert "auto" not in program(evaluate, *arguments({**flags, "--model_name": "wrld", "--alg_name": "IKE"}))


def test_cf_holds_contradictions(program, flags):
    line = program(evaluate, *arguments({**flags, "--ds_name": "cf", "--num_edits": 2}))
    assert "use mcf, --num_edits 1, or an order" in line


def test_hparams(program, flags, hparams):
    misspelt, mistyped = hparams("FT", laers=[1]), hparams("FT", lr="fast")
    line = program(evaluate, *arguments({**flags, "--hparams_fname": misspelt}))
    assert "unknown key 'laers', did you mean 'layers'" in line
    line = program(evaluate, *arguments({**flags, "--hparams_fname": mistyped}))
    assert 'lr is "fast", expected a number' in line
    for multiplier in (0, float("nan"), "ten"):
        fname = hparams("MEMIT", dynamic_multiplier=multiplier)
        line = program(evaluate, *arguments({**flags, "--alg_name": "MEMIT", "--hparams_fname": fname}))
        assert re.search('dynamic_multiplier: (0|nan) must be above 0|dynamic_multiplier is "ten", expected a number', line)


@pytest.mark.parametrize(("change", "message"), [
    ({"prompt": "Who knows"}, "exactly one {}.*found 0: 'Who knows'"),
    ({"prompt": "{} or {}"}, "exactly one {}.*found 2: '{} or {}'"),
    ({"subject": " "}, "subject.*empty"),
    ({"target_new": {"str": ""}}, "target_new.*empty|str.*empty"),
])
def test_records(program, flags, golden, tmp_path, change, message):
    records = json.loads((golden / "multi_counterfact.json").read_text())
    records[1]["requested_rewrite"].update(change)
    path = tmp_path / "set.json"
    path.write_text(json.dumps(records))
    assert re.search(message, program(evaluate, *arguments({**flags, "--ds_name": path})))


@pytest.mark.parametrize(("key", "value", "message"), [
    ("case_id", -1, "record 2: its case_id -1 is negative"),
    ("paraphrase_prompts", ["\ud800 is"], "'paraphrase_prompts' has half of a character .*ud800 is'"),
    ("neighborhood_prompts", ["word " * 140],
     "case 2: the prompt '(word ){15}wo...' with its target has 282 tokens, .*128 positions"),
    ("generation_prompts", ["word " * 140], None),  # not looked at without generation tests
])
def test_other_prompts(program, flags, golden, tmp_path, key, value, message):
    records = json.loads((golden / "multi_counterfact.json").read_text())
    records[2][key] = value
    path = tmp_path / "set.json"
    path.write_text(json.dumps(records))
    if message is None:
        evaluate.main("FT", str(flags["--model_name"]), hparams_fname=flags["--hparams_fname"], ds_name=path,
                      dataset_size_limit=3,
                      skip_generation_tests=True, results_dir=tmp_path / "results")
    else:
        assert re.search(message, program(evaluate, *arguments({**flags, "--ds_name": path, "--num_edits": 1})))


def test_a_place_where_nothing_can_be_written(program, flags, tmp_path):
    (tmp_path / "file").write_text("")
    line = program(evaluate, *arguments({**flags, "--results_dir": tmp_path / "file" / "results"}))
    assert re.search("file/results/FT: results can't be written there (.*); choose another folder", line)
    folder = evaluate.main("FT", str(flags["--model_name"]), hparams_fname=flags["--hparams_fname"],
                           ds_name=flags["--ds_name"], dataset_size_limit=1,
                           skip_generation_tests=True, results_dir=tmp_path / "here")
    line = program(summarize, "--dir_name", "FT", "--results_dir", folder.parent.parent, "--out", tmp_path / "file")
    assert re.search("file/summary.json: can't be written (.*)", line)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda folder: os.truncate(folder / "model.safetensors", 50_000), "its weights are damaged"),
    (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    (lambda folder: (folder / "config.json").unlink(), "the folder has no config.json"),
    (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "the folder has no tokenizer.json"),
])
def test_model_folders(program, flags, golden, tmp_path, spoil, message):
    folder = shutil.copytree(golden / "tiny-gpt2", tmp_path / "model")
    spoil(folder)
    assert message in program(evaluate, *arguments({**flags, "--model_name": folder}))


def test_weights_that_lack_a_tensor(program, flags, golden, tmp_path):
    from safetensors.torch import load_file, save_file
    folder = shutil.copytree(golden / "tiny-gpt2", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "h.3.mlp.c_proj.weight" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    line = program(evaluate, *arguments({**flags, "--model_name": folder}))
    assert "its weights lack transformer.h.3.mlp.c_proj.weight" in line


def test_a_truncated_cache_is_made_again(flags, hparams, tmp_path, monkeypatch):
    monkeypatch.setenv("KE_DATA_DIR", str(tmp_path / "data"))
    memit = {**flags, "--alg_name": "MEMIT", "--hparams_fname": hparams("MEMIT", v_num_grad_steps=2), "--dataset_size_limit": 1}
    elsewhere = arguments({**memit, "--results_dir": tmp_path / "elsewhere"})
    monkeypatch.setattr("sys.argv", ["evaluate", "--use_cache", *map(str, elsewhere)])
    evaluate.command()
    (file,) = (tmp_path / "data" / "z_cache").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    monkeypatch.setattr("sys.argv", ["evaluate", "--use_cache", *map(str, arguments(memit))])
    with pytest.warns(UserWarning, match=f"{file}: truncated or damaged"):
        evaluate.command()
    assert file.read_bytes() == whole


def test_missing_snippets(program, flags, golden, tmp_path, monkeypatch):
    records = json.loads((golden / "multi_counterfact.json").read_text())
    records[0]["requested_rewrite"]["target_new"]["id"] = "Q0"
    (tmp_path / "set.json").write_text(json.dumps(records))
    shutil.copy(golden / "attribute_snippets.json", tmp_path)
    line = program(evaluate, *arguments({**flags, "--ds_name": tmp_path / "set.json"})[1:])
    assert "'Q0'" in line and "--skip_generation_tests" in line
    (tmp_path / "attribute_snippets.json").unlink()
    monkeypatch.setenv("KE_DATA_URL", "http://127.0.0.1:9/")  # nobody serves there
    line = program(evaluate, *arguments({**flags, "--ds_name": tmp_path / "set.json"})[1:])
    assert "attribute_snippets.json is not in" in line and "or do without, with --skip_generation_tests" in line


def test_summarize(program, tmp_path):
    assert "no such folder of results" in program(summarize, "--dir_name", "NONE", "--results_dir", tmp_path)
    (tmp_path / "MEMIT" / "run_000").mkdir(parents=True)
    line = program(summarize, "--dir_name", "MEMIT", "--runs", "run_9", "--results_dir", tmp_path)
    assert "matches run_9; there is run_000" in line
    assert "no cases in" in program(summarize, "--dir_name", "MEMIT", "--results_dir", tmp_path)
    assert "'0' should be a whole number" in program(summarize, "--dir_name", "MEMIT", "--first_n_cases", "0")
    (tmp_path / "MEMIT" / "run_000" / "run.json").write_text("[]")
    assert "run.json: was not written by" in program(summarize, "--dir_name", "MEMIT", "--results_dir", tmp_path)
    assert not (tmp_path / "MEMIT" / "summary.json").exists()


@pytest.mark.parametrize("word, message", [
    ("lr", "--set lr: give KEY=VALUE"), ("lr=", "--set lr=: give KEY=VALUE"),
    ("kl_factor=1", "--set kl_factor=1: kl_factor has no effect (the published code reads it nowhere)"),
    ("lrr=1", "--set lrr=1: FT has no hyper-parameter 'lrr'; did you mean 'lr'?"),
    ("lr=fast", "--set lr=fast: lr"), ("layers=4", "--set layers=4: layers"), ("num_steps=-1", "--set num_steps=-1: num_steps"),
])
def test_changes_of_hyper_parameters(program, flags, word, message):
    assert program(evaluate, *arguments(flags), "--set", word).startswith(message)


def test_a_hyper_parameter_is_given_once(program, flags):
    assert program(evaluate, *arguments(flags), "--set", "lr=1", "--set", "lr=2") == "--set lr=2: lr is there twice"
    memat = arguments({**flags, "--alg_name": "MEMAT", "--hparams_fname": "world.json", "--ds_name": "world"})
    line = program(evaluate, *memat, "--profile", "paper", "--set", "profile=paper")
    assert line == "--set profile=paper does not go with --profile: give one of them"


def test_a_warning_is_one_line(capsys):
    before = warnings.showwarning
    run_program(lambda: warnings.warn("fewer texts than asked for"))
    assert capsys.readouterr().err == "warning: fewer texts than asked for\n" and warnings.showwarning is before


def test_a_file_is_complained_of_once(capsys):
    config = RunConfig(alg_name="MEMIT", hparams_fname="gpt2-xl.json", model_name="gpt2-xl", seed=7)
    run_program(lambda: load_editor(config))
    assert capsys.readouterr().err.count("without effect: ") == 1


def test_an_interrupt_is_no_traceback(capsys):
    def interrupted():
        raise KeyboardInterrupt
    with pytest.raises(SystemExit) as caught:
        run_program(interrupted)
    assert caught.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_program(lambda: 1 / 0)

@pytest.mark.parametrize("module", ["evaluate", "collect_stats", "causal_trace", "downstream", "export"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(program, flags, golden, tmp_path, module, value):
    from importlib import import_module

    from safetensors.torch import load_file, save_file
    folder = shutil.copytree(golden / "tiny-gpt2", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.3.mlp.c_proj.weight"][2, 3] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    edit = tmp_path / "edit.safetensors"
    Edit({}, {}).save(edit)
    argv = {"evaluate": arguments({**flags, "--model_name": folder}),
            "collect_stats": ["--model_name", folder, "--layers", "1", "--dataset", golden / "corpus.jsonl"],
            "causal_trace": ["--model_name", folder, "--fact_file", "world", "--output_dir", tmp_path / "trace"],
            "downstream": ["--model_name", folder, "--downstream_tasks", "sst", "--downstream_data", "world",
                           "--results_dir", tmp_path / "results"],
            "export": [edit, "--model_name", folder, "--out", tmp_path / "out"]}[module]
    line = program(import_module(f"experiments.{module}"), *argv)
    assert "transformer.h.3.mlp.c_proj.weight is not finite" in line
    assert not (tmp_path / "trace").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("module", ["evaluate", "causal_trace", "memory"])
def test_recurrent_models_end_before_anything_long_begins(program, flags, golden, hparams, tmp_path, module):
    from importlib import import_module

    import transformers
    sizes = {"vocab_size": 1000, "hidden_size": 32, "num_hidden_layers": 4}
    transformers.RwkvForCausalLM(transformers.RwkvConfig(**sizes, attention_hidden_size=32)).save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(golden / "tiny-gpt2" / name, tmp_path / "model")
    argv = {"evaluate": arguments({**flags, "--alg_name": "ROME", "--hparams_fname": hparams("ROME"),
                                   "--model_name": tmp_path / "model"}),
            "causal_trace": ["--model_name", tmp_path / "model", "--fact_file", "world", "--output_dir", tmp_path / "trace"],
            "memory": ["create", tmp_path / "memory.safetensors", "--alg_name", "LU", "--hparams_fname", "world.json",
                       "--model_name", tmp_path / "model"]}[module]
    assert "RwkvForCausalLM reads padding into its states" in program(import_module(f"experiments.{module}"), *argv)
    assert not (tmp_path / "trace").exists()
