"""The benchmark of many edits accounts for the whole run."""

import json

import pytest

from experiments.bench import edits


@pytest.mark.filterwarnings("ignore:.*without effect", "ignore:the corpus has 312 documents")
def test_every_second_has_a_step(golden, hparams, tmp_path, capsys):
    measured = edits.main(["--model_name", str(golden / "tiny-gpt2"), "--hparams_fname", str(hparams("MEMIT")),
                           "--ds_name", str(golden / "multi_counterfact.json"), "--edits", "3", "--threads", "1",
                           "--out", str(tmp_path / "edits.json")])
    assert set(measured["seconds"]) == {"model and data", "metrics before", "contexts", "statistics", "target states", "keys",
                                        "states now", "solve", "targets said", "metrics after", "results", "other"}
    assert sum(measured["seconds"].values()) == pytest.approx(measured["total"])
    assert all(seconds >= 0 for seconds in (*measured["seconds"].values(), *measured["processor_seconds"].values()))
    assert measured["memory_mib"]["other"] >= measured["memory_mib"]["model and data"] > 10
    assert measured["reached"]["post_rewrite_success"] > measured["reached"]["pre_rewrite_success"]
    assert json.loads((tmp_path / "edits.json").read_text()) == measured
    assert "3 edits of" in capsys.readouterr().out
