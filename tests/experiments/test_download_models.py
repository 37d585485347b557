"""What is fetched ahead for an experiment, and what is said to be lacking; the table of SERAC's comparison."""

import json

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from common.errors import UserError
from experiments import download_models, serac_table


@pytest.mark.parametrize("experiment, model, alg, words, expected", [
    ("qa", "t5large", "rep", [], ["google/t5-large-ssm-nq", "t5-small", "distilbert-base-cased"]),
    ("zsre", "t5large", "gtn", ["data.hard_neg=true"], ["google/t5-large-ssm-nq", "sentence-transformers/all-MiniLM-L6-v2"]),
    ("sent", "blender-small", "rep", [], ["facebook/blenderbot_small-90M", "distilbert-base-cased"]),
    ("fnli", "bert-base", "rep", ["rep.cls_name=bert-base-cased"], ["bert-base-uncased", "bert-base-cased"]),
])
def test_what_is_fetched(experiment, model, alg, words, expected):
    assert download_models.repositories(download_models.compose_config(experiment, model, alg, words)) == expected


def test_lacking_things_are_named_and_the_rest_is_fetched(tmp_path, monkeypatch, capsys):
    model_names = []

    def snapshot(name, allow_patterns):
        model_names.append(name)
        if name == "t5-small":
            raise LocalEntryNotFoundError("no network")
        folder = tmp_path / name.replace("/", "_")
        folder.mkdir()
        if name != "distilbert-base-cased":
            (folder / "model.safetensors").touch()
        return str(folder)

    monkeypatch.setattr(download_models, "snapshot_download", snapshot)
    with pytest.raises(UserError) as error:
        download_models.command(["qa", "t5large", f"data_dir={tmp_path}"])
    message = str(error.value)
    assert "t5-small: no network" in message
    assert "distilbert-base-cased: its repository has no weights in safetensors" in message
    assert f"{tmp_path / 'zsre' / 'structured_zeroshot-train-new_annotated_final.jsonl'}: no such file" in message
    assert message.startswith("5 things are lacking") and "\n" not in message
    assert model_names == ["google/t5-large-ssm-nq", "t5-small", "distilbert-base-cased"]
    assert "model google/t5-large-ssm-nq" in capsys.readouterr().out


@pytest.mark.parametrize("words", [
    ["qa", "t5larg"], ["qb", "t5large"], ["qa", "t5large", "--alg", "serap"], ["qa", "t5large", "lrr=1"],
    ["qa", "t5large", "--alg", "rep", "lrr=1"]])
def test_unknown_names(words):
    with pytest.raises(UserError) as error:
        download_models.command(words)
    assert "\n" not in str(error.value)


def test_table(tmp_path, capsys):
    for alg, edits, success, retain in (("gtn", 10, 0.5, 0.25), ("rep", 1, 1.0, 0.0), ("rep", 10, 0.97, 0.004)):
        folder = tmp_path / alg / f"edits_{edits}"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"results": {"edit_success": success, "drawdown_retain": retain}}))
    serac_table.main([str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[-2:] == ["| SERAC | 100.0 / 0.0 | 97.0 / 0.4 |", "| MEND | - | 50.0 / 25.0 |"]
    assert (tmp_path / "table.csv").read_text().splitlines()[1] == "rep,1,100.0,0.0"
    assert len(json.loads((tmp_path / "table.json").read_text())) == 3
    (folder / "results.json").write_text("{}")
    with pytest.raises(UserError, match="results.json: not the results of experiments.train"):
        serac_table.main([str(tmp_path)])
    with pytest.raises(UserError, match="no results"):
        serac_table.main([str(tmp_path / "nowhere")])


@pytest.mark.parametrize("experiment, alg, words, recipe", [
    ("qa", "gtn", [], "serac"), ("qa", "mend", [], "mend"), ("qa", "mend", ["data.zsre_yn=true"], "serac"),
    ("qa", "rep", ["recipe=mend"], "mend"), ("fnli", "ft", [], "serac"),
])
def test_the_data_are_those_of_the_training(tmp_path, monkeypatch, experiment, alg, words, recipe):
    recipes = []

    def load(task, split, source, options, seed, data_dir, recipe):
        recipes.append(recipe)
        raise UserError("not there")

    monkeypatch.setattr(download_models.episodes, "load", load)
    config = download_models.compose_config(experiment, {"qa": "t5large", "fnli": "bert-base"}[experiment], alg, words)
    assert download_models._data(config) == ["not there"] * 3 and set(recipes) == {recipe}
