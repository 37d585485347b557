"""Evaluations in two languages with heads corrected: stages, files that are saved and loaded, bad input."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from editors.edit import Edit
from editors.heads import training
from editors.heads.corrections import Corrections
from experiments import evaluate, memat_results, summarize
from experiments.results import run_folder
from experiments.run import language_job
from experiments.run.cli import run_program
from experiments.run.config import RunConfig
from tests.conftest import GOLDEN, load_tiny

FOLDER = GOLDEN / "memat"
RECORDS, BATCH = 6, 3


@pytest.fixture(scope="module")
def falcon():
    return load_tiny("memat/tiny-falcon")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data in two languages and hyper-parameters that edit fast."""
    folder = tmp_path_factory.mktemp("languages")
    for language in ("english", "catalan"):
        records = json.loads((FOLDER / f"records_{language}.json").read_text())
        (folder / f"{language}_CF.json").write_text(json.dumps(records[:RECORDS]))
    hparams = {key: value for key, value in json.loads((FOLDER / "hparams.json").read_text())["memit"].items()
               if key not in ("attn_module_tmp", "mom2_dtype", "layer_selection", "mom2_adjustment", "rewrite_module_tmps")}
    hparams |= {"v_num_grad_steps": 4, "mom2_dataset": str(FOLDER / "corpus_eng.jsonl"), "mom2_n_samples": 312}
    (folder / "MEMIT.json").write_text(json.dumps(hparams))
    (folder / "all.json").write_text(json.dumps(hparams | {"voters": "all", "correction_lr": 0.2}))
    return folder


@pytest.fixture(scope="module")
def run(place, falcon):
    """Runs the program with these flags; returns the run's folder."""
    def start(alg_name="MEMAT", **flags):
        flags = {"model_name": falcon, "hparams_fname": place / ("MEMIT.json" if alg_name == "MEMIT" else "all.json"),
                 "ds_name": str(place / "catalan_CF.json"), "language": "catalan", "language_eval": "english",
                 "num_edits": BATCH, "results_dir": place / "results", "data_dir": place / "data", **flags}
        return evaluate.main(alg_name, stats_dir=place / "stats", **flags)

    return start


@pytest.fixture(scope="module")
def first(run, place, falcon):
    before = {name: tensor.clone() for name, tensor in falcon[0].state_dict().items()}
    saved = place / "saved"
    folder = run(top_num_heads=[5, 2], save_attention_heads=str(saved / "h"), save_delta_matrix=str(saved / "d"))
    after = falcon[0].state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    return folder


def cases(stage: Path):
    return {case_id: {key: value for key, value in run_folder.read_json(path).items() if key != "time"}
            for case_id, path in run_folder.case_files(stage)}


def test_stages_are_runs(first):
    stages = {str(path.relative_to(first)): run_folder.read_about(path)["stage"] for path in run_folder.runs_in(first)}
    folders = ("heads_2", "heads_5", "memit")
    assert sorted(stages) == [f"{name}/{language}" for name in folders for language in ("catalan", "english")]
    assert stages["heads_5/english"] == {
        "name": "memat", "heads": 5, "alpha": None, "language": "catalan", "language_eval": "english", "measured": "english",
        "profile": "default", "bilingual": None, "held_out": 0.0}
    for path in run_folder.runs_in(first.parent):
        assert sorted(cases(path)) == list(range(RECORDS))
        about, lists = summarize.read_run(path)
        assert len(lists["post_rewrite_diff"]) == RECORDS
        assert summarize.describe(about).startswith(f"MEMAT/run_000/{path.parent.name}/")
    catalan = cases(first / "memit" / "catalan")
    assert catalan[0]["grouped_case_ids"] == [0, 1, 2] and catalan[5]["grouped_case_ids"] == [3, 4, 5]
    assert catalan[2]["requested_rewrite"]["prompt"].startswith("La llengua") and catalan[0]["pre"] != catalan[0]["post"]


def test_relevance_is_written(first):
    relevance = run_folder.read_json(first / "relevance" / "000001.json")
    assert np.array(relevance["accuracy"]).shape == (6, 8) and len(relevance["heads"]) == 5
    assert relevance["case_ids"] == [3, 4, 5] == relevance["voters"] and (relevance["train"], relevance["validation"]) == (2, 1)


