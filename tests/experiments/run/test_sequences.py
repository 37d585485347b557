"""Sequential evaluation: what is written when, restarts, orders, and the mistakes one can make."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from common.errors import UserError
import editors
from common.files import held
from experiments import evaluate
from experiments.bench.kill import content
from experiments.run.sequences import CHECKPOINT

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def sequence(run, hparams):
    """A sequence of FT edits of two records each."""
    def start(**flags):
        return run(**{"num_edits": 2, "sequential": True, "hparams_fname": hparams("FT", num_steps=3), **flags})
    return start


def read(run, name):
    return json.loads((run / name).read_text())


def test_what_is_written(sequence, golden):
    run = sequence(max_edits=5, history_eval_steps=2, perplexity_corpus=str(golden / "corpus.jsonl"), dir_name="seq")
    assert sorted(p.name for p in (run / "batches").iterdir()) == [f"{n:06d}.json" for n in (0, 2, 4, 5)]
    assert sorted(p.name for p in (run / "history").iterdir()) == ["000004.jsonl", "000005.jsonl"]
    batches = [read(run, f"batches/{n:06d}.json") for n in (0, 2, 4, 5)]
    assert [batch["edits"] for batch in batches] == [0, 2, 4, 5]
    assert ["perplexity" in batch for batch in batches] == [True, False, True, True]
    assert len({batch["perplexity_tokens"] for batch in batches if "perplexity" in batch}) == 1
    distances = [next(iter(batch["weights"].values()))["relative_distance"] for batch in batches[1:]]
    assert 0 < distances[0] < distances[1] and batches[3]["memory_mb"] > 0
    # What a case has after its own batch is what the next history finds for the last batch; earlier cases have moved on.
    lines = (run / "history/000004.jsonl").read_text().splitlines()
    history = {line["case_id"]: line["post"] for line in map(json.loads, lines)}
    cases = {case["case_id"]: case for case in (json.loads(p.read_text()) for p in run.glob("*case_*.json"))}
    assert len(cases) == 5 and len(history) == 4
    last, first = batches[2]["case_ids"], batches[1]["case_ids"]
    nll = lambda result: result["rewrite_prompts_probs"][0]["target_new"]  # noqa: E731
    assert [nll(history[i]) for i in last] == pytest.approx([nll(cases[i]["post"]) for i in last], rel=1e-5)
    assert all(nll(history[i]) != pytest.approx(nll(cases[i]["post"]), rel=1e-5) for i in first)
    # `pre` is measured with the earlier batches in the model.
    alone = sequence(max_edits=5, sequential=False, dir_name="alone")
    case = f"2_edits-case_{last[0]}.json"
    assert nll(read(run, case)["pre"]) != pytest.approx(nll(read(alone, case)["pre"]), rel=1e-5)
    assert not (alone / "batches").exists()


@pytest.mark.parametrize("alg_name", ["FT", "MEMIT", "AlphaEdit", "MEMIT_prune"])
def test_ends_where_a_sequence_in_python_ends(alg_name, run, hparams, tiny_gpt2, golden, tmp_path):
    """The saved model has the weights of an EditSequence over the same records."""
    base = "FT" if alg_name == "FT" else "MEMIT"
    fname = hparams(base, **({"num_steps": 3} if base == "FT" else {"v_num_grad_steps": 4}))
    if alg_name == "AlphaEdit":
        fname.write_text(json.dumps({**json.loads(fname.read_text()), "L2": 10}))
    model, tok = tiny_gpt2
    original = {name: p.detach().clone() for name, p in model.named_parameters()}
    run(alg_name, num_edits=2, max_edits=4, sequential=True, hparams_fname=fname, save_model=True,
        save_model_location=tmp_path / "models")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "edits_4")
    assert all(torch.equal(p, original[name]) for name, p in model.named_parameters())
    records = json.loads((golden / "multi_counterfact.json").read_text())[:4]
    sequence = editors.EditSequence(editors.load(alg_name, fname), model, tok, progress=False)
    for start in (0, 2):
        sequence.edit([r["requested_rewrite"] | {"case_id": r["case_id"]} for r in records[start:start + 2]])
    sequence.close()
    for name, p in saved.named_parameters():
        assert torch.equal(p, model.get_parameter(name)), name
    sequence.revert()
    assert all(torch.equal(p, original[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("alg_name", [pytest.param("FT", marks=pytest.mark.slow), "AlphaEdit"])
def test_killed_while_it_edits(alg_name, golden, hparams, tmp_path, monkeypatch):
    """Killed twice in the midst of the work, it ends with the bits of the weights of a run never killed."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fname = hparams("FT", num_steps=5) if alg_name == "FT" else hparams("MEMIT", v_num_grad_steps=5)
    if alg_name == "AlphaEdit":
        fname.write_text(json.dumps({**json.loads(fname.read_text()), "L2": 10}))
    options = ["--alg_name", alg_name, "--model_name", str(golden / "tiny-gpt2"), "--hparams_fname", str(fname),
               "--ds_name", str(golden / "multi_counterfact.json"), "--num_edits", "1", "--skip_generation_tests",
               "--sequential", "--checkpoint_steps", "2", "--history_eval_steps", "5"]

    def start(folder, *more):
        command = [sys.executable, "-m", "experiments.evaluate", *options, "--results_dir", str(folder), "--stats_dir",
                   str(folder / "stats"), *more]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait() == 0
    expected = content(tmp_path / "whole" / alg_name / "run_000")
    assert len([name for name in expected[0] if name.startswith(CHECKPOINT)]) >= 2
    rng = random.Random(os.getpid())
    run, more = tmp_path / "killed" / alg_name / "run_000", []
    for kill in range(2):
        process = start(tmp_path / "killed", *more)
        while not len(list(run.glob("*case_*.json"))) > 4 * kill + 1 and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
        more = ["--continue_from_run", "run_000"]
    assert start(tmp_path / "killed", *more).wait() == 0
    assert content(run) == expected


