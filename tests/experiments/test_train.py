"""experiments.train: every experiment trains and evaluates, runs go on, and mistakes end in one line."""

import dataclasses
import json
import re

import pytest
import torch
import yaml

from data.episodes import DataOptions
from experiments import train
from experiments.run.cli import run_program
from experiments.training.models import inner_params_of, load_editable
from tests.conftest import ROOT
from tests.models import tiny_model, tiny_tokenizer

CONFIGS = ROOT / "hparams" / "train"
SMALL = (
    "max_iters=4",
    "val_interval=2",
    "log_interval=2",
    "val_steps=2",
    "accumulate_bs=2",
    "data.source=world",
    "data.facts=200",
    "silent=True",
)
GPT2_PARAMS = "model.inner_params=[transformer.h.1.mlp.c_fc.weight,transformer.h.2.mlp.c_proj.weight]"


@pytest.fixture(scope="session")
def folders(golden, tmp_path_factory):
    """Tiny models, random but for GPT-2, all with its tokenizer."""
    from transformers import (
        AutoTokenizer,
        BartConfig,
        BartForConditionalGeneration,
        BertConfig,
        BertModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    from editors.learned.classifier import BertClassifier

    tok = AutoTokenizer.from_pretrained(golden / "tiny-gpt2")
    eos, size = tok.eos_token_id, len(tok)
    torch.manual_seed(0)
    models = {
        "t5": T5ForConditionalGeneration(
            T5Config(
                vocab_size=size,
                d_model=16,
                d_kv=8,
                d_ff=32,
                num_layers=2,
                num_heads=2,
                eos_token_id=eos,
                pad_token_id=eos,
                decoder_start_token_id=eos,
            )
        ),
        "bart": BartForConditionalGeneration(
            BartConfig(
                vocab_size=size,
                d_model=16,
                encoder_layers=2,
                decoder_layers=2,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                eos_token_id=eos,
                bos_token_id=eos,
                pad_token_id=eos,
                decoder_start_token_id=eos,
            )
        ),
        "bert": BertClassifier(
            BertModel(
                BertConfig(vocab_size=size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
            )
        ),
    }
    root = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        model.save_pretrained(root / name)
        tok.save_pretrained(root / name)
    return {"gpt2": golden / "tiny-gpt2", **{name: root / name for name in models}}


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Runs the program in this process; returns the run's folder."""

    def run(*words, folder="run"):
        monkeypatch.setattr("sys.argv", ["experiments.train", *map(str, words), f"hydra.run.dir={tmp_path / folder}"])
        monkeypatch.chdir(tmp_path)
        train.command()
        return tmp_path / folder

    return run


@pytest.fixture
def fails(monkeypatch, capsys, tmp_path):
    """Runs the program; returns its one error line. Checks that nothing was written."""

    def run(*words, into=tmp_path / "failed"):
        monkeypatch.setattr("sys.argv", ["experiments.train", *map(str, words), f"hydra.run.dir={into}"])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run_program(train.command)
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert caught.value.code == 2 and len(errors) == 1, errors
        assert not (tmp_path / "failed").exists()
        return errors[0]

    return run


MODELS = {"gen": ("gpt2", "gpt2"), "fc": ("bert-base", "bert"), "qa": ("t5small", "t5"), "zsre": ("bart-base", "bart")}


def words(alg, experiment, folders, *more):
    config, folder = MODELS[experiment]
    small_settings = {
        "mend": ("mend.rank=4",),
        "gtn": ("gtn.rank=4",),
        "efk": ("efk.hidden_dim=8", "efk.condition_dim=8"),
        "ke": ("ke.hidden_dim=8", "ke.condition_dim=8"),
        "enn": ("enn.first_order=True",),
        "ft": ("ft.max_edit_steps=2",),
    }[alg]
    params = GPT2_PARAMS if folder == "gpt2" else "model.inner_params=null"
    return (
        f"+alg={alg}",
        f"+experiment={experiment}",
        f"+model={config}",
        f"model.name={folders[folder]}",
        params,
        *small_settings,
        *SMALL,
        *more,
    )


@pytest.mark.parametrize(
    "alg, experiment",
    [
        ("mend", "gen"),
        ("mend", "fc"),
        ("mend", "qa"),
        ("mend", "zsre"),
        ("gtn", "qa"),
        ("ke", "gen"),
        ("efk", "fc"),
        ("enn", "gen"),
        ("ft", "gen"),
    ],
)
def test_every_algorithm_and_experiment(start, folders, alg, experiment):
    run = start(*words(alg, experiment, folders))
    about = json.loads((run / "results.json").read_text())
    results = about["results"]
    assert about["split"] == "test" and results["edit_success"] == results["edit/acc_test"]
    assert {"drawdown_acc", "drawdown_retain", "loss/total_edit_test", "kl/edit_test", "time/edit_test"} <= results.keys()
    assert ("drawdown_perplexity" in results) and ("loss/base_test" in results) == (alg == "enn")
    assert ("edit/acc_flip_test" in results) == (experiment == "fc")
    assert json.loads((run / "config.json").read_text())["alg"] == alg
    recorded = json.loads((run / "run.json").read_text())
    assert {"packages", "commit", "model", "data", "command"} <= recorded.keys() and len(
        recorded["data"]["test"]["sha256"]
    ) == 64
    if alg == "ft":
        assert not (run / "best.safetensors").exists() and results["iterations"] == 0
    else:
        assert (run / "best.safetensors").is_file() and results["iterations"] == 4
        steps = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        assert [s["step"] for s in steps if "loss/total_edit_val" in s] == [2, 4]


def test_an_evaluation_does_not_take_a_run_s_folder(start, fails, folders, tmp_path):
    run = start(*words("mend", "gen", folders))
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    message = fails(*words("mend", "gen", folders, "eval_only=True", f"archive={run}"), into=run)
    assert "holds the" in message and "of another run; choose another hydra.run.dir" in message
    assert before == {path: path.read_bytes() for path in run.iterdir() if path.is_file()}


def test_a_run_goes_on_and_is_evaluated(start, folders, tmp_path, capsys):
    whole = start(*words("mend", "gen", folders, "max_iters=6"), folder="whole")
    start(*words("mend", "gen", folders), folder="part")
    start(*words("mend", "gen", folders, "max_iters=6", f"archive={tmp_path / 'part'}"), folder="again")
    one, two = (json.loads((tmp_path / name / "results.json").read_text())["results"] for name in ("whole", "part"))
    assert {k: v for k, v in one.items() if "time" not in k} == {k: v for k, v in two.items() if "time" not in k}
    (tmp_path / "outputs").mkdir()
    whole.rename(tmp_path / "outputs" / "a_good_run")
    again = start(
        *words("mend", "gen", folders, "eval_only=True", "archive=good_run", f"results_dir={tmp_path / 'shared'}"),
        folder="evaluated",
    )
    three = json.loads((again / "results.json").read_text())["results"]
    assert three["edit_success"] == one["edit_success"] and three["iterations"] == 0
    shared = tmp_path / "shared" / "MEND" / "run_000"
    assert {p.name for p in shared.iterdir()} == {"params.json", "run.json", "results.json"}
    start(*words("mend", "gen", folders, f"export={tmp_path / 'mine.safetensors'}"), folder="exported")
    assert (tmp_path / "mine.safetensors").read_bytes() == (tmp_path / "exported" / "best.safetensors").read_bytes()


def test_the_published_command_on_files(start, folders, tmp_path):
    """+alg=mend +experiment=gen +model=distilgpt2 data.wiki_webtext=False, with local files."""
    texts = [f"The river number {i} flows through the old town and then to the sea in spring." for i in range(8)]
    for name in ("train", "valid"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"n_tokens": 3, "original": texts, "completions": texts}))
    (tmp_path / "wiki.txt").write_text("\n".join("word " * 55 + f"number {i}" for i in range(8)))
    run = start(
        "+alg=mend",
        "+experiment=gen",
        "+model=distilgpt2",
        "data.wiki_webtext=False",
        f"model.name={folders['gpt2']}",
        f"model.tokenizer_name={folders['gpt2']}",
        GPT2_PARAMS,
        f"data.path={tmp_path}/",
        f"data.wikitext_path={tmp_path / 'wiki.txt'}",
        "mend.rank=4",
        *[word for word in SMALL if not word.startswith("data.")],
    )
    about = json.loads((run / "results.json").read_text())
    assert about["split"] == "validation" and "perplexity/pre_val" in about["results"]