def test_chunks_do_not_see_each_other(first, run, place):
    """The first batch alone gives the same bits as in the run of two."""
    alone = run(top_num_heads=[5, 2], dataset_size_limit=BATCH, dir_name="alone")
    for stage in ("memit/catalan", "heads_5/english", "heads_2/catalan"):
        whole = cases(first / stage)
        assert cases(alone / stage) == {case_id: whole[case_id] for case_id in range(BATCH)}


def test_a_run_goes_on(first, run, tmp_path):
    import shutil

    copy = Path(shutil.copytree(first, tmp_path / "results" / "MEMAT" / "run_000"))
    kept = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*case_[012].json")}
    for path in copy.rglob("*case_4.json"):
        path.unlink()
    assert run(top_num_heads=[5, 2], save_attention_heads=str(tmp_path / "h"), save_delta_matrix=str(tmp_path / "d"),
               continue_from_run="run_000", results_dir=tmp_path / "results") == copy
    assert all((copy / name).read_bytes() == content for name, content in kept.items())
    for stage in run_folder.runs_in(first):
        assert cases(copy / stage.relative_to(first)) == cases(stage)


def test_saved_files_say_what_they_are(first, place):
    name = "h_catalan-english_5heads_chunk0_3edits"
    assert (place / "saved" / f"{name}.safetensors").is_file()
    assert (place / "saved" / "d_catalan_chunk1_3edits.safetensors").is_file()
    trained = Corrections.load(place / "saved" / f"{name}.safetensors")
    assert [list(head) for head in trained.heads] == run_folder.read_json(first / "relevance" / "000000.json")["heads"]
    assert np.load(place / "saved" / f"{name}.npy").tolist() == [list(head) for head in trained.heads]
    assert {key: trained.info[key] for key in ("language", "language_eval", "heads", "chunk", "case_ids", "shape")} == {
        "language": "catalan", "language_eval": ["english"], "heads": 5, "chunk": 0, "case_ids": [0, 1, 2], "shape": [6, 8, 8]}


def test_loading_gives_what_was_saved(first, run, place):
    """Heads, vectors and MEMIT's change from files, without training anything."""
    heads = place / "saved" / "h_catalan-english_5heads_chunk{}_3edits"
    again = run(top_num_heads=[5], head_ind=f"{heads}.npy", load_attention=f"{heads}.safetensors", dir_name="loaded",
                load_delta=str(place / "saved" / "d_catalan_chunk{}_3edits.safetensors"))
    for stage in ("memit/catalan", "heads_5/english", "heads_5/catalan"):
        assert cases(again / stage) == cases(first / stage)
    assert not (again / "relevance").exists()


def test_the_originals_files_are_read(first, run, place):
    """A torch list of vectors, a torch dictionary of (A, M), and positions as .npy."""
    trained = Corrections.load(place / "saved" / "h_catalan-english_5heads_chunk0_3edits.safetensors")
    delta = Edit.load(place / "saved" / "d_catalan_chunk0_3edits.safetensors")
    torch.save([vector.clone().requires_grad_(True) for vector in trained.vectors], place / "vectors")
    torch.save({name: (change.right, change.left) for name, change in delta.changes.items()}, place / "delta")
    np.save(place / "positions.npy", np.array(trained.heads))
    again = run(top_num_heads=[5], head_ind=str(place / "positions.npy"), load_attention=str(place / "vectors"),
                load_delta=str(place / "delta"), dataset_size_limit=BATCH, dir_name="original")
    for stage in ("memit/english", "heads_5/english"):
        whole = cases(first / stage)
        assert cases(again / stage) == {case_id: whole[case_id] for case_id in range(BATCH)}


def test_portability(first, run, place):
    """Heads and vectors of the first facts on others: the first batch is left out, and MEMIT is run as ever."""
    files = [str(place / "saved" / f"h_catalan-english_5heads_chunk0_3edits.{end}") for end in ("npy", "safetensors")]
    ported = run(top_num_heads=[5, 2], head_ind=files[0], load_attention=files[1], eval_on_others=True, dir_name="portability")
    assert sorted(cases(ported / "heads_5" / "english")) == [3, 4, 5]
    assert run_folder.read_about(ported)["cases"] == 3
    whole = cases(first / "memit" / "english")
    assert cases(ported / "memit" / "english") == {case_id: whole[case_id] for case_id in (3, 4, 5)}
    assert cases(ported / "heads_5" / "english")[3] != cases(first / "heads_5" / "english")[3]