def test_a_finished_sequence_is_left_alone(sequence):
    run = sequence(max_edits=4)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    sequence(max_edits=4, continue_from_run=run.name)
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    with pytest.raises(editors.EditingError, match="--save_model: .*run_000 was begun without it"):
        sequence(max_edits=4, continue_from_run=run.name, save_model=True)


@pytest.mark.parametrize("finished", [True, False])
def test_a_case_that_is_gone_is_not_made_again(sequence, finished):
    run = sequence(max_edits=4)
    if not finished:
        (run / "finished.json").unlink()
    next(run.glob("*case_0.json")).unlink()
    with pytest.raises(editors.EditingError, match="case_0.json: is gone, .* start a new run"):
        sequence(max_edits=4, continue_from_run=run.name)


def test_another_configuration_is_not_continued(sequence, hparams):
    run = sequence(max_edits=4)
    (run / "finished.json").unlink()
    with pytest.raises(editors.EditingError, match="another configuration"):
        sequence(max_edits=4, continue_from_run=run.name, hparams_fname=hparams("FT", num_steps=4))
    with pytest.raises(editors.EditingError, match="history_eval_steps was 0 and is now 1"):
        sequence(max_edits=4, continue_from_run=run.name, history_eval_steps=1)
    with pytest.raises(editors.EditingError, match="sequential was true and is now false"):
        sequence(max_edits=4, continue_from_run=run.name, sequential=False)


def test_a_damaged_checkpoint(sequence):
    run = sequence(max_edits=4)
    (run / "finished.json").unlink()
    (run / CHECKPOINT).write_bytes((run / CHECKPOINT).read_bytes()[:-9])
    with pytest.raises(editors.EditingError, match="truncated or damaged, or not a checkpoint"):
        sequence(max_edits=4, continue_from_run=run.name)


def test_a_run_at_which_another_process_is(sequence):
    run = sequence(max_edits=4)
    before = sorted(path.name for path in run.iterdir())
    message = f"another process is working at this run, {run.name}"
    with held(run, "in a test"), pytest.raises(editors.EditingError, match=message):
        sequence(max_edits=4, continue_from_run=run.name)
    assert sorted(path.name for path in run.iterdir()) == before
    assert sequence(max_edits=4, continue_from_run=run.name) == run


def test_orders(sequence, golden, tmp_path):
    records = json.loads((golden / "multi_counterfact.json").read_text())
    order = tmp_path / "order.json"
    order.write_text(json.dumps({"0": [3, 1], "1": [2, 0, 5]}))
    run = sequence(index_file=order, sample_num=1, max_edits=2)
    assert read(run, "batches/000002.json")["case_ids"] == [records[2]["case_id"], records[0]["case_id"]]
    run = sequence(sample_num=4)
    case_ids = [i for path in sorted((run / "batches").iterdir()) for i in json.loads(path.read_text()).get("case_ids", [])]
    subjects = {record["case_id"]: record["requested_rewrite"]["subject"].lower() for record in records}
    assert len({subjects[i] for i in case_ids}) == len(case_ids) == len(set(subjects.values()))
    assert case_ids != sorted(case_ids)


@pytest.mark.parametrize("flags, message", [
    ({"sample_num": 10}, "orders 0 to 9"),
    ({"max_edits": 1000}, "--max_edits 1000: .* has only 12 records"),
    ({"max_edits": 1}, "--num_edits 2: .* has only 1 records within --max_edits"),
    ({"perplexity_corpus": "nowhere.txt", "history_eval_steps": 2}, "nowhere.txt"),
    ({"perplexity_corpus": "corpus.txt"}, "no effect with --sequential and without --history_eval_steps"),
    ({"history_sample": 3}, "no effect without --history_eval_steps"),
    ({"sequential": False, "history_eval_steps": 3}, "no effect without --sequential"),
    ({"save_model_location": "somewhere"}, "no effect without --save_model"),
    ({"downstream_tasks": "sst"}, "no effect without --do_downstream_eval"),
    ({"do_downstream_eval": True}, "name one or more tasks"),
    ({"do_downstream_eval": True, "downstream_tasks": "sstt"}, "did you mean 'sst'"),
])
def test_mistakes(sequence, flags, message):
    with pytest.raises((editors.EditingError, UserError), match=message):
        sequence(**flags)


