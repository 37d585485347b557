"""AlphaEdit equals the published code over two sequential batches, and keeps off what it must keep off."""

import json

import numpy as np
import pytest
import torch

import editors
from editors.core import covariance
from editors.core.decoder import Decoder
from editors.sequence import EditSequence
from tests.conftest import GOLDEN, golden_models, relative


def cases():
    for name in golden_models("deltas_alphaedit"):
        for case in json.loads((GOLDEN / f"deltas_alphaedit_{name}.json").read_text())["cases"]:
            yield pytest.param(name, case, id=f"{name}-{case}")


@pytest.fixture(scope="module", autouse=True)
def stats_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KE_STATS_DIR", str(tmp_path_factory.mktemp("stats")))
        yield


def hparams_of(about, name):
    return about["hparams"] | {
        "mom2_dataset": str(GOLDEN / "corpus.jsonl"), "mom2_dtype": "float64" if name.endswith("_f64") else "float32",
    }


@pytest.mark.filterwarnings("ignore:.*without effect", "ignore:the corpus has 312 documents")
@pytest.mark.parametrize("solve", ["symmetric", "published"])
@pytest.mark.parametrize("name, case", list(cases()))
def test_two_batches_equal_published(golden_model, name, case, solve):
    about = json.loads((GOLDEN / f"deltas_alphaedit_{name}.json").read_text())
    arrays = np.load(GOLDEN / f"deltas_alphaedit_{name}.npz", allow_pickle=False)
    model, tok = golden_model(name)
    requests = json.loads((GOLDEN / "requests.json").read_text())
    editor = editors.load("AlphaEdit", hparams_of(about["cases"][case], name) | {"solve": solve})
    sequence = EditSequence(editor, model, tok, about["templates"], progress=False)
    originals = {n: p.detach().clone() for n, p in model.named_parameters()}
    for batch in (0, 1):
        edit = sequence.edit(requests[5 * batch : 5 * batch + 5])
        assert [edit.info["statistics"][layer]["null_space"] for layer in "123"] == about["cases"][case]["null_dims"]
        for key in arrays.files:
            if key.startswith(f"{case}/batch{batch}/delta/"):
                parameter = key.rsplit("/", 1)[1]
                delta = model.get_parameter(parameter).detach() - originals[parameter]
                assert relative(delta, arrays[key]) < 1e-3, key  # the published solve is in float32, also in the _f64 file
    sequence.revert()
    assert all(torch.equal(p, originals[n]) for n, p in model.named_parameters())


@pytest.mark.filterwarnings("ignore:.*without effect", "ignore:the corpus has 312 documents")
def test_preserved_directions_stay(golden_model):
    """The update vanishes on every direction whose eigenvalue is at or above the threshold."""
    model, tok = golden_model("tiny-gpt2_f64")
    about = json.loads((GOLDEN / "deltas_alphaedit_tiny-gpt2_f64.json").read_text())["cases"]["default_l2"]
    editor = editors.load("AlphaEdit", hparams_of(about, "tiny-gpt2_f64"))
    edit = editor.edit(model, tok, json.loads((GOLDEN / "requests.json").read_text())[:3], progress=False)
    hp = editor.hparams
    moments = covariance.collect(
        Decoder.of(model, tok), hp.layers, covariance.MomentSpec(hp.mom2_dataset, hp.mom2_n_samples, hp.mom2_dtype))
    for layer, delta in zip(hp.layers, edit.deltas().values()):  # Conv1D: [d_in, d_out]
        values, vectors = torch.linalg.eigh(moments[layer].matrix.double())
        preserved = vectors[:, values >= hp.nullspace_threshold]
        assert preserved.shape[1] > 100
        assert (preserved.T @ delta.double()).norm() < 1e-9 * delta.norm() < 1


@pytest.mark.filterwarnings("ignore:.*without effect", "ignore:the corpus has 312 documents")
def test_relative_threshold(golden_model):
    """Measured in mean eigenvalues, the threshold means the same whatever the keys' scale."""
    model, tok = golden_model("tiny-gpt2_f64")
    about = json.loads((GOLDEN / "deltas_alphaedit_tiny-gpt2_f64.json").read_text())["cases"]["default_l2"]
    hp = hparams_of(about, "tiny-gpt2_f64") | {"nullspace_threshold": 0.5, "nullspace_relative": True}
    requests = json.loads((GOLDEN / "requests.json").read_text())[:1]
    edit = editors.load("AlphaEdit", hp).edit(model, tok, requests, progress=False)
    moments = covariance.collect(
        Decoder.of(model, tok), hp["layers"], covariance.MomentSpec(hp["mom2_dataset"], hp["mom2_n_samples"], "float64"))
    for layer, moment in moments.items():
        values = torch.linalg.eigvalsh(moment.matrix)
        assert edit.info["statistics"][str(layer)]["null_space"] == int((values < 0.5 * values.mean()).sum()) < len(values)