def test_held_out_facts_neither_choose_nor_train(run, place, first):
    """One fact of three is held out: the heads come from the first two, as in an edit where only these are there."""
    hparams = json.loads((place / "all.json").read_text()) | {"held_out": 0.4, "head_choice": "random"}
    (place / "held_out.json").write_text(json.dumps(hparams))
    folder = run(hparams_fname=place / "held_out.json", top_num_heads=[5], dataset_size_limit=BATCH, dir_name="held_out",
                 save_attention_heads=str(place / "held" / "h"))
    relevance = run_folder.read_json(folder / "relevance" / "000000.json")
    assert relevance["case_ids"] == [0, 1] == relevance["voters"] and (relevance["train"], relevance["validation"]) == (1, 1)
    assert len({tuple(head) for head in relevance["heads"]}) == 5
    assert sorted(cases(folder / "heads_5" / "english")) == [0, 1, 2]
    assert cases(folder / "memit" / "english") == {i: cases(first / "memit" / "english")[i] for i in range(BATCH)}
    files = memat_results.main([folder], place / "held_out_table", held_out=True)
    assert "1 chunks of 1 facts" in files[0].read_text()
    with pytest.raises(UserError, match="a chunk has no facts held out"):
        memat_results.read([first], held_out=True)


def test_memit_alone_in_two_languages(run):
    folder = run("MEMIT", dataset_size_limit=BATCH)
    assert sorted(str(path.relative_to(folder)) for path in run_folder.runs_in(folder)) == ["memit/catalan", "memit/english"]
    values = summarize.main("MEMIT", results_dir=folder.parent.parent)
    assert len(values) == 2 and all("post_score" in one for one in values)


def test_iti_and_a_figure(run, place):
    folder = run("ITI", top_num_heads=[2], alpha=[1.0, 15.0], dataset_size_limit=BATCH,
                 save_figure=str(place / "figures" / "relevance"))
    assert sorted({path.parent.name for path in run_folder.runs_in(folder)}) == ["heads_2_alpha_1", "heads_2_alpha_15", "memit"]
    assert run_folder.read_about(folder / "heads_2_alpha_15" / "english")["stage"]["alpha"] == 15
    assert {path.suffix for path in (place / "figures").iterdir()} == {".pdf", ".png"}


@pytest.mark.parametrize("bilingual, attention", [("sum", True), ("joint", False)])
def test_both_languages_at_once(run, place, bilingual, attention):
    folder = run("MEMIT", bilingual=bilingual, add_attention=attention, top_num_heads=[2] if attention else None,
                 dataset_size_limit=BATCH, dir_name=bilingual,
                 hparams_fname=place / ("all.json" if attention else "MEMIT.json"))
    stages = ["heads_2", "memit"] if attention else ["memit"]
    assert sorted({path.parent.name for path in run_folder.runs_in(folder)}) == stages
    for language in ("english", "catalan"):
        measured = cases(folder / "memit" / language).values()
        before, after = (sum(case[when]["rewrite_prompts_probs"][0]["target_new"] for case in measured)
                         for when in ("pre", "post"))
        assert len(measured) == BATCH and after < before - 0.1
    if attention:
        relevance = run_folder.read_json(folder / "relevance" / "000000.json")
        assert relevance["case_ids"] == [0, 1, 2, 0, 1, 2] and (relevance["train"], relevance["validation"]) == (4, 2)


def test_the_paper_profile_scores_as_published(run, place):
    folder = run(profile="paper", top_num_heads=[2], dataset_size_limit=BATCH, dir_name="paper")
    about = run_folder.read_about(folder / "heads_2" / "english")
    assert about["stage"]["profile"] == "paper" and about["settings"]["profile"] == "paper"
    crossed, matched = (cases(place / "results" / name / "run_000" / "memit" / "catalan") for name in ("paper", "MEMAT"))
    assert (crossed[2]["pre"]["rewrite_prompts_probs"] != matched[2]["pre"]["rewrite_prompts_probs"]
            or crossed[1]["pre"] != matched[1]["pre"])
    alone = run(profile="paper", top_num_heads=[0], dataset_size_limit=BATCH, dir_name="paper_alone")
    assert sorted(str(path.relative_to(alone)) for path in run_folder.runs_in(alone)) == ["memit/catalan", "memit/english"]
    assert cases(alone / "memit" / "catalan") == crossed != matched
    joint = run(profile="paper", top_num_heads=[0], bilingual="joint", dataset_size_limit=BATCH, dir_name="paper_joint")
    assert run_folder.read_about(joint / "memit" / "english")["stage"]["profile"] == "paper"
    assert len(list(run_folder.runs_in(joint))) == 2


