"""The program that precomputes statistics: flags, hparams files, the authors' server, and what a user's mistake prints."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from common.errors import UserError
from data.download import Unavailable
import data.world
from editors.core import covariance
from editors.core.covariance import MomentSpec
from editors.core.decoder import Decoder
from experiments import collect_stats
from experiments.run.hparams_file import HPARAMS
from tests.conftest import GOLDEN, ROOT, load_tiny

MODEL, CORPUS = str(GOLDEN / "tiny-gpt2"), str(GOLDEN / "corpus.jsonl")


@pytest.fixture
def run(tmp_path):
    def program(*flags):
        return collect_stats.main(["--model_name", MODEL, "--stats_dir", str(tmp_path / "stats"), "--device", "cpu", *flags])
    return program


@pytest.fixture
def server(monkeypatch):
    """Stands for the authors' server: `server.files` maps addresses to bytes; `server.urls` lists what was asked for."""
    class Server:
        files, urls = {}, []

    def download(url, path):
        Server.urls.append(url)
        if url not in Server.files:
            raise Unavailable(f"{path.name} is not here, and the server answers 404; put it there by hand")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Server.files[url])

    Server.files, Server.urls = {}, []
    monkeypatch.setattr(collect_stats, "download", download)
    return Server


def test_same_as_the_library(run, tmp_path, capsys):
    flags = ("--layers", "1,3-4", "--sample_size", "50", "--precision", "float64", "--batch_tokens", "60")
    moments = run("--dataset", CORPUS, *flags)
    assert list(moments) == [1, 3, 4]
    model, tok = load_tiny("tiny-gpt2")
    expected = covariance.collect(
        Decoder.of(model, tok), [3], MomentSpec(CORPUS, 50, "float64", batch_tokens=60), stats_dir=tmp_path, progress=False)[3]
    assert moments[3].count == expected.count and torch.allclose(moments[3].matrix, expected.matrix, rtol=1e-4, atol=1e-6)
    printed = capsys.readouterr().out
    assert f"layer 4: {expected.count} tokens, keys of width 256" in printed and str(tmp_path / "stats") in printed


def test_editors_find_what_the_program_wrote(run, tmp_path, monkeypatch):
    run("--dataset", CORPUS, "--layers", "all", "--sample_size", "all", "--to_collect", "mean,mom2,norm_mean")
    monkeypatch.setattr(covariance, "add_batch", lambda *_: pytest.fail("collected again"))
    monkeypatch.setenv("KE_STATS_DIR", str(tmp_path / "stats"))
    assert len(covariance.collect(Decoder.of(*load_tiny("tiny-gpt2")), range(6), MomentSpec(CORPUS, "all"))) == 6


def test_settings_come_from_a_hparams_file_and_flags_win(run, tmp_path):
    hparams = json.loads((HPARAMS / "MEMIT" / "gpt2-xl.json").read_text())
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**hparams, "layers": [2, 1], "mom2_dataset": CORPUS, "mom2_n_samples": 30}))
    moments = run("--alg_name", "MEMIT", "--hparams_fname", str(path))
    assert list(moments) == [2, 1] and moments[1].identity["n_samples"] == 30
    moments = run("--alg_name", "MEMIT", "--hparams_fname", str(path), "--layers", "0", "--sample_size", "20")
    assert list(moments) == [0] and moments[0].identity["n_samples"] == 20
    path.write_text(json.dumps({**hparams, "layers": [2], "mom2_dataset": CORPUS, "dynamic_multiplier": 1.5}))
    assert run("--alg_name", "MEMIT", "--hparams_fname", str(path))[2].count == 384  # of width 256


def test_the_built_in_world_has_a_corpus(run, tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr(data.world, "corpus_path", lambda data_dir: folders.append(data_dir) or CORPUS, raising=False)
    moment = run("--dataset", "world", "--layers", "1", "--sample_size", "10", "--data_dir", "there")[1]
    assert moment.identity["corpus_name"] == CORPUS
    assert folders == ["there"]


def test_max_keys(run):
    assert run("--dataset", CORPUS, "--layers", "1", "--max_keys", "512")[1].count == 512


def test_published_statistics_are_downloaded(run, tmp_path, server):
    folder, name = MODEL.replace("/", "_"), "transformer.h.2.mlp.c_proj_float32_mom2_100000.npz"
    with open(tmp_path / "file.npz", "wb") as file:
        arrays = {"mom2.constructor": "c", "mom2.count": 7, "mom2.mom2": 7 * np.eye(256, dtype="f4"), "sample_size": 100000}
        np.savez(file, **arrays)
    url = f"https://memit.baulab.info/data/stats/{folder}/wikipedia_stats/{name}"
    server.files[url] = (tmp_path / "file.npz").read_bytes()
    with pytest.warns(UserWarning, match="can't be checked"):
        moment = run("--layers", "2")[2]
    assert server.urls == [url] and moment.count == 7 and torch.equal(moment.matrix, torch.eye(256))
    assert (tmp_path / "stats" / folder / "wikipedia_stats" / name).exists()


def test_without_published_statistics_they_are_collected(run, server, monkeypatch, capsys):
    monkeypatch.setattr(covariance.Corpus, "texts", lambda self: ["Paris is a city.", "So is Rome."] * 20)
    with pytest.warns(UserWarning, match="40 documents"):
        moments = run("--layers", "1,2")
    assert len(moments) == 2 and len(server.urls) == 1  # one refusal is enough
    assert "no published statistics, collecting them: transformer.h.1" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [
    ("--download", "0"), ("--batch_tokens", "40"), ("--max_keys", "60"), ("--force",), ("--dataset", CORPUS),
])
def test_nothing_is_asked_of_the_server_that_it_can_not_have(run, server, monkeypatch, flags):
    monkeypatch.setattr(covariance.Corpus, "texts", lambda self: ["Paris is a city.", "So is Rome."] * 20)
    run("--layers", "1", "--sample_size", "30", *flags)
    assert server.urls == []


@pytest.mark.parametrize("flags, message", [
    (("--to_collect", "mom2,mom3"), "--to_collect 'mom3' is not known: give mom2, mean, norm_mean"),
    (("--layers", "1;2", "--dataset", CORPUS), "--layers '1;2': give a comma list"),
    (("--layers", "5-3", "--dataset", CORPUS), "--layers '5-3': give a comma list"),
    (("--layers", "9", "--dataset", CORPUS), "layer 9 does not exist: the model has layers 0 to 5"),
    (("--dataset", "wikitxt"), "did you mean 'wikitext'"),
    (("--alg_name", "FT", "--hparams_fname", "gpt2-xl_constr.json"), "FT uses no statistics"),
    (("--alg_name", "MEMTI", "--hparams_fname", "gpt2-xl.json"), "did you mean 'MEMIT'"),
    (("--hparams_fname", "gpt2-xxl.json"), "no such hparams file"),
])
def test_mistakes_are_named(run, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        run(*flags)
    assert not (tmp_path / "stats").exists()


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    flags = ["--model_name", MODEL, "--dataset", str(tmp_path / "none.jsonl")]
    command, environment = [sys.executable, "-m", "experiments.collect_stats", *flags], {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: corpus {tmp_path}/none.jsonl: no such file\n"