def test_any_decoder(start, fails, tmp_path):
    """Class, tokenizer and weights are those of the folder."""
    folder = tmp_path / "llama"
    model = tiny_model("llama", max_position_embeddings=64)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    run = start("+alg=mend", "+experiment=gen", "+model=auto", f"model.name={folder}", *SMALL)
    last = model.config.num_hidden_layers
    edited = {f"model.layers.{layer}.mlp.{name}.weight" for layer in range(last - 3, last) for name in ("up_proj", "down_proj")}
    model = load_editable({"name": str(folder)}, "gen")[0]
    assert type(model).__name__ == "LlamaForCausalLM" and set(inner_params_of({}, model)) == edited
    about = json.loads((run / "run.json").read_text())["model"]
    assert about["name"] == str(folder)
    assert re.search("model.name=NAME", fails("+alg=mend", "+experiment=gen", "+model=auto", *SMALL))


def test_targets_as_long_as_their_texts(fails, folders, tmp_path):
    """Anywhere in the file: the error comes before the training."""
    texts = [f"The river number {i} flows through the old town and then to the sea in spring." for i in range(8)] + ["So."]
    (tmp_path / "train.json").write_text(json.dumps({"n_tokens": 9, "original": texts, "completions": texts}))
    (tmp_path / "valid.json").write_text(json.dumps({"n_tokens": 9, "original": texts[:8], "completions": texts[:8]}))
    (tmp_path / "wiki.txt").write_text("\n".join("word " * 55 + f"number {i}" for i in range(20)))
    argv = [w for w in words("mend", "gen", folders) if not w.startswith("data.")]
    argv += [f"data.path={tmp_path}/", "data.source=files", "data.wiki_webtext=False",
              f"data.wikitext_path={tmp_path / 'wiki.txt'}"]
    assert "the target of 'So.' has 9 tokens of a text of " in fails(*argv)