def test_a_language_that_the_world_lacks_is_not_measured(occitan, tmp_path):
    def measured(ds_name):
        return language_job.languages_of_data(RunConfig(alg_name="MEMIT", ds_name=ds_name, data_dir=tmp_path), ["english"])

    for name in ("world:300", "world-test", "world-test:12000"):
        assert measured(name) == ["catalan", "english"]
    (tmp_path / "occitan_CF.json").write_text("[]")
    assert measured("english_CF.json") == ["english", "occitan"]


@pytest.mark.parametrize("profile", ["default", "paper"])
def test_both_languages_keep_their_own_contexts(run, place, profile, monkeypatch):
    """By default contexts, KL prompt and the split go by language and fact; published, contexts are mixed."""
    contexts_of, plain = {}, training.train

    def train(decoder, requests, heads, templates, settings, **more):
        facts = zip(requests, templates, more["kl_prompts"], strict=True)
        contexts_of.update({request.prompt: (contexts[1:], kl_prompt) for request, contexts, kl_prompt in facts})
        return plain(decoder, requests, heads, templates, settings, **more)

    monkeypatch.setattr(training, "train", train)
    run("MEMAT", bilingual="sum", profile=profile, top_num_heads=[2], dataset_size_limit=BATCH, dir_name=f"own_{profile}")
    english = {record["requested_rewrite"]["prompt"] for record in json.loads((place / "english_CF.json").read_text())}
    assert english & contexts_of.keys() and contexts_of.keys() - english
    for prompt, (contexts, kl_prompt) in contexts_of.items():
        catalan = prompt not in english
        if profile == "default":
            assert len(contexts) == 5 and kl_prompt == ("{} és" if catalan else "{} is a")
            assert contexts[0].startswith("El" if catalan else "The")
        else:
            assert (len(contexts), kl_prompt) == (5, "{} is a") and contexts == next(iter(contexts_of.values()))[0]


@pytest.fixture
def fails(monkeypatch, capsys, place, tmp_path):
    """Runs the command line with flags changed; returns its one error line. Checks that nothing is left behind."""

    def start(**changes):
        flags = {"alg_name": "MEMAT", "model_name": FOLDER / "tiny-falcon", "hparams": place / "all.json",
                 "dataset_name": place / "catalan_CF.json", "language": "catalan", "language_eval": "english",
                 "num_edits": BATCH, "results_dir": tmp_path / "results", **changes}
        switches = [f"--{name}" for name, value in flags.items() if value is True]
        words = [part for name, value in flags.items() if value not in (None, True) for part in (f"--{name}", str(value))]
        monkeypatch.setattr("sys.argv", ["evaluate", *words, *switches])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run_program(evaluate.command)
        errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert caught.value.code == 2 and len(errors) == 1 and not list(tmp_path.glob("results/*/*"))
        return errors[0].partition("error: ")[2]

    return start


