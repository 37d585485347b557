"""SERAC and the lookup cache through experiments.train, on tiny models and the built-in world's data; the scope program."""

import json
import shutil

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from common.errors import UserError
from editors.memory import parts
from experiments import memory, scope, train
from experiments.training.setup import prepare
from tests.editors.learned.conftest import LEARNED

KINDS = {"qa": ("t5-tiny", "s2s"), "fnli": ("bert-tiny", "enc"), "sent": ("blender-tiny", "s2s"), "gen": ("gpt2-tiny", "gpt")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models with their tokenizers beside them."""
    if not LEARNED.is_dir():
        pytest.skip("the published learned editors' outputs are not beside this checkout")
    root = tmp_path_factory.mktemp("models")
    for name, tok in (*KINDS.values(), ("scope-bert-tiny", "enc"), ("scope-cross-tiny", "enc")):
        shutil.copytree(LEARNED / "models" / name, root / name)
        for file in (LEARNED / "tokenizers" / tok).iterdir():
            shutil.copy(file, root / name)
    return root


def config(folders, experiment, *words, alg="rep"):
    name = KINDS[experiment][0]
    settings = [f"++model.name={folders / name}", "++model.tokenizer_name=null", "++model.pt=null", "++model.small_name=null",
           "++model.inner_params=null", "data.source=world", "data.facts=300", "silent=true", "max_iters=3", "accumulate_bs=1",
           "log_interval=3", "val_interval=3", "val_steps=4", "batch_size=2", "val_batch_size=2", "device=cpu"]
    if alg in ("rep", "serac"):
        settings += [f"{alg}.cls_name={folders / 'scope-bert-tiny'}", "lr=1e-3"]
    with initialize_config_dir(config_dir=str(train.CONFIGS), version_base="1.3"):
        return compose("config", [f"+alg={alg}", f"+experiment={experiment}", "+model=world", *settings, *words])


WITH_ALL = ("data.zsre_impl=true", "data.zsre_yn=true", "data.hard_neg=true")
CASES = [
    ("qa", WITH_ALL), ("qa", ("rep.cos=true", "rep.pooling=mean", "rep.dist_heads=4", "rep.freeze=1")),
    ("qa", ("rep.supervised=false",)), ("qa", ("rep.freeze_cntr=true", "rep.checkpoint_grad=true")),
    ("fnli", ("rep.cross_attend=true", "rep.cls_name=CROSS", "rep.use_all_negatives=true")),
    ("fnli", ("rep.soft_weighting=true",)),
    ("sent", ("rep.nearest_negatives=true",)), ("sent", ("unlikelihood=false", "data.n_outer_max=5")), ("gen", ()),
]


@pytest.mark.parametrize("experiment, words", CASES, ids=lambda c: c if isinstance(c, str) else " ".join(c)[:40] or "plain")
def test_training(folders, tmp_path, experiment, words):
    words = [word.replace("CROSS", str(folders / "scope-cross-tiny")) for word in words]
    words += ["val_steps=40"] * (experiment == "fnli")
    cfg = config(folders, experiment, *words)
    results = train.run(cfg, tmp_path)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert any("loss/total_supervised_train" in line or "loss/total_edit_train" in line for line in log)
    if "sims/pos_loc_test" in results and "rep.soft_weighting=true" not in words:  # what is in no scope keeps its answer
        assert results["drawdown_retain"] <= results["sims/pos_loc_test"] + 1e-6
    else:
        assert results["kl/edit_test"] > 0
    state = load_file(tmp_path / "best.safetensors")
    assert any(name.startswith("net/classifier.") for name in state) and not any(name.startswith("net/model") for name in state)
    assert any(name.startswith("net/replacement.") for name in state) != ("rep.freeze_cntr=true" in words)
    if experiment == "sent":
        assert {"edit/z_sent_test", "edit/z_topic_test", "edit/acc_sent_test"} <= results.keys()
        assert results["edit_success"] == results["edit/acc_sent_test"]
    elif experiment != "fnli":
        assert results["edit_success"] == results["edit/acc_test"]
    again = train.run(OmegaConf.merge(cfg, {"eval_only": True, "archive": str(tmp_path)}), tmp_path / "again")
    assert all(again[key] == pytest.approx(results[key], rel=1e-5, abs=1e-6) for key in results
               if key.endswith("_test") and "time" not in key)


@pytest.mark.parametrize("experiment", ["qa", "fnli", "sent", "gen"])
def test_lookup_has_nothing_to_learn(folders, tmp_path, experiment, capsys):
    results = train.run(config(folders, experiment, "lu.threshold=0.01", alg="lu"), tmp_path)
    assert "evaluation only" in capsys.readouterr().out
    assert results["drawdown_retain"] == results["kl/edit_test"] == 0 and not (tmp_path / "best.safetensors").exists()
    if experiment == "qa":  # half of the equivalents are the edited questions themselves
        assert results["edit_success"] == 0.5


def test_a_resumed_run_ends_alike(folders, tmp_path):
    whole = train.run(config(folders, "qa", "max_iters=4", "val_interval=2"), tmp_path / "whole")
    train.run(config(folders, "qa", "max_iters=2", "val_interval=2"), tmp_path / "half")
    rest = train.run(config(folders, "qa", "max_iters=4", "val_interval=2", f"archive={tmp_path / 'half'}"), tmp_path / "other")
    assert all(rest[key] == whole[key] for key in whole if key.endswith("_test") and "time" not in key)


def test_the_model_is_not_trained(folders, tmp_path):
    setup = prepare(OmegaConf.to_container(config(folders, "qa"), resolve=True), tmp_path)
    alg = setup.trainer.alg
    before = {name: tensor.clone() for name, tensor in alg.model.state_dict().items()}
    networks = alg.state()
    setup.trainer.run()
    assert all(torch.equal(tensor, before[name]) for name, tensor in alg.model.state_dict().items())
    moved = {name for name, tensor in alg.state().items() if not torch.equal(tensor, networks[name])}
    assert any("classifier" in name for name in moved) and any("replacement" in name for name in moved)
    assert len(alg.memory) == 0


def test_scope_program_and_figure(folders, tmp_path, capsys):
    train.run(config(folders, "qa", f"export={tmp_path / 'editor.safetensors'}"), tmp_path / "run")
    assert (tmp_path / "editor.safetensors").is_file()
    scope.command([str(tmp_path / "run"), "--edits", "2", "--most", "20", "--export", str(tmp_path / "system")])
    content = json.loads((tmp_path / "run" / "scope.json").read_text())
    assert content["inputs"] == {"inside": 20, "outside": 20}
    recalls = [point["recall"] for point in content["sweep"]]
    assert recalls == sorted(recalls, reverse=True) and recalls[-1] == 0 == content["sweep"][-1]["false_positives"]
    saved = AutoConfig.from_pretrained(tmp_path / "system" / "scope").serac
    assert saved["threshold"] == content["calibrated"]["threshold"] and saved["model_kind"] == "t5"
    assert parts.check_pair(str(tmp_path / "system" / "scope"), str(tmp_path / "system" / "counterfactual"))["run"]
    best = load_file(tmp_path / "run" / "best.safetensors")
    exported = AutoModel.from_pretrained(tmp_path / "system" / "scope").state_dict()
    assert torch.equal(exported["embeddings.word_embeddings.weight"], best["net/classifier.embeddings.word_embeddings.weight"])
    from figures import scope as figure
    figure.main([str(tmp_path / "run" / "scope.json"), "--out", str(tmp_path / "figure")])
    assert (tmp_path / "figure.pdf").stat().st_size > 1000
    scope.command([str(tmp_path / "run"), "--edits", "1", "--most", "4", "--out", str(tmp_path / "scope_1.json")])
    assert json.loads((tmp_path / "scope_1.json").read_text())["edits"] == 1
    assert json.loads((tmp_path / "run" / "scope.json").read_text()) == content
    before = len(list((tmp_path / "run").iterdir()))
    with pytest.raises(UserError, match="holds other things"):
        scope.command([str(tmp_path / "run"), "--export", str(tmp_path / "run")])
    assert len(list((tmp_path / "run").iterdir())) == before
    with pytest.raises(UserError, match="not the folder of a run"):
        scope.command([str(tmp_path)])
    config_file = tmp_path / "run" / "config.json"
    older = json.loads(config_file.read_text())
    del older["lr_decay"], older["data"]["asked"]
    config_file.write_text(json.dumps(older))  # as a run of an older version left it
    scope.command([str(tmp_path / "run"), "--edits", "1", "--most", "4", "--out", str(tmp_path / "older.json")])
    first, again = (json.loads((tmp_path / name).read_text()) for name in ("scope_1.json", "older.json"))
    assert again["sweep"] == first["sweep"]
    for lacking, message in (({}, "there is no alg"), ({"alg": "rep", "task": "qa"}, "there is no "),
                             (older | {"eval": None}, "eval is None"),
                             (older | {"data": [1]}, r"data is \[1\] and no object")):
        (tmp_path / "config.json").write_text(json.dumps(lacking))
        with pytest.raises(UserError, match=message) as error:
            scope.command([str(tmp_path)])
        assert "\n" not in str(error.value)
    for name, value in (("published", {}), ("sweep", []), ("sweep", 3)):
        (tmp_path / "bad.json").write_text(json.dumps(content | {name: value}))
        with pytest.raises(UserError, match="bad.json: not a scope.json"):
            figure.main([str(tmp_path / "bad.json")])


def test_calibration():
    scores = scope.Scores(inside=[0.9, 0.8, 0.7, 0.2], right=[True, True, True, False], outside=[0.1, 0.3, 0.75])
    assert scores.at(0.5) == {"threshold": 0.5, "recall": 0.75, "false_positives": 1 / 3, "precision": 0.75}
    # 0.75 - 1/3 from 0.3 to 0.7, 2/4 - 0 from 0.75 to 0.8.
    assert scores.calibrated() == pytest.approx(0.775)


@pytest.mark.parametrize("words, message", [
    (("rep.pooling=max",), "pooling"), (("rep.threshold=1.5",), "threshold"), (("rep.dist_heads=5",), "does not divide"),
    (("rep.cls_name=./nowhere",), "cls_name: './nowhere' does not load"), (("++model.small_name=./nowhere",), "small_name"),
    (("rep.freeze=9",), "only 2 blocks"), (("+rep.thresold=1",), "did you mean 'threshold'"),
    (("rep.cls_class=NoModel",), "has no NoModel"), (("rep.cls_class=pipeline",), "pipeline is no class of models"),
    (("rep.nearest_negatives=true", "rep.use_all_negatives=true"), "goes with neither"),
])
def test_bad_options(folders, tmp_path, words, message):
    with pytest.raises(UserError, match=message) as error:
        train.run(config(folders, "qa", *words), tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_checkpoint_of_other_options(folders, tmp_path):
    train.run(config(folders, "qa"), tmp_path / "one")
    with pytest.raises(UserError, match="another configuration.*cos"):
        train.run(config(folders, "qa", "rep.cos=true", "eval_only=true", f"archive={tmp_path / 'one'}"), tmp_path / "two")


@pytest.mark.parametrize("experiment, query, words", [
    ("qa", "Where was Ann born?", ()), ("qa", "Where was Ann born?", ("rep.freeze_cntr=true",)),
    ("sent", "What do you think of Ann?", ()),
    ("fnli", "Ann lives in Paris.", ()), ("gen", "Ann lives in", ()),
])
def test_a_memory_is_asked_by_a_run(folders, tmp_path, capsys, experiment, query, words):
    train.run(config(folders, experiment, *words, "max_iters=1", "val_interval=1", "val_steps=40"), tmp_path / "run")
    file = str(tmp_path / "edits.memory")
    statement = experiment == "fnli"
    memory.main(["create", file, *["--statements"] * statement])
    memory.main(["add", file, query, *["Paris"] * (not statement)])
    memory.main(["add", file, "Something else that is long enough", *["no"] * (not statement)])
    with pytest.raises(UserError, match="tells no editor that answers by it"):
        memory.main(["ask", file, query])
    capsys.readouterr()
    memory.main(["ask", file, query, "--run", str(tmp_path / "run"), "--tokens", "3"])
    answer, by = capsys.readouterr().out.splitlines()[-2:]
    assert answer.startswith(f"{query}  ->  ") and f": {query}" in by and "(probability of scope " in by
    assert "true" in answer or "false" in answer or not statement
    other = str(tmp_path / "other.memory")
    memory.main(["create", other, *["--statements"] * (not statement)])
    with pytest.raises(UserError, match="memory is empty"):
        memory.main(["ask", other, query, "--run", str(tmp_path / "run")])
    memory.main(["add", other, query, "x"])
    with pytest.raises(UserError, match="not of this run's kind"):
        memory.main(["ask", other, query, "--run", str(tmp_path / "run")])