def test_the_validation_s_numbers_are_called_so(start, folders):
    run = start(*words("mend", "gen", folders, "eval.final_eval=False"))
    results = json.loads((run / "results.json").read_text())
    assert results["split"] == "validation"
    assert "edit/acc_val" in results["results"] and "edit/acc_test" not in results["results"]


@pytest.mark.parametrize("word, message", [
    ("ft.locality.batch_size=0", "ft.locality.batch_size: 0"), ("ft.time_limit=0", "time_limit: 0"),
    ("ft.time_limit=-1", "time_limit: -1"), ("ft.opt=LBFGS", "ft.opt: LBFGS"),
])
def test_mistakes_of_ft(fails, folders, word, message):
    assert message in fails(*words("ft", "gen", folders, "ft.locality.enabled=True", word))


def test_ft_that_diverges(monkeypatch, capsys, folders, tmp_path):
    command = ["train", *words("ft", "gen", folders, "edit_lr=1e38"), f"hydra.run.dir={tmp_path / 'run'}"]
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run_program(train.command)
    assert caught.value.code == 2 and "fine-tuning: " in capsys.readouterr().err
    assert not (tmp_path / "run" / "results.json").exists()


def test_finished_runs_are_those_of_the_same_words(start, folders):
    argv = words("gtn", "qa", folders)
    run = start(*argv)
    train.check_finished(run, [*reversed(argv), "archive=x"])
    with pytest.raises(ValueError, match="finished run with other words .lr=3, seed=3."):
        train.check_finished(run, [*argv, "seed=3", "lr=3"])


