"""The evaluation program: published files and numbers; runs that go on; flags that change what they should and nothing else."""

import json
import os
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from editors import Edit
from editors.core.values import optimise
from experiments.run import batches
from experiments.results import run_folder
from experiments.results.summary import case_values
from experiments.run.measure import measure


def cases(run: Path) -> dict[str, dict]:
    """The content of a run's case files by name, without the times."""
    measured = {path.name: json.loads(path.read_text()) for path in sorted(run.glob("*case_*.json"))}
    return {name: {key: value for key, value in case.items() if key != "time"} for name, case in measured.items()}


@pytest.fixture
def golden_contexts(golden, monkeypatch):
    """The golden runs' context templates instead of sampled ones."""
    fixed = json.loads((golden / "context_templates.json").read_text())
    monkeypatch.setattr("editors.closed_form.prepared.context_templates",
                        lambda model, tok, kind, **_: fixed["memit"] if kind == "memit" else [fixed["rome"]])


@pytest.mark.parametrize(("alg_name", "num_edits", "ds_name", "limit", "example"), [
    ("MEMIT", 5, "multi_counterfact.json", None, "run_000"),
    ("MEMIT", 6, "zsre_mend_eval.json", None, "run_003"),
    ("ROME", 1, "multi_counterfact.json", 3, "run_000"),
    ("FT", 5, "multi_counterfact.json", 5, "run_000"),
])
def test_equal_to_the_published_program(run, golden, golden_contexts, alg_name, num_edits, ds_name, limit, example):
    """From the data file to every number in every case file."""
    ours = cases(run(alg_name, ds_name=str(golden / ds_name), num_edits=num_edits, dataset_size_limit=limit))
    theirs = cases(golden / "results_example" / alg_name / example)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        measured = ours[name]
        for key in ("case_id", "grouped_case_ids", "num_edits", "requested_rewrite"):
            assert measured[key] == expected[key]
        for key, values in expected["post"].items():
            if key.endswith("correct"):
                assert measured["post"][key] == values
            else:
                for a, b in zip(measured["post"][key], values, strict=True):
                    assert a == pytest.approx(b, rel=2e-3, abs=2e-4)


def test_facts_of_ones_own(run, tmp_path, capsys):
    facts = tmp_path / "facts.csv"
    facts.write_text("prompt,subject,target\n{} plays the,Ann,drum\n{} plays the,Bo,harp\n")
    measured = cases(run("FT", ds_name=str(facts), num_edits=2))
    assert ("not measured, of 2 records: without true answers (success, difference, neighbourhood) in 2, paraphrases in 2, "
            "neighbourhood prompts in 2\n") in capsys.readouterr().err
    for case in measured.values():
        assert case["post"]["rewrite_prompts_correct"] and "rewrite_prompts_probs" not in case["post"]
        values = case_values(case)
        assert {key for key in values if key.startswith("post")} == {
            f"post_rewrite_{name}" for name in ("acc", "generated", "generated_starts", "gap")}


def test_groups_of_easyedit(run, tmp_path):
    facts = tmp_path / "facts.json"
    questions = {"Any": [{"prompt": f"{name} plays the", "ground_truth": "harp"} for name in ("Bo", "Cy")]}
    facts.write_text(json.dumps([{"prompt": "Ann plays the", "subject": "Ann", "target_new": "drum", "ground_truth": "harp",
                                  "rephrase_prompt": "Ann is on the", "portability": questions, "locality": questions}]))
    (case,) = cases(run("FT", ds_name=str(facts))).values()
    for group, prompts in (("rewrite", 1), ("paraphrase", 1), ("portability", 2), ("locality", 2)):
        assert len(case["post"][f"{group}_prompts_correct"]) == len(case["post"][f"{group}_prompts_generated"]) == prompts
        assert (f"{group}_prompts_probs" in case["post"]) == (group in ("rewrite", "paraphrase"))
    values = case_values(case)
    assert {"post_portability_acc", "post_locality_acc", "post_locality_generated", "pre_rewrite_success"} <= values.keys()