@pytest.mark.parametrize("changes, message", [
    ({"language": "catalán"}, "no language 'catalán'; did you mean 'catalan'"),
    ({"language_eval": "basque"}, "no language 'basque'; known are catalan, english; a file in data/languages adds one"),
    ({"top_num_heads": 49}, r"--top_num_heads 49: the model has 48 heads \(6 layers of 8\)"),
    ({"top_num_heads": "x"}, "'x' should be a whole number from 0"),
    ({"top_num_heads": "0", "save_figure": "x"}, "--save_figure has no effect with --top_num_heads 0"),
    ({"top_num_heads": "8,8"}, "'8,8' should be"),
    ({"load_attention": "x.safetensors"}, "--load_attention has no effect without --head_ind"),
    ({"alg_name": "MEMIT", "hparams": "{MEMIT}", "head_ind": "x.npy"}, "--head_ind has no effect without --add_attention"),
    ({"alpha": "5"}, "--alpha has no effect with --alg_name MEMAT"),
    ({"alpha": "five", "alg_name": "ITI"}, "'five' should be a number"),
    ({"alg_name": "ROME", "add_attention": True}, "--add_attention goes with MEMIT, not with ROME"),
    ({"alg_name": "MEMIT", "hparams": "{MEMIT}", "language": None}, "--language_eval has no effect without --language"),
    ({"head_ind": "nowhere.npy"}, "--head_ind nowhere.npy: no such file"),
    ({"bilingual": "sum", "language_eval": "catalan"}, "name two languages"),
    ({"sequential": True}, "--sequential does not go with --language"),
    ({"eval_on_others": True, "dataset_size_limit": 3}, "all 3 records are in the first batch"),
    ({"num_edits": 7}, "--num_edits 7: .* has only 6 records"), ({"profile": "paprika"}, "invalid choice"),
    ({"alg_name": "MEMIT", "hparams": "{MEMIT}", "profile": "paper"}, "--profile has no effect with --alg_name MEMIT"),
    ({"bilingual": "sum", "load_delta": "x"}, "--load_delta does not go with --bilingual"),
    ({"num_edits": 5}, "the last chunk has 1 facts, too few to choose heads by .* leave it out with --dataset_size_limit 5"),
    ({"num_edits": 1}, "--num_edits 1: heads can't be chosen by 1 facts"),
    ({"context_templates": "x.json"}, "--context_templates does not go with --language"),
    ({"generation_test_interval": 2}, "--generation_test_interval has no effect with --language: no texts are generated"),
    ({"hparams": "auto"}, "--hparams_fname auto does not go with --language"),
    ({"save_figure": "x", "head_ind": "x.npy"}, "--save_figure has no effect with --head_ind"),
])
def test_flags(fails, place, changes, message):
    files = {key: place / f"{value[1:-1]}.json" for key, value in changes.items() if str(value).startswith("{")}
    assert re.search(message, fails(**changes | files))


@pytest.mark.parametrize("content, message", [
    (np.array([[0, 1], [9, 2]]), r"\[9, 2\] is no \(layer, head\) of this model, whose layers are 0 to 5 with heads 0 to 7"),
    (np.array([[0, 1], [0, 1]]), "names a head twice"), (np.array([[0, 1]]), "names 1 heads, --top_num_heads asks for 2"),
    (np.array([[0.5, 1.0]]), "expected integers"), (np.array([1, 2, 3]), r"of shape \[3\], expected integers \[heads, 2\]"),
    (b"12345", "not readable as .npy"), (b"PK\x03\x04 cut", "not readable as .npy"),
])
def test_heads_in_files(fails, tmp_path, content, message):
    path = tmp_path / "heads.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    assert re.search(message, fails(head_ind=path, top_num_heads=2))


@pytest.mark.parametrize("save, message", [
    (lambda path: torch.save([torch.zeros(5), torch.zeros(5)], path), "vectors of head size 5, the model's heads have 8"),
    (lambda path: torch.save([torch.zeros(8)], path), "holds 1 vectors, --head_ind names 2 heads"),
    (lambda path: torch.save({"a": 1}, path), "not a list of correction vectors"),
    (lambda path: path.write_text("x"), "not a torch file"),
    (lambda path: torch.save([np.ones], path), "not a torch file of tensors"),
    (lambda path: Corrections([(0, 1), (3, 3)], torch.zeros(2, 8)).save(path),
     r"its vectors are of the heads \[\(0, 1\), \(3, 3\)\]"),
])
def test_vectors_in_files(fails, tmp_path, save, message):
    np.save(tmp_path / "heads.npy", np.array([[0, 1], [2, 3]]))
    path = tmp_path / ("v.safetensors" if "its vectors are" in message else "v")
    save(path)
    assert re.search(message, fails(head_ind=tmp_path / "heads.npy", load_attention=path, top_num_heads=2))


def test_several_arrays_are_no_heads(fails, tmp_path):
    np.savez(tmp_path / "heads.npz", a=np.array([[0, 1]]))
    assert "--head_ind" in (line := fails(head_ind=tmp_path / "heads.npz", top_num_heads=1)) and "several arrays (.npz)" in line


@pytest.mark.parametrize("delta, message", [
    ({"transformer.h.0.mlp.dense_4h_to_h.weight": (torch.zeros(256, 3), torch.zeros(64, 2))}, "have 3 and 2 columns"),
    ({"transformer.h.0.mlp.dense_4h_to_h.weight": (torch.zeros(9, 3), torch.zeros(64, 3))}, "made for another model"),
    ({"model.layers.0": (torch.zeros(9, 3), torch.zeros(64, 3))}, "has no module 'model.layers'"),
])
def test_deltas_of_every_chunk_are_checked_before_the_run(fails, place, tmp_path, delta, message):
    name = "transformer.h.0.mlp.dense_4h_to_h.weight"
    torch.save({name: (torch.zeros(256, 3), torch.zeros(64, 3))}, tmp_path / "d0")
    torch.save(delta, tmp_path / "d1")
    line = fails(alg_name="MEMIT", hparams=place / "MEMIT.json", load_delta=tmp_path / "d{}")
    assert message in line and f"--load_delta {tmp_path / 'd1'}: " in line