def test_default_places():
    from editors.learned.model_kind import ModelKind

    config = {"alg": "gtn", "data_dir": "/data", "model": {"name": "world"}}
    names = {kind: str(train.default_export(config, kind)) for kind in ModelKind}
    assert names[ModelKind.DECODER] == "/data/learned/MEND/world.safetensors" and len(set(names.values())) == len(names)
    hub = {**config, "alg": "ke", "model": {"name": "EleutherAI/gpt-j-6B"}}
    assert str(train.default_export(hub, ModelKind.DECODER)) == "/data/learned/KE/EleutherAI_gpt-j-6B.safetensors"


def test_evaluations_take_the_trained_editor_before_the_shipped(tmp_path, capsys):
    from experiments.run.config import RunConfig
    from experiments.run.hparams_file import HPARAMS, load_editor

    trained = tmp_path / "learned" / "MEND" / "world.safetensors"
    for path in (HPARAMS / "MEND" / "world.safetensors", trained):
        assert load_editor(RunConfig(alg_name="MEND", data_dir=str(tmp_path)))[1].hparams.checkpoint == str(path)
        assert f"trained editor: {path}" in capsys.readouterr().out
        trained.parent.mkdir(parents=True, exist_ok=True)
        trained.touch()
    with pytest.raises(ValueError, match="/KE/world.safetensors: train one"):
        load_editor(RunConfig(alg_name="KE", data_dir=str(tmp_path)))


@pytest.mark.parametrize("alias", ["gtn", "ke", "serac"])
def test_presets_reach_an_algorithm_by_any_name(alias, monkeypatch, capsys):
    key_of_alias = {"gtn": "mend", "ke": "efk", "serac": "rep"}[alias]
    preset, key, value = {"gtn": ("world_mend", "descent", True), "ke": ("world_ke", "condition_dim", 128),
                          "serac": ("world_serac", "cls_name", "world")}[alias]
    option = {"gtn": "rank", "ke": "several", "serac": "threshold"}[alias]
    argv = [f"+alg={alias}", "+experiment=gen", "+model=world", f"+preset={preset}", f"{alias}.{option}=7", "--cfg", "job"]
    monkeypatch.setattr("sys.argv", ["train", *argv])
    train.command()
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["alg"] == alias and alias not in config
    assert config[key_of_alias][key] == value and config[key_of_alias][option] == 7


def test_several_edits_and_legacy_switches(start, folders):
    run = start(
        *words(
            "mend",
            "gen",
            folders,
            "data.n_edits=3",
            "batch_size=4",
            "val_batch_size=4",
            "legacy.cbase_not_in_gradient=True",
            "legacy.lr_lr_without_effect=True",
            "legacy.accumulate_first_step_plus_one=True",
            "ref=mine",
        )
    )
    assert json.loads((run / "results.json").read_text())["results"]["n_tokens/pre_test"] > 0


def test_ft_with_locality(start, folders):
    start(*words("ft", "gen", folders, "ft.locality.enabled=True", "edit_lr=1e-3"))