def test_the_model_is_unchanged_and_pre_and_post_are_apart(run, tiny_gpt2):
    before = {name: tensor.clone() for name, tensor in tiny_gpt2[0].state_dict().items()}
    measured = cases(run("FT", num_edits=12))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_gpt2[0].state_dict().items())
    assert len(measured) == 12
    for case in measured.values():
        assert case["pre"].keys() == case["post"].keys()
        assert case["pre"]["rewrite_prompts_probs"] != case["post"]["rewrite_prompts_probs"]


def test_edits_are_kept(run, tiny_gpt2, capsys):
    """Put into the model again, the second batch's edit gives what its cases say."""
    folder, (model, tok) = run("FT", num_edits=2, dataset_size_limit=4, save_edits=True), tiny_gpt2
    assert sorted(path.name for path in (folder / "edits").iterdir()) == ["000000.safetensors", "000001.safetensors"]
    case = cases(folder)["2_edits-case_2.json"]
    prompt = case["requested_rewrite"]["prompt"].format(case["requested_rewrite"]["subject"])
    target = tok(" " + case["requested_rewrite"]["target_new"]["str"]).input_ids
    ids = torch.tensor([tok(prompt).input_ids + target])
    with Edit.load(folder / "edits" / "000001.safetensors").applied(model), torch.no_grad():
        log_p = model(ids).logits[0].log_softmax(-1)[-len(target) - 1 : -1]
    nll = -log_p[range(len(target)), target].mean()
    assert float(nll) == pytest.approx(case["post"]["rewrite_prompts_probs"][0]["target_new"], abs=1e-4)
    kept = Edit.load(folder / "edits" / "000001.safetensors").deltas()
    (folder / "edits" / "000001.safetensors").unlink()  # a batch whose edit is gone is not finished
    run("FT", num_edits=2, dataset_size_limit=4, save_edits=True, continue_from_run=folder.name)
    again = Edit.load(folder / "edits" / "000001.safetensors").deltas()
    assert again.keys() == kept.keys() and all(torch.equal(again[name], delta) for name, delta in kept.items())
    for flags in ({"sequential": True}, {"language": "english"}):
        with pytest.raises(UserError, match="--save_edits does not go with"):
            run("FT", save_edits=True, **flags)


def test_run_json_says_what_ran(run):
    folder = run("FT", num_edits=4, dataset_size_limit=4, seed=3)
    about = json.loads((folder / "run.json").read_text())
    assert about["flags"]["seed"] == 3 and about["flags"]["num_edits"] == 4 and about["cases"] == 4
    assert about["packages"]["torch"] == torch.__version__
    assert "weights" in about["settings"]["model"] and "sha256" in about["settings"]["data"]
    assert json.loads((folder / "params.json").read_text())["norm_constraint"] == 0.02


def test_runs_are_numbered(run, tmp_path):
    first = run("FT", dataset_size_limit=1)
    assert first == tmp_path / "results" / "FT" / "run_000"
    (first.parent / "run_041").mkdir()
    assert run("FT", dataset_size_limit=1).name == "run_042"
    assert run("FT", dataset_size_limit=1, dir_name="elsewhere") == tmp_path / "results" / "elsewhere" / "run_000"


def test_a_missing_case_is_done_again_alike(run):
    folder = run("FT", num_edits=5)
    expected = cases(folder)
    for name in ("5_edits-case_3.json", "5_edits-case_10.json", "5_edits-case_11.json"):
        (folder / name).unlink()
    untouched = (folder / "5_edits-case_5.json").stat().st_mtime_ns
    assert run("FT", num_edits=5, continue_from_run="run_000") == folder
    assert cases(folder) == expected
    assert (folder / "5_edits-case_5.json").stat().st_mtime_ns == untouched


def test_a_finished_run_is_not_measured_again(run, monkeypatch):
    run("FT", num_edits=12)
    monkeypatch.setattr(batches, "measure", lambda *_: pytest.fail("measured again"))
    run("FT", num_edits=12, continue_from_run="run_000")


