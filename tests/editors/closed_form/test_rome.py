"""ROME's theorem, for both meanings of the key, and on every architecture."""

import pytest
import torch

import editors
import editors.closed_form.rome as rome
from editors.core.decoder import Decoder
from editors.core.keys import layer_io
from editors.core.prompts import parse_requests
from editors.core.modules import get_module
from editors.core.sites import find_sites
from tests.conftest import relative
from tests.editors.test_contract import HPARAMS, REQUESTS
from tests.models import ARCHITECTURES, tiny_model

TEMPLATES = ["{}", "The ferry was late. {}", "Rain fell. {}"]


@pytest.fixture(autouse=True)
def _stats(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KE_STATS_DIR", str(tmp_path_factory.getbasetemp() / "contract_stats"))


def key_and_value(model, tok, hparams, monkeypatch):
    """(what the edited weight makes of the key, the value that was sought)."""
    recorded = {}
    original = rome.cached_optimise
    monkeypatch.setattr(rome, "cached_optimise", lambda *a, **k: recorded.setdefault("values", original(*a, **k)))
    edit = editors.load("ROME", hparams).edit(model, tok, REQUESTS[:1], context_templates=TEMPLATES)
    sites, request, layer = find_sites(model), parse_requests(REQUESTS[:1], tok)[0], hparams["layers"][0]
    inputs, _ = layer_io(Decoder(model, tok, sites), request, layer, [TEMPLATES], "subject_last")
    key = inputs[0] if hparams["key"] == "legacy" else inputs.mean(0)
    with edit.applied(model), torch.no_grad():
        mapped = get_module(model, sites.name("down_proj", layer))(key[None])[0]
    return mapped, recorded["values"].target[0]


@pytest.mark.parametrize("key", ["legacy", "consistent"])
def test_edited_weight_maps_key_onto_value(tiny_gpt2, key, monkeypatch):
    """W'k = v for the bare prompt's key (legacy) or the averaged one (consistent)."""
    mapped, value = key_and_value(*tiny_gpt2, HPARAMS["ROME"] | {"key": key}, monkeypatch)
    assert relative(mapped, value) < 1e-5


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_theorem_on_every_architecture(arch, tiny_gpt2, monkeypatch):
    """The same with derived module templates, either orientation of the weight, and BLOOM's residual inside the MLP."""
    model, tok = tiny_model(arch, vocab_size=len(tiny_gpt2[1])), tiny_gpt2[1]
    hparams = HPARAMS["ROME"] | {"key": "legacy", "layers": [1], "mom2_adjustment": False}
    mapped, value = key_and_value(model, tok, hparams, monkeypatch)
    assert relative(mapped, value) < 1e-4