@pytest.mark.parametrize(
    "more, message",
    [
        (("alg=mendd",), "mendd"),
        (("lrr=3",), "lrr"),
        (("+lrr=3",), "lrr: no key of a training with alg=mend; did you mean lr"),
        (("+preset=world_ke",), "efk: no key of a training with alg=mend"),
        (("+legacy.ft_off_by_two=true",), "did you mean legacy.ft_off_by_one"),
        (("+model.knd=t5",), "did you mean model.kind"),
        (("export=mine.safetensors", "debug=True"), "export=mine.safetensors: .*debug"),
        (("export=default", "eval_only=True"), "export=default: .*eval_only"),
        (("early_stop_key=nonsense",), "no 'nonsense'; it reports .*loss/total_edit_val"),
        (("opt=LBFGS",), "opt: LBFGS can't take a step"),
        (("mend.rank=big",), "rank is .*expected an integer"),
        (("lr=fast",), "lr=fast: give a number"),
        (("model.name=./nowhere",), "'./nowhere': no such folder"),
        (("model.inner_params=[transformer.h.7.mlp.c_fc.weight]",), "no parameter transformer.h.7"),
        (("data.n_edits=2",), "batch_size=2: too small for data.n_edits=2"),
        (("val_batch_size=1",), "val_batch_size=1: too small"),
        (("mend.combine=True", "mend.x_only=True"), "combine"),
        (("archive=nothing",), "archive=nothing: no run"),
        (("eval_only=True",), "archive=PATH"),
        (("data.rephrase=7",), "data.rephrase"),
        (("recipe=ours",), "recipe"),
        (("device=cuda:99",), "cuda:99"),
        (("opt=Adamm",), "Adamm"),
        (("mend.mlp_class=MLP",), "IDMLP"),
        (("model.class_name=GPT2LMHeadMode",), "did you mean 'GPT2LMHeadModel'"),
        (("model.pt=weights.ckpt",), "no .safetensors file"),
    ],
)
def test_mistakes(fails, folders, more, message):
    base = [w for w in words("mend", "gen", folders) if w.split("=")[0].lstrip("+") not in {m.split("=")[0] for m in more}]
    assert re.search(message, fails(*base, *more))


@pytest.mark.parametrize(
    "argv, message",
    [
        ((), r"choose \+alg=NAME .there is .*mend"),
        (("+alg=mend",), r"choose \+experiment=NAME .there is .*gen"),
        (("+alg=mend", "+experiment=gen"), r"choose a model: \+model=world"),
    ],
)
def test_groups_that_are_missing(fails, argv, message):
    assert re.search(message, fails(*argv))


@pytest.mark.parametrize(
    "experiment, folder, message",
    [
        ("gen", "t5", "'gen' is for models of kind decoder, but .* is t5"),
        ("gen", "bert", "'gen' is for"),
        ("fc", "gpt2", "'fc' is for models of kind classifier"),
        ("qa", "gpt2", "'qa' is for models of kind t5 or bart, but"),
        ("sent", "t5", "'sent' is for models of kind blenderbot, but .* is t5"),
    ],
)
def test_models_that_do_not_fit_the_experiment(fails, folders, experiment, folder, message):
    config = {"gpt2": "gpt2", "t5": "t5small", "bert": "bert-base"}[folder]
    more = () if folder == "gpt2" and experiment != "fc" else ("model.class_name=null",)
    assert re.search(
        message,
        fails("+alg=mend", f"+experiment={experiment}", f"+model={config}", f"model.name={folders[folder]}", *more, *SMALL),
    )


@pytest.mark.parametrize("word, message", [
    ("seed=x", "seed=x: give a whole number"), ("seed=-1", "seed=-1"), ("batch_size=x", "batch_size=x: give a whole number"),
    ("val_batch_size=0", "val_batch_size=0"), ("dropout=2", "dropout=2: give a number"), ("lr=${nope}", "nope"),
    ("data=null", "data=None: give its keys one by one"), ("data.n_edits=two", "data.n_edits=two"), ("half=3", "half=3"),
    ("max_iters=null", "max_iters=null"), ("cedit=.inf", "cedit"), ("export=/", "export=/: is a folder"),
    ("results_dir=/dev/null", "/dev/null.*results can't be written there"), ("eval=3", "eval=3"), ("legacy=null", "legacy"),
    ("model=3", "override must be a string"), ("no_such=3", "no_such"), ("lr", "lr"), ("lr=1e300", "rate 1e\\+300"),
])
def test_words_that_are_wrong(fails, folders, word, message):
    assert re.search(message, fails(*words("mend", "gen", folders, word)))


