"""Result folders in the form of the unified-editing code and of AlphaEdit's, written here: read under the right names."""

import json

import pytest

from experiments import summarize
from experiments.results import old_folders
from experiments.results.sequences import read_sequence


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def prompts(before, after, *, done=True):
    """Entries of ``*_prompts_probs``. before, after: (nll of new, of true) a prompt; teacher-forced and generated before."""
    entries = []
    for (new, true), (new_after, true_after) in zip(before, after):
        entry = {"target_new_prob": new, "target_true_prob": true, "target_new": "Rome", "target_true": "Paris", "prompt": "p",
                 "generated_text": " Paris", "correct": new < true, "sliding_text": "in Paris", "sliding_correct": False}
        if done:
            entry |= {"post_target_new_prob": new_after, "post_target_true_prob": true_after, "post_sliding_text": "in Rome",
                      "post_sliding_correct": True}
        entries.append(entry)
    return entries


def counterfact_case(case_id, batch_ids, done=True):
    """Before the edit no success at all and the neighbourhood right; after it, of two paraphrases one works."""
    kept, new, half = [(3.0, 1.0)], [(0.5, 2.0)], [(0.5, 2.0), (3.0, 1.0)]
    post = {
        "rewrite_prompts_probs": prompts(kept, new, done=done), "paraphrase_prompts_probs": prompts(kept * 2, half, done=done),
        "neighborhood_prompts_probs": prompts(kept, kept, done=done), "attribute_prompts_probs": prompts(kept, new, done=done),
        **{f"{group}_prompts_correct": [False] for group in ("rewrite", "neighborhood", "attribute")},
        "paraphrase_prompts_correct": [False, False], "ngram_entropy": 6.0, "adjusted_token_entropy": 0.9,
        "reference_score": 0.25, "text": ["a text"], "essence_score": 10.0, "essence_text": ["an essence"],
    }
    case = {"case_id": case_id, "grouped_case_ids": batch_ids, "num_edits": len(batch_ids),
            "requested_rewrite": {}, "post": post}
    if done:
        post |= {"post_rewrite_prompts_correct": [True], "post_paraphrase_prompts_correct": [True, False],
                 "post_neighborhood_prompts_correct": [False], "post_ngram_entropy": 5.0, "post_essence_score": 20.0}
        case["time"] = [1.5]
    return case


def zsre_case(case_id, batch_ids):
    post = {"rewrite_prompts_correct": [False, True], "paraphrase_prompts_correct": [False, False], "text": ["t"],
            "neighborhood_prompts_correct": [True, True], "post_rewrite_prompts_correct": [True, True],
            "post_paraphrase_prompts_correct": [True, False], "post_neighborhood_prompts_correct": [True, False]}
    return {"case_id": case_id, "grouped_case_ids": batch_ids, "num_edits": 2, "requested_rewrite": {}, "post": post,
            "time": [2.0]}


def task(correct, total):
    return {"correct": correct, "incorrect": total - correct - 1, "invalid": 1, "total": total, "f1": 0.5, "f1_new": 0.4,
            "mcc": 0.1, "time": 3.0}


def glue(batch, ids, distance, **tasks):
    norms = {"delta_norm": 1.0, "new_weights_norm": 10 + batch, "original_weights_norm": 10.0}
    return {"edit_num": batch, "case_id": ids, "distance_from_original": {"17": distance}, "objective_distances": {"17": norms},
            **tasks}


@pytest.fixture
def unified(tmp_path):
    """Five cases in batches of two, in an order that is not that of their ids; the code was stopped in the last batch."""
    run, batches = tmp_path / "EMMET" / "run_000", [[30, 4], [11, 7], [9]]
    write(run / "params.json", {"layers": [17], "model_name": "gpt2-xl", "algo_name": "EMMET", "dataset": "mcf", "n_edits": 2,
                                "sequential": True})
    base = {"edit_num": -1, "mmmlu": {**task(30, 50), "correct_new": 35, "incorrect_new": 15}}
    write(run / "glue_eval" / "base_glue.json", base)
    write(run / "glue_eval" / "base_mmlu_gen.json", [{"answer": "a"}])
    for number, ids in enumerate(batches):
        for case_id in ids:
            write(run / f"2_{number}_edits-case_{case_id}.json", counterfact_case(case_id, ids, done=number < 2))
        tasks = {"mmmlu": {**task(20, 50), "correct_new": 25, "incorrect_new": 25}} if number == 1 else {}
        if number < 2:
            write(run / "glue_eval" / f"{number}_case_{ids[-1]}_glue.json", glue(number, ids, 0.1 * (number + 1), **tasks))
    write(run / "glue_eval" / "1_case_7_mmlu_gen.json", [{"answer": "a"}])
    return run


def test_before_and_after_have_their_names(unified):
    about, lists = summarize.read_run(unified)
    assert {key: about[key] for key in ("alg_name", "model_name", "ds_name", "num_edits", "num_cases")} == {
        "alg_name": "EMMET", "model_name": "gpt2-xl", "ds_name": "mcf", "num_edits": 2, "num_cases": 5}
    assert lists["pre_rewrite_success"] == [0] * 5 and lists["post_rewrite_success"] == [1] * 4
    assert lists["pre_neighborhood_success"] == [1] * 5
    assert lists["post_paraphrase_success"] == [0.5] * 4 and lists["post_attribute_success"] == [1] * 4
    assert lists["time"] == [1.5] * 4
    assert (lists["pre_ngram_entropy"], lists["post_ngram_entropy"]) == ([6] * 5, [5] * 4)
    assert lists["post_essence_score"] == [20] * 4 and "post_reference_score" not in lists