def test_heads_of_another_model(fails, tmp_path):
    Corrections([(0, 1), (2, 3)], torch.zeros(2, 64), {"shape": [32, 71, 64]}).save(tmp_path / "h.safetensors")
    line = fails(head_ind=tmp_path / "h.npy", top_num_heads=2)
    assert "heads of another model, with 32 layers of 71 heads of size 64; this one has 6 layers of 8 heads of size 8" in line


@pytest.mark.parametrize("spoil, message", [
    (lambda records: records.pop(1),
     r"english_CF.json and .*catalan_CF.json are not aligned: it lacks 1 of the 6 case ids asked for: 1"),
    (lambda records: records[1]["requested_rewrite"]["target_new"].update(id="Q1"),
     "not aligned: case 1 has the new object Q1 there"),
])
def test_misaligned_data(fails, place, tmp_path, spoil, message):
    records = json.loads((place / "english_CF.json").read_text())
    spoil(records)
    (tmp_path / "english_CF.json").write_text(json.dumps(records))
    (tmp_path / "catalan_CF.json").write_text((place / "catalan_CF.json").read_text())
    assert re.search(message, fails(dataset_name=tmp_path / "catalan_CF.json"))


@pytest.mark.parametrize("alg_name", ["MEMAT", "ITI"])
def test_with_too_few_voters_no_heads_are_corrected(run, place, alg_name):
    from figures import head_relevance

    with pytest.warns(UserWarning, match="chunk 0: only 0 facts can vote on heads; none is corrected there"):
        folder = run(alg_name, hparams_fname=place / "MEMIT.json", dataset_size_limit=BATCH, load_delta="original_model",
                     top_num_heads=[2], dir_name=f"few_{alg_name}")
    (stage,) = folder.glob("heads_2*")
    assert cases(stage / "english") == cases(folder / "memit" / "english") and len(cases(stage / "english")) == BATCH
    relevance = run_folder.read_json(folder / "relevance" / "000000.json")
    assert (relevance["accuracy"], relevance["heads"], relevance["voters"], relevance["train"]) == (None, [], [], 0)
    with pytest.raises(UserError, match="no relevance of heads"):
        head_relevance.read(folder)


def test_weights_that_differ_are_warned_of(first, run, place, tmp_path):
    trained = Corrections.load(place / "saved" / "h_catalan-english_5heads_chunk0_3edits.safetensors")
    flags = {"top_num_heads": [2], "head_ind": str(tmp_path / "h.npy"), "load_attention": str(tmp_path / "h.safetensors"),
             "load_delta": "original_model", "dataset_size_limit": BATCH, "dir_name": "warned"}
    of_another_model = {**trained.info, "model": "tiny, weights 0123"}
    Corrections(trained.heads, trained.vectors, of_another_model).save(tmp_path / "h.safetensors")
    warning = "--load_attention .*h.safetensors: heads of another model, tiny, weights 0123; this one is weights"
    with pytest.warns(UserWarning, match=warning):
        run(**flags)
    # Other vectors in the same file, or another fact in a language that is only measured: another run.
    Corrections(trained.heads, 2 * trained.vectors, trained.info).save(tmp_path / "h.safetensors")
    with pytest.raises(UserError, match="loaded"):
        run(**flags, continue_from_run="run_000")
    trained.save(tmp_path / "h.safetensors")


def test_every_languages_records_are_the_runs(run, place, tmp_path):
    for language in ("english", "catalan"):
        (tmp_path / f"{language}_CF.json").write_text((place / f"{language}_CF.json").read_text())
    flags = {"alg_name": "MEMIT", "ds_name": str(tmp_path / "catalan_CF.json"), "language_eval": "catalan",
             "dataset_size_limit": BATCH, "dir_name": "every"}
    run(**flags)
    records = json.loads((tmp_path / "english_CF.json").read_text())
    records[0]["paraphrase_prompts"][0] += " indeed"
    (tmp_path / "english_CF.json").write_text(json.dumps(records))
    with pytest.raises(UserError, match="data"):
        run(**flags, continue_from_run="run_000")