def test_a_run_that_was_killed_at_its_first_validation_begins_anew(start, fails, folders, tmp_path):
    folder = start(*words("mend", "gen", folders))
    results = json.loads((folder / "results.json").read_text())["results"]
    for name in ("last.safetensors", "results.json"):
        (folder / name).unlink()
    assert "it begins anew with hydra.run.dir" in fails(*words("mend", "gen", folders, f"archive={folder}"))
    with pytest.warns(UserWarning, match="killed at its first validation; it begins anew"):
        start(*words("mend", "gen", folders))
    again = json.loads((folder / "results.json").read_text())["results"]
    assert {k: v for k, v in again.items() if "time" not in k} == {k: v for k, v in results.items() if "time" not in k}


def test_damaged_data_and_archives(fails, start, folders, tmp_path):
    (tmp_path / "train.json").write_text('{"n_tokens": 3}')
    more = [w for w in words("mend", "gen", folders) if not w.startswith("data.")]
    assert re.search("train.json.*completions", fails(*more, f"data.path={tmp_path}/", "data.source=files"))
    run = start(*words("mend", "gen", folders), folder="good")
    assert "another configuration" in fails(
        *[w for w in words("mend", "gen", folders) if w != "mend.rank=4"], "mend.rank=5", f"archive={run}"
    )
    assert "another algorithm" in fails(*words("efk", "gen", folders), f"archive={run}")
    assert "another seed, data.test.seed, data.train.seed" in fails(*words("mend", "gen", folders, "seed=3", f"archive={run}"))
    for word in ("batch_size=3", "val_batch_size=3", "single_batch=True", "dropout=0.1", "half=True"):
        message = fails(*words("mend", "gen", folders, word, f"archive={run}"))
        assert f"another {word.split('=')[0]};" in message or word == "half=True" and "another" in message
    message = fails(*words("mend", "gen", folders, "data.rephrase=False", f"archive={run}"))
    assert "another data.test.options.rephrase, data.train.options.rephrase" in message
    error = fails(*words("mend", "gen", folders), into=run)
    assert "holds the best.safetensors and last.safetensors and results.json of another run" in error
    assert f"archive={run}" in error
    (run / "last.safetensors").write_bytes((run / "last.safetensors").read_bytes()[:-9])
    assert "truncated or damaged" in fails(*words("mend", "gen", folders, f"archive={run}"))


def test_weights_of_lightning_files(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(folders["bert"] / "model.safetensors")
    head = load_file(folders["bert"] / "classifier_head.safetensors")
    lightning = {f"model.model.{k}": v + 1 for k, v in weights.items()} | {f"model.{k}": v + 1 for k, v in head.items()}
    lightning["model.model.embeddings.position_ids"] = torch.arange(512)[None]
    save_file(lightning, tmp_path / "fc.safetensors")
    model, _ = load_editable(
        {"name": str(folders["bert"]), "class_name": "BertClassifier", "pt": str(tmp_path / "fc.safetensors")}, "fc"
    )
    assert torch.equal(model.classifier.bias, head["classifier.bias"] + 1)


def test_launchers_compose(monkeypatch, capsys):
    for launcher, target in (("slurm", "SlurmLauncher"), ("joblib", "JoblibLauncher")):
        monkeypatch.setattr(
            "sys.argv",
            [
                "experiments.train",
                f"hydra/launcher={launcher}",
                "+alg=mend",
                "+experiment=gen",
                "+model=world",
                "--cfg",
                "hydra",
            ],
        )
        train.command()
        assert target in capsys.readouterr().out


def test_configurations_are_complete():
    """Every key of the data is there, with its default; every group's file composes."""
    config = yaml.safe_load((CONFIGS / "config.yaml").read_text())
    fields = {field.name: field.default for field in dataclasses.fields(DataOptions)}
    assert {key: value for key, value in config["data"].items() if key not in ("source", "sent_eval_sample")} == fields
    from editors.learned.algorithms import algorithm

    for path in (CONFIGS / "alg").glob("*.yaml"):
        assert algorithm(path.stem) and yaml.safe_load(path.read_text())["alg"] == path.stem
    for path in (CONFIGS / "model").glob("*.yaml"):
        params = yaml.safe_load(path.read_text())["inner_params"]
        assert params is None and path.stem in ("world", "auto") or len(set(params)) == len(params) > 3