def test_models_of_another_run_stay(sequence, tmp_path):
    flags = {"max_edits": 4, "save_model": True, "save_model_interval": 1, "save_model_location": tmp_path / "models"}
    run = sequence(**flags)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["edits_2", "edits_4"]
    with pytest.raises(editors.EditingError, match="holds models of another run"):
        sequence(**flags)
    sequence(**flags, continue_from_run=run.name)


def test_models_of_single_batches(run, hparams, tiny_gpt2, golden, tmp_path):
    """A saved model has the batch of its name in it, and no other."""
    model, tok = tiny_gpt2
    fname = hparams("FT", num_steps=3)
    run(num_edits=2, max_edits=4, hparams_fname=fname, save_model=True, save_model_interval=1,
        save_model_location=tmp_path / "models")
    records = json.loads((golden / "multi_counterfact.json").read_text())[:4]
    for edits in (2, 4):
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / f"edits_{edits}")
        requests = [r["requested_rewrite"] | {"case_id": r["case_id"]} for r in records[edits - 2:edits]]
        with editors.load("FT", fname).edit(model, tok, requests, progress=False).applied(model):
            assert all(torch.equal(p, model.get_parameter(name)) for name, p in saved.named_parameters())


def test_downstream_in_both_modes(sequence):
    flags = {"max_edits": 4, "do_downstream_eval": True, "downstream_tasks": "sst", "number_of_tests": 4,
             "downstream_data": "world", "downstream_eval_steps": 2}
    for sequential in (True, False):
        run = sequence(**flags, sequential=sequential)
        figures = [read(run, f"batches/{n:06d}.json").get("downstream") for n in (0, 4)]
        assert all(figure["sst"]["total"] == 4 for figure in figures)
        assert read(run, "downstream/000004_sst_gen.json")


def test_objective_of_each_batch(sequence, hparams):
    fname = hparams("MEMIT", v_num_grad_steps=3, calculate_objective_value=True)
    for sequential in (True, False):
        run = sequence(alg_name="MEMIT", hparams_fname=fname, max_edits=4, sequential=sequential)
        for edits in (2, 4):
            batch = read(run, f"batches/{edits:06d}.json")
            assert len(batch["case_ids"]) == 2 and len(batch["objective_distances"]) == 3
            for layer in batch["objective_distances"].values():
                assert 0 < layer["new_edit_distance"] < layer["old_edit_distance"] and layer["preservation_distance"] > 0


def test_contexts_from_a_file(sequence, run, hparams, tmp_path):
    """They are what the editor gets, and part of what a run is."""
    file, fname = tmp_path / "contexts.json", hparams("MEMIT", v_num_grad_steps=3)
    file.write_text(json.dumps([["{}"], ["So it is. {}", "Yes. {}"]]))
    flags = {"alg_name": "MEMIT", "hparams_fname": fname, "max_edits": 2}
    for start in (sequence, run):
        with_file = start(**flags, num_edits=2, context_templates=file)
        sampled = start(**flags, num_edits=2)
        (name,) = (path.name for path in sorted(with_file.glob("*case_*.json"))[:1])
        assert read(with_file, name)["post"] != read(sampled, name)["post"]
        with pytest.raises(editors.EditingError, match="context_templates was .* and is now null"):
            start(**flags, num_edits=2, continue_from_run=with_file.name)
    for text, message in (("[]", "not empty"), ('[["{}"], ["no place"]]', "no place"), ("7", "list of texts"),
                             ("[1]", "mix texts"), ("[[1]]", "not a text")):
        file.write_text(text)
        with pytest.raises((editors.EditingError, UserError), match=f"--context_templates .*{message}"):
            sequence(**flags, context_templates=file)


def test_contained_targets(sequence, golden, tmp_path):
    run = sequence(max_edits=2, contains_length=14)
    case = json.loads(next(run.glob("*case_*.json")).read_text())
    assert len(case["post"]["neighborhood_prompts_generated_contains"]) == len(case["post"]["neighborhood_prompts_correct"])
    with pytest.raises(editors.EditingError, match="--contains_length has no effect on zsRE"):
        sequence(ds_name="world-zsre", contains_length=14)


def test_switches(monkeypatch, capsys):
    sequential_flags = []
    monkeypatch.setattr(evaluate, "main", lambda config: sequential_flags.append(config.sequential))
    for words in ([], ["--sequential"], ["--sequential=False"], ["--sequential", "True"]):
        monkeypatch.setattr(sys, "argv", ["evaluate", "--alg_name", "FT", *words])
        evaluate.command()
    assert sequential_flags == [False, True, False, True]
    monkeypatch.setattr(sys, "argv", ["evaluate", "--alg_name", "FT", "--sequential=maybe"])
    with pytest.raises(SystemExit, match="2"):
        evaluate.command()
    assert "'maybe' should be True or False" in capsys.readouterr().err
