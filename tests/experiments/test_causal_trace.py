"""The program of causal tracing: files, resuming, figures, layers for a model without hyper-parameters, mistakes."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
import torch

from common.errors import UserError
import data
import editors
from editors import automatic
from experiments import causal_trace, collect_stats
from experiments.results import run_folder
from experiments.run import auto_hparams
from experiments.run.cli import run_program
from experiments.run.config import RunConfig
from experiments.tracing import files
from editors.core.tracing.averages import LAST_SUBJECT
from experiments.tracing.facts import facts_of, load_facts
from editors.core.tracing.scores import SEVERED
from figures import causal_trace as figure
from figures import edit_layers
from tests.conftest import GOLDEN, load_tiny

PROMPTS = [("Orla Venn", "Lutmere", "Orla Venn lives in the city of"),
           ("Tamsin Brackholt", "cheesemonger", "Tamsin Brackholt works as a"),
           ("Orla Venn", "Nowhere", "Orla Venn lives in the city of"),
           ("Petra Lowick", "the", "On market days in town, Petra Lowick plays")]


@pytest.fixture(scope="module")
def fact_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("facts") / "facts.json"
    path.write_text(json.dumps([{"known_id": i, "subject": subject, "attribute": attribute, "prompt": prompt}
                                for i, (subject, attribute, prompt) in enumerate(PROMPTS)]))
    return path


@pytest.fixture(scope="module")
def traced(tiny_gpt2, fact_file, tmp_path_factory):
    """A finished trace."""
    return causal_trace.main(tiny_gpt2, fact_file, tmp_path_factory.mktemp("trace") / "here", samples=4)


def test_files_of_a_trace(traced, tiny_gpt2):
    assert sorted(path.name for path in traced.iterdir()) == ["averages.json", "cases", "run.json"]
    assert len(list(traced.glob("cases/*"))) == 3 * len(PROMPTS)
    with np.load(traced / "cases" / "knowledge_0.npz", allow_pickle=False) as case:
        assert {"scores", "low_score", "high_score", "input_ids", "input_tokens", "subject_range", "answer", "window",
                "correct_prediction", "kind"} == set(case.files)
        assert case["scores"].shape == (7, 6) and str(case["answer"]) == " Lutmere" and case["input_tokens"][1] == " Venn"
    with np.load(traced / "cases" / "knowledge_2_mlp.npz", allow_pickle=False) as case:
        assert case.files == ["correct_prediction"] and not case["correct_prediction"]
    average = run_folder.read_json(traced / "averages.json")
    assert average["facts"] == 3 and average["of"] == 4
    facts = files.known_facts(traced, range(4))
    assert average["total_effect"]["mean"] == pytest.approx(np.mean([fact.high - fact.low for fact in facts]))
    about = run_folder.read_json(traced / "run.json")
    assert about["settings"]["window"] == 1 and about["noise"]["std"] == pytest.approx(3 * about["noise"]["embedding_std"])
    text = causal_trace.summary(traced)
    assert "3 of 4 facts known" in text and "proposed layers to edit: " in text


def test_a_trace_goes_on(traced, tiny_gpt2, fact_file, tmp_path, monkeypatch):
    folder, before = tmp_path / "there", {path.name: path.read_bytes() for path in (traced / "cases").iterdir()}
    write, written = files.write_case, []

    def kill(*args):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(args)
        write(*args)

    monkeypatch.setattr(files, "write_case", kill)
    with pytest.raises(KeyboardInterrupt):
        causal_trace.main(tiny_gpt2, fact_file, folder, samples=4)
    assert not (folder / "averages.json").exists() and len(list(folder.glob("cases/*"))) == 6
    monkeypatch.setattr(files, "write_case", write)
    causal_trace.main(tiny_gpt2, fact_file, folder, samples=4)
    assert {path.name: path.read_bytes() for path in (folder / "cases").iterdir()} == before
    assert (folder / "averages.json").read_bytes() == (traced / "averages.json").read_bytes()
    monkeypatch.setattr(causal_trace, "trace", None)  # nothing is traced twice
    causal_trace.main(tiny_gpt2, fact_file, folder, samples=4)
    with pytest.raises(UserError, match="noise_level was \"s3\" and is now \"0.2\""):
        causal_trace.main(tiny_gpt2, fact_file, folder, samples=4, noise_level="0.2")
    path = folder / "cases" / "knowledge_1_mlp.npz"
    path.write_bytes(b"half")
    with pytest.raises(UserError, match="knowledge_1_mlp.npz: not readable .* delete it and run again"):
        causal_trace.main(tiny_gpt2, fact_file, folder, samples=4)
    case = files.read_case(traced / "cases" / path.name)
    for spoilt in ({"answer": 1}, case | {"scores": case["scores"][:, 1:]}, case | {"subject_range": [2, 99]}):
        np.savez(path, **spoilt)
        with pytest.raises(UserError, match="knowledge_1_mlp.npz: not of a traced fact's form; delete it and run again"):
            causal_trace.main(tiny_gpt2, fact_file, folder, samples=4)
    (folder / "run.json").write_text("{")
    with pytest.raises(UserError, match="run.json: not readable as JSON .* start a new run in another folder"):
        causal_trace.main(tiny_gpt2, fact_file, folder, samples=4)


def test_figures(traced, tmp_path):
    files = figure.main(traced, tmp_path / "average", [3])
    assert [file.name for file in files] == [
        f"average{name}{kind}" for name in ("", "_knowledge_3") for kind in (".pdf", ".png")]
    (traced / "cases" / "knowledge_0 (copy).npz").touch()  # not of a trace
    assert "first_knowledge_0.pdf" in [file.name for file in figure.main(traced, tmp_path / "first", "first")]
    average = run_folder.read_json(traced / "averages.json")
    drawn = figure.draw_averages(average)
    assert np.array_equal(drawn.axes[1].images[0].get_array(), np.array(
        [row or [np.nan] * 6 for row in average["indirect_effect"]["mlp"]["mean"]]), equal_nan=True)
    for known_id, message in ((2, "does not know fact 2"), (9, "has no fact 9; the first is 0")):
        with pytest.raises(UserError, match=message):
            figure.main(traced, tmp_path / "none", [known_id])
    with pytest.raises(UserError, match="has no averages.json; finish the trace"):
        figure.main(tmp_path, tmp_path / "none")
    np.savez(tmp_path / "cases.npz", answer="x")
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases.npz").rename(tmp_path / "cases" / "knowledge_0.npz")
    (tmp_path / "averages.json").write_bytes((traced / "averages.json").read_bytes())
    with pytest.raises(UserError, match="knowledge_0.npz: not of a traced fact's form"):
        figure.main(tmp_path, tmp_path / "none", "first")
    assert not list(tmp_path.glob("none*"))


def test_severed_modules(tiny_gpt2, fact_file, tmp_path):
    folder = causal_trace.main(tiny_gpt2, fact_file, tmp_path / "severed", samples=4, severed=True)
    assert len(list(folder.glob("cases/*"))) == 5 * len(PROMPTS)
    effects = run_folder.read_json(folder / "averages.json")["indirect_effect"]
    for kind in SEVERED:
        assert [row is None for row in effects[kind]["mean"]] == [place != LAST_SUBJECT for place in range(6)]
        assert effects[kind]["mean"][LAST_SUBJECT] != effects["state"]["mean"][LAST_SUBJECT]
    assert [file.name for file in figure.main(folder, tmp_path / "a")] == ["a.pdf", "a.png", "a_severed.pdf", "a_severed.png"]
    drawn = figure.draw_severed(run_folder.read_json(folder / "averages.json"))
    assert list(drawn.axes[0].get_lines()[1].get_ydata()) == effects["no_mlp"]["mean"][LAST_SUBJECT]


def test_facts_of_data_sets(golden, realdata):
    records = data.load(golden / "multi_counterfact.json")
    facts = load_facts(str(golden / "multi_counterfact.json"))
    assert len(facts) == len(records) and facts[0].attribute == records[0].target_true.str
    assert all(fact.subject in fact.prompt for fact in facts)
    assert load_facts("world", limit=3) == facts_of(data.load("world", limit=3), "world")
    assert len(load_facts(str(realdata / "known_1000.json"))) == 1209


def test_layers_from_a_trace(traced, run, tiny_gpt2, capsys, monkeypatch):
    average = run_folder.read_json(traced / "averages.json")
    values = run_folder.read_json(automatic.VALUES)
    values["FT"]["num_steps"] = 2
    monkeypatch.setattr(automatic, "VALUES", traced.parent / "auto.json")
    run_folder.write_json(automatic.VALUES, values)
    folder = run("FT", hparams_fname=f"auto:{traced}", num_edits=2, dataset_size_limit=2)
    peak = average["proposal"]["peak"]
    assert run_folder.read_json(folder / "params.json") == values["FT"] | {"layers": [peak]}
    about = run_folder.read_json(folder / "run.json")
    assert about["traced"]["peak"] == peak and about["traced"]["facts"] == 3
    assert about["flags"]["hparams_fname"] == f"auto:{traced}"
    line = f"layers {peak} for FT: where MLPs at the subject's last token bring most back of 3 facts of {traced}"
    assert line in capsys.readouterr().out
    again = run("FT", hparams_fname=f"auto:{traced}", num_edits=2, dataset_size_limit=2, continue_from_run="run_000")
    assert again == folder
    fixed = run("FT", hparams_fname=folder / "params.json", num_edits=2, dataset_size_limit=2)  # params.json is all it takes
    for path in folder.glob("*case*.json"):
        ours, theirs = (run_folder.read_json(f / path.name) for f in (folder, fixed))
        assert ours["post"] == theirs["post"]


def test_layers_from_the_data_set(run, hparams, golden, monkeypatch):
    monkeypatch.setattr(automatic, "LEAST", 2)
    monkeypatch.setattr(automatic, "VALUES", hparams("FT").parent / "auto.json")
    run_folder.write_json(automatic.VALUES, {"FT": {"layers": "range", "num_steps": 2, "lr": 5e-4, "weight_decay": 0,
                                                   "norm_constraint": False}})
    folder = run("FT", hparams_fname="auto", num_edits=2, dataset_size_limit=2)
    traced = run_folder.read_json(folder / "run.json")["traced"]
    assert run_folder.read_json(folder / "params.json")["layers"] == traced["range"] and traced["facts"] >= 2
    assert len(traced["effects"]) == 6 and traced["effects"][traced["peak"]] == max(traced["effects"])


def test_facts_that_a_trace_of_the_data_set_takes(golden, tmp_path, monkeypatch):
    monkeypatch.setattr(auto_hparams, "load_facts", lambda *args: [])
    monkeypatch.setattr(auto_hparams, "_kept", lambda config, model, tok, facts, source: source)
    mcf, zsre = tmp_path / "my-zsre-set.json", tmp_path / "world-zsre.json"
    mcf.write_bytes((golden / "multi_counterfact.json").read_bytes())
    zsre.write_bytes((golden / "zsre_mend_eval.json").read_bytes())
    for name, source in ((mcf, str(mcf)), (zsre, "known_1000"), ("world-zsre", "world"), ("world-zsre:50", "world:50"),
                         ("world-ca-zsre", "world-ca"), ("world-zsre-test", "world-test")):
        assert auto_hparams._traced(RunConfig(alg_name="MEMIT", ds_name=str(name)), None, None) == source


def test_a_trace_is_kept(run, hparams, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(automatic, "LEAST", 2)
    monkeypatch.setattr(automatic, "VALUES", hparams("FT").parent / "auto.json")
    run_folder.write_json(automatic.VALUES, {"FT": {"layers": "peak", "num_steps": 2, "lr": 5e-4, "weight_decay": 0,
                                                   "norm_constraint": False}})
    flags = {"hparams_fname": "auto", "num_edits": 2, "dataset_size_limit": 2, "data_dir": tmp_path / "data"}
    first = run_folder.read_json(run("FT", **flags) / "run.json")["traced"]
    monkeypatch.setattr(automatic, "propose", lambda *_: pytest.fail("traced again"))
    folder = run("FT", set=["lr=0.001"], **flags)
    assert run_folder.read_json(folder / "run.json")["traced"] == first and "of an earlier run" in capsys.readouterr().out
    assert run_folder.read_json(folder / "params.json")["lr"] == 0.001


def test_known_facts_where_the_data_set_has_too_few(golden, tmp_path, monkeypatch, tiny_gpt2):
    def propose(model, tok, facts, source):
        if source != "known_1000":
            raise automatic.TooFewKnown("the model knows only 1")
        return {"source": source}

    config = RunConfig(alg_name="FT", ds_name=str(golden / "multi_counterfact.json"), data_dir=tmp_path)
    monkeypatch.setattr(automatic, "propose", propose)
    with pytest.raises(UserError, match="knows only 1; .*; the published known facts can't be had either"):
        auto_hparams._traced(config, *tiny_gpt2)
    load = auto_hparams.load_facts
    monkeypatch.setattr(auto_hparams, "load_facts", lambda name, *more: [] if name == "known_1000" else load(name, *more))
    assert auto_hparams._traced(config, *tiny_gpt2) == {"source": "known_1000"}


def test_what_is_missing_is_said_before_the_trace(run, monkeypatch, tmp_path):
    monkeypatch.setattr(automatic, "propose", lambda *_: pytest.fail("traced"))
    monkeypatch.setenv("KE_STATS_DIR", str(tmp_path / "stats"))
    for words, message in (([], r"corpus wikipedia: .* \(as in --set mom2_dataset=FILE\)"),
                           (["mom2_dataset=nowhere.txt"], "corpus nowhere.txt: no such file"),
                           (["v_lrr=1"], "--set v_lrr=1: MEMIT has no hyper-parameter 'v_lrr'; did you mean 'v_lr'")):
        with pytest.raises(UserError, match=message):
            run("MEMIT", hparams_fname="auto", set=words)


def test_values_of_every_editor(tiny_gpt2, traced, monkeypatch):
    model, tok = tiny_gpt2
    monkeypatch.setattr(auto_hparams, "_check_statistics", lambda *_: None)
    for alg_name in (*run_folder.read_json(automatic.VALUES), "MEMIT_seq"):
        config = RunConfig(alg_name=alg_name, hparams_fname=f"auto:{traced}", model_name="tiny", ds_name="mcf")
        values, about = auto_hparams.propose_hparams(config, model, tok)
        hparams = editors.load(alg_name, values).hparams
        assert hparams.layers == (about["range"] if alg_name.startswith(("MEMIT", "Alpha")) else [about["peak"]])
        if alg_name == "MEMIT":
            assert hparams.mom2_update_weight == 235  # 256 * 15000 / 16384
            world, _ = auto_hparams.propose_hparams(dataclasses.replace(config, model_name="world"), model, tok)
            assert world["mom2_dataset"] == "world" and values["mom2_dataset"] == "wikipedia"


def test_the_short_trace_is_part_of_the_whole(tiny_gpt2, fact_file, tmp_path, monkeypatch):
    monkeypatch.setattr(automatic, "LEAST", 1)
    whole = run_folder.read_json(causal_trace.main(tiny_gpt2, fact_file, tmp_path / "whole") / "averages.json")
    facts = load_facts(str(fact_file))
    short = automatic.propose(*tiny_gpt2, facts, "here")
    effects = whole["indirect_effect"]["mlp"]["mean"][LAST_SUBJECT]
    assert short["facts"] == 3 and short["effects"] == pytest.approx(effects, abs=6e-5)
    assert {name: short[name] for name in ("peak", "range")} == whole["proposal"]
    monkeypatch.setattr(automatic, "FACTS", 2)
    assert automatic.propose(*tiny_gpt2, facts, "here")["facts"] == 2


@pytest.mark.parametrize("flags, message", [
    (["--noise_level", "x3"], "noise level 'x3': should be a number"),
    (["--noise_level", "t1"], "noise level 't1': .* degrees above 2"),
    (["--window", "7"], "--window 7: the model has only 6 blocks"),
    (["--window", "0"], "'0' should be a whole number from 1"),
    (["--samples", "none"], "'none' should be a whole number from 1"),
    (["--replace", "2"], "invalid choice: 2"),
    (["--seed", "4294967296"], "should be below 2\\^32"),
    (["--model_name", "./nowhere"], "no such folder"),
    (["--fact_file", "nowhere.json"], "nowhere.json: no such file"),
    (["--fact_file", "know_1000"], "unknown data set 'know_1000'"),
    (["--fact_file", str(GOLDEN / "zsre_mend_eval.json")], "have no true answers to trace"),
    (["--noise_level", "m", "--noise_corpus", "nowhere.txt"], "nowhere.txt: no such file"),
    (["--device", "cuda:99"], "--device cuda:99: not available here"),
    (["--noise_level", "1e300"], "not finite under noise"),  # nothing is left that would refuse another level
])
def test_mistakes(fact_file, tmp_path, monkeypatch, capsys, flags, message):
    options = {"--model_name": str(GOLDEN / "tiny-gpt2"), "--fact_file": str(fact_file), "--output_dir": str(tmp_path / "out")}
    options |= dict(zip(flags[::2], flags[1::2]))
    monkeypatch.setattr(sys, "argv", ["causal_trace", *(part for pair in options.items() for part in pair)])
    with pytest.raises(SystemExit, match="2"):
        run_program(causal_trace.command)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert re.search(message, line) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("facts, message", [
    ([{"known_id": 0, "subject": "Orla", "attribute": "x", "prompt": "Tamsin is"}], "does not contain the subject"),
    ([{"known_id": 0, "subject": "Orla", "attribute": "x", "prompt": "Orla is"}] * 2, "two facts of the number 0"),
    ([{"known_id": 0, "subject": "Orla", "attribute": "", "prompt": "Orla is"}], "attribute"),
    ([], "expected a list of records, found an empty list"),
])
def test_facts_that_are_none(tiny_gpt2, tmp_path, facts, message):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(facts))
    with pytest.raises((UserError, data.UserError), match=message):
        causal_trace.main(tiny_gpt2, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_known(tiny_gpt2, tmp_path, run):
    path = tmp_path / "facts.json"
    fact = {"known_id": 0, "subject": "Orla Venn", "attribute": "Nowhere", "prompt": "Orla Venn lives in"}
    path.write_text(json.dumps([fact]))
    with pytest.raises(UserError, match="the model knows none of the facts"):
        causal_trace.main(tiny_gpt2, path, tmp_path / "out")
    with pytest.raises(UserError, match="--hparams_fname auto: the model knows only .* are needed"):
        run("FT", hparams_fname="auto")
    assert not list((tmp_path / "results").glob("*/run*"))


def test_automatic_layers_refused(run, traced, tmp_path, tiny_gptj, golden):
    with pytest.raises(UserError, match="has no averages.json; finish the trace"):
        run("FT", hparams_fname=f"auto:{tmp_path}")
    average = run_folder.read_json(traced / "averages.json")
    lacking = [{key: value for key, value in average.items() if key != dropped} for dropped in ("facts", "total_effect")]
    lacking += [average | {key: {}} for key in ("proposal", "settings", "indirect_effect")]
    for content in ({}, *lacking):
        run_folder.write_json(tmp_path / "averages.json", content)
        with pytest.raises(UserError, match="averages.json: was not written by experiments.causal_trace"):
            auto_hparams._saved(tmp_path, tiny_gptj[0])
    with pytest.raises(UserError, match=r"in another dtype \(tiny-gpt2, .*, float32\), not of this \(.*, float16\)"):
        auto_hparams._saved(traced, load_tiny("tiny-gpt2", torch.float16)[0])
    with pytest.raises(UserError, match="a trace of another model"):
        run("FT", hparams_fname=f"auto:{traced}", model_name=tiny_gptj)
    with pytest.raises(UserError, match="unknown editor 'MENIT'"):
        run("MENIT", hparams_fname="auto")
    with pytest.raises(UserError, match="only experiments.evaluate traces a model; give the params.json of such a run"):
        collect_stats.main(["--model_name", str(golden / "tiny-gpt2"), "--hparams_fname", "auto"])
    assert not list((tmp_path / "results").glob("*/run*"))


def test_another_folder(tiny_gpt2, fact_file, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files but no run.json"):
        causal_trace.main(tiny_gpt2, fact_file, tmp_path)
    for content in ("[]", '{"settings": 3}'):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(UserError, match="was not written by experiments.causal_trace"):
            causal_trace.main(tiny_gpt2, fact_file, tmp_path)


@pytest.fixture
def edit_blocks(run, hparams, tmp_path):
    """Runs edits of these blocks, in the folder of `swept`."""
    def start(*layers, dir_name):
        run("FT", hparams_fname=hparams("FT", layers=list(layers), num_steps=2), dataset_size_limit=2, num_edits=2,
            results_dir=tmp_path / "swept", dir_name=dir_name)
    return start


@pytest.fixture
def swept(edit_blocks, traced, tmp_path):
    """A folder with a trace and single-block runs of two blocks."""
    folder = tmp_path / "swept"
    (folder / "causal_trace").mkdir(parents=True)
    (folder / "causal_trace" / "averages.json").write_bytes((traced / "averages.json").read_bytes())
    for layer in (1, 2):
        edit_blocks(layer, dir_name=f"FT_{layer}")
    return folder


@pytest.mark.filterwarnings("ignore:.*without effect")
def test_trace_and_edits_in_one_figure(swept, tmp_path, capsys):
    files = edit_layers.main(swept, tmp_path / "figure")
    assert [file.name for file in files] == ["figure.pdf", "figure.png"]
    average, points = edit_layers.read(swept)
    assert list(points) == ["FT"] and sorted(points["FT"]) == [1, 2]
    assert "FT: best at block " in capsys.readouterr().out
    drawn = edit_layers.draw(average, points)
    assert list(drawn.axes[4].get_lines()[0].get_xdata()) == [1, 2]
    effects = average["indirect_effect"]["mlp"]["mean"][LAST_SUBJECT]
    perfect = {"FT": {block: {"score": value} for block, value in enumerate(effects)}}
    assert "rank correlation of effect and score 1.00" in edit_layers.agreement(average, perfect)[0]
    assert edit_layers._ranks(np.array([3.0, 0.0, 0.0, 5.0])).tolist() == [2.5, 1, 1, 3.5]
    params = swept / "FT_2" / "run_000" / "params.json"
    run_folder.write_json(params, run_folder.read_json(params) | {"fact_token": "last"})
    assert list(edit_layers.read(swept)[1]) == ["FT", "FT, last"]
    (swept / "causal_trace" / "averages.json").rename(swept / "averages.json.gone")
    with pytest.raises(UserError, match="holds 0 finished causal traces"):
        edit_layers.read(swept)


@pytest.mark.filterwarnings("ignore:.*without effect")
def test_edits_that_do_not_compare(swept, edit_blocks):
    edit_blocks(2, dir_name="again")
    with pytest.raises(UserError, match="a second run of FT at block 2"):
        edit_layers.read(swept)
    edit_blocks(2, 3, dir_name="FT_0")
    with pytest.raises(UserError, match=r"edits the blocks \[2, 3\]; runs of one block each are compared"):
        edit_layers.read(swept)