def test_continuing_needs_the_same_configuration(run, hparams, tiny_gptj):
    folder = run("FT", num_edits=4, dataset_size_limit=4)
    saved = cases(folder)
    again = {"num_edits": 4, "dataset_size_limit": 4, "continue_from_run": "run_000"}
    for changed, message in [
        ({"continue_from_run": "run_007"}, "no such run.*run_000"),
        ({"num_edits": 2}, "num_edits was 4 and is now 2"),
        ({"dataset_size_limit": 5}, "data was .*4 records.* and is now .*5 records"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"model_name": tiny_gptj}, "model was"),
        ({"hparams_fname": hparams("FT", lr=0.001)}, "lr was 0.005 and is now 0.001"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            run("FT", **{**again, **changed})
        assert "\n" not in str(caught.value)
    assert cases(folder) == saved and len(list(folder.parent.iterdir())) == 1


def test_another_program_s_folder_is_not_continued(run, tmp_path, golden):
    foreign = tmp_path / "results" / "FT" / "run_000"
    foreign.mkdir(parents=True)
    (foreign / "params.json").write_text("{}")
    with pytest.raises(UserError, match="has no run.json"):
        run("FT", continue_from_run="run_000")


def test_generation_tests_and_their_interval(run):
    flags = {"num_edits": 4, "dataset_size_limit": 4, "skip_generation_tests": False}
    every_third = cases(run("FT", generation_test_interval=3, **flags))
    assert {case["case_id"] for case in every_third.values() if "text" in case["post"]} == {0, 3}
    for case in (every_third["4_edits-case_0.json"], every_third["4_edits-case_3.json"]):
        assert all({"ngram_entropy", "reference_score", "text"} <= case[prefix].keys() for prefix in ("pre", "post"))
    assert all("text" not in case["post"] for case in cases(run("FT", generation_test_interval=-1, **flags)).values())
    again = cases(run("FT", **flags))
    assert again["4_edits-case_3.json"]["post"]["text"] == every_third["4_edits-case_3.json"]["post"]["text"]
    other = cases(run("FT", seed=1, **flags))
    assert other["4_edits-case_3.json"]["post"]["text"] != again["4_edits-case_3.json"]["post"]["text"]


def test_cache_and_saved_memory_change_no_number(run, tmp_path):
    flags = {"num_edits": 3, "dataset_size_limit": 3, "data_dir": tmp_path / "data"}
    expected = cases(run("MEMIT", **flags))
    assert not (tmp_path / "data" / "z_cache").exists()
    assert cases(run("MEMIT", use_cache=True, conserve_memory=True, **flags)) == expected
    written = sorted((tmp_path / "data" / "z_cache").iterdir())
    assert len(written) == 3
    assert cases(run("MEMIT", use_cache=True, **flags)) == expected
    assert sorted((tmp_path / "data" / "z_cache").iterdir()) == written


def test_changed_hyper_parameters_are_recorded(run):
    folder = run("FT", set=["num_steps=2", "layers=[1]"], num_edits=2, dataset_size_limit=2)
    params = json.loads((folder / "params.json").read_text())
    assert (params["num_steps"], params["layers"]) == (2, [1])
    assert json.loads((folder / "run.json").read_text())["flags"]["set"] == ["num_steps=2", "layers=[1]"]
    with pytest.raises(UserError, match="num_steps"):
        run("FT", num_edits=2, dataset_size_limit=2, continue_from_run=folder.name)


def test_a_mistake_found_late_leaves_no_run(run, tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("statistics of another model")
    monkeypatch.setattr("editors.tuned.ft.FT.edit", lambda *_, **__: fail())
    with pytest.raises(UserError):
        run("FT")
    assert list((tmp_path / "results" / "FT").iterdir()) == []


def test_real_records(run, realdata, tiny_gpt2):
    tok = tiny_gpt2[1]
    for name in ("counterfact_300.json", "zsre_1000.json"):
        folder = run("FT", ds_name=str(realdata / name), num_edits=2, dataset_size_limit=4, dir_name=name)
        assert len(cases(folder)) == 4
    assert tok.pad_token is not None


def test_new_runs_do_not_collide(tmp_path):
    first, second = (run_folder.new_run(tmp_path, {"run.json": {}, "params.json": {}}) for _ in range(2))
    assert {first.name, second.name} == {"run_000", "run_001"}
    assert not list(tmp_path.glob(".run*"))


def test_folders_are_those_of_one_evaluation(run, tmp_path, monkeypatch):
    monkeypatch.setenv("KE_DATA_DIR", "before")
    run("FT", dataset_size_limit=1, data_dir=tmp_path / "data", stats_dir=tmp_path / "stats")
    assert os.environ["KE_DATA_DIR"] == "before" and "KE_STATS_DIR" not in os.environ


def test_others_may_read_what_is_written(run, tmp_path):
    before = os.umask(0o022)
    try:
        folder = run("FT", dataset_size_limit=1)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_metrics_of_the_unedited_model_are_shared(run, tmp_path, monkeypatch):
    """By runs of other editors and batch sizes; a damaged file is made again, and none is read for other settings."""
    flags = {"dataset_size_limit": 6, "data_dir": tmp_path / "data", "use_cache": True}
    expected = cases(run("FT", dataset_size_limit=6, num_edits=6))
    measured = []
    monkeypatch.setattr("experiments.run.unedited.measure",
                        lambda job, records: measured.append(records) or measure(job, records))
    for number, num_edits in enumerate((6, 2, 1)):
        shared = cases(run("FT", num_edits=num_edits, dir_name=str(number), **flags))
        assert [case["pre"] for case in shared.values()] == [case["pre"] for case in expected.values()]
    assert len(measured) == 1
    kept, = (tmp_path / "data" / "unedited").iterdir()
    content = kept.read_text()
    kept.write_text(content.replace("0.1", "0.2", 1))
    assert cases(run("FT", num_edits=6, dir_name="again", **flags)) == expected
    assert len(measured) == 2 and kept.read_text() == content
    run("FT", num_edits=6, dir_name="other", contains_length=20, **flags)
    assert len(measured) == 3


def test_perplexity_and_change_of_batches_apart(run, golden):
    texts = str(golden / "corpus.jsonl")
    folder = run("MEMIT", num_edits=2, dataset_size_limit=4, perplexity_corpus=texts, perplexity_tokens=500)
    unedited, *edited = (json.loads(path.read_text()) for path in sorted((folder / "batches").iterdir()))
    assert unedited["perplexity_tokens"] == 500 and [batch["edits"] for batch in edited] == [2, 4]
    for batch in edited:
        assert batch["perplexity"] > 0 and batch["perplexity"] != unedited["perplexity"]
        assert all(0 < weight["relative_distance"] < 1 for weight in batch["weights"].values()) and batch["weights"]
    one_each = run("FT", num_edits=1, dataset_size_limit=12, perplexity_corpus=texts, perplexity_tokens=50)
    names = sorted(path.name for path in (one_each / "batches").iterdir())
    assert names == [f"{n:06d}.json" for n in (0, 2, 4, 6, 8, 10, 12)]


@pytest.mark.parametrize("alg_name, num_edits", [("MEMIT", 2), ("ROME", 1)])
def test_targets_of_batches_apart_are_sought_together(run, monkeypatch, alg_name, num_edits):
    """Once for a block; the edits find them, also without --use_cache, and nothing of them stays in the run."""
    sought = []
    monkeypatch.setattr("editors.core.value_cache.optimise", lambda decoder, requests, *more, **how:
                        sought.append(len(requests)) or optimise(decoder, requests, *more, **how))
    flags = {"num_edits": num_edits, "dataset_size_limit": 6}
    folder = run(alg_name, **flags)
    assert sought == [6] and not (folder / ".targets").exists()
    monkeypatch.setattr(batches, "_targets", lambda job, run, block: (job.z_cache, 0.0))
    apart = cases(run(alg_name, dir_name="apart", **flags))
    assert sought[1:] == [num_edits] * (6 // num_edits)
    for name, case in cases(folder).items():
        for ours, alone in zip(case["post"]["rewrite_prompts_probs"], apart[name]["post"]["rewrite_prompts_probs"]):
            assert ours["target_new"] == pytest.approx(alone["target_new"], rel=1e-3, abs=1e-4)