def test_sliding_and_teacher_forced_correctness_are_told_apart(unified):
    _, lists = summarize.read_run(unified)
    assert lists["pre_rewrite_acc"] == [0] * 5 and "post_rewrite_acc" not in lists  # teacher-forced was lost after the edit
    assert lists["pre_rewrite_generated_contains"] == [0] * 5 and lists["post_rewrite_generated_contains"] == [1] * 4
    assert lists["post_attribute_generated_contains"] == [1] * 4  # only the entries have it


def test_downstream_figures_of_old_folders(unified):
    _, lists = summarize.read_run(unified)
    assert (lists["pre_mmlu_accuracy"], lists["retention_mmlu_accuracy"]) == ([0.6], [0.4])
    assert (lists["pre_mmlu_accuracy_new"], lists["retention_mmlu_accuracy_new"]) == ([0.7], [0.5])
    params = json.loads((unified / "params.json").read_text())
    write(unified / "params.json", params | {"sequential": False})
    _, lists = summarize.read_run(unified)
    assert lists["post_mmlu_accuracy"] == [0.4] and "retention_mmlu_accuracy" not in lists


def test_first_cases_are_those_with_smaller_ids(unified):
    about, lists = summarize.read_run(unified, first_n_cases=10)
    assert about["num_cases"] == 3 and len(lists["post_rewrite_success"]) == 2  # 4, 7, 9


def test_zsre_accuracies_are_those_after_the_edit(tmp_path):
    run = tmp_path / "MEMIT" / "run_000"
    for case_id in (0, 1):
        write(run / f"2_0_edits-case_{case_id}.json", zsre_case(case_id, [0, 1]))
    _, lists = summarize.read_run(run)
    assert (lists["pre_rewrite_acc"], lists["post_rewrite_acc"]) == ([0.5] * 2, [1] * 2)
    assert (lists["pre_neighborhood_acc"], lists["post_neighborhood_acc"]) == ([1] * 2, [0.5] * 2)
    (published,) = summarize.main("MEMIT", results_dir=tmp_path)
    assert published["pre_paraphrase_acc"] == (0, 0) and published["post_paraphrase_acc"] == (50, 0)


def test_the_sequence_of_an_old_run(unified):
    run = read_sequence(unified)
    assert [batch["edits"] for batch in run.batches] == [0, 2, 4]
    assert [batch.get("weights") for batch in run.batches] == [
        None, {"17": {"distance_from_original": 0.1, "norm": 10}}, {"17": {"distance_from_original": 0.2, "norm": 11}}]
    assert [batch.get("seconds") for batch in run.batches] == [None, 1.5, 1.5]
    assert run.batches[2]["downstream"]["mmlu"]["accuracy"] == 0.4
    assert [case["paraphrase_success"] for case in run.cases] == [0.5] * 4 and run.history == {}


def test_alphaedit_s_cases_were_measured_at_the_end(golden, tmp_path, capsys, monkeypatch):
    run = tmp_path / "AlphaEdit" / "run_000"
    for path in (golden / "results_example" / "MEMIT" / "run_000").glob("*case_*.json"):
        write(run / path.name, json.loads(path.read_text()) | {"grouped_case_ids": [10, 11]})
    write(run / "glue_eval" / "case_11_glue.json", {"edit_num": 12, "nli": task(6, 10)})
    about, lists = summarize.read_run(run)
    assert len(lists["retention_rewrite_success"]) == 12 and not any(key.startswith("post_") for key in lists)
    assert lists["retention_nli_accuracy"] == [0.6]
    monkeypatch.setattr("sys.argv", ["summarize", "--dir_name", "AlphaEdit", "--results_dir", str(tmp_path)])
    summarize.command()
    out = capsys.readouterr().out
    assert "measured after the last batch" in out and "[1] retention" in out and "[1] post" not in out
    _, lists = summarize.read_run(golden / "results_example" / "MEMIT" / "run_000")  # MEMIT's own stay what they are
    assert len(lists["post_rewrite_success"]) == 12


def test_a_damaged_old_case(unified, capsys):
    write(unified / "2_1_edits-case_11.json", {"post": {"rewrite_prompts_probs": [{"target_new_prob": 1}]}})
    write(unified / "2_1_edits-case_7.json", counterfact_case(7, [11, 7]) | {"time": []})
    about, _ = summarize.read_run(unified)
    assert about["num_cases"] == 3
    assert [line.partition("edits-case_")[2].split(".")[0] for line in capsys.readouterr().err.splitlines()] == ["7", "11"]
    with pytest.raises(summarize.UserError, match="2_1_edits-case_11.json: JSON, but not of a case's form"):
        read_sequence(unified)


def test_damaged_figures_of_the_model(unified):
    write(unified / "glue_eval" / "0_case_4_glue.json", {"edit_num": 0})
    with pytest.raises(summarize.UserError, match="glue_eval: .*not of the published form.*case_id"):
        old_folders.read_batches(unified)
