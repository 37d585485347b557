"""Cached target states: found again for the same question, and never for another one."""

import copy
import os
from types import SimpleNamespace

import pytest
import torch

from common.errors import UserError
from editors.core import value_cache
from editors.core.decoder import Decoder
from editors.core.prompts import Request
from editors.core.sites import find_sites
from editors.core.value_cache import SETTINGS, cached_optimise
from editors.core.values import Values, ValueSettings
from tests.models import WIDTH, tiny_model, tiny_tokenizer

REQUESTS = [Request("{} lives in", "Orla Venn", " Lutmere"), Request("{} works as a", "Zoë", " clockmaker")]
TEMPLATES = ["{}", "The ferry was late. {}"]
HPARAMS = dict(
    fact_token="subject_last", v_num_grad_steps=3, v_lr=0.5, v_loss_layer=None, v_weight_decay=0.5, clamp_norm_factor=0.75,
    kl_factor=0.0625, kl_prompt="{} is a", target_tokens="ids", end_of_text=False,
)


@pytest.fixture
def sought(monkeypatch):
    """Requests that were optimised, in order; the results are random."""
    optimised = []

    def optimise(decoder, requests, **arguments):
        optimised.extend(requests)
        return Values(torch.randn(len(requests), WIDTH), torch.randn(len(requests), WIDTH))

    monkeypatch.setattr(value_cache, "optimise", optimise)
    return optimised


def question(**changes):
    """Arguments of cached_optimise without the folder."""
    model = changes.pop("model", None) or tiny_model("gpt2")
    hparams = {key: changes.pop(key) for key in HPARAMS if key in changes}
    decoder = Decoder(model, changes.pop("tok", None) or tiny_tokenizer(), changes.pop("sites", None) or find_sites(model))
    return dict(
        decoder=decoder, requests=REQUESTS[:1], layer=1, settings=SimpleNamespace(**HPARAMS | hparams), templates=TEMPLATES,
        site="block", progress=False,
    ) | changes


def edited():
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[3].mlp.c_proj.weight[5, 7] += 1e-3
    return model


CHANGES = {
    "edited model": lambda: {"model": edited()},
    "dtype": lambda: {"model": tiny_model("gpt2").double()},
    "tokenizer": lambda: {"tok": tiny_tokenizer("byte_level_bos")},
    "prompt": lambda: {"requests": [Request("{} lives in ", "Orla Venn", " Lutmere")]},
    "subject": lambda: {"requests": [Request("{} lives in", "Orla", " Lutmere")]},
    "target": lambda: {"requests": [Request("{} lives in", "Orla Venn", " Nyvian")]},
    "templates": lambda: {"templates": ["{}", "Rain fell. {}"]},
    "order of templates": lambda: {"templates": TEMPLATES[::-1]},
    "number of templates": lambda: {"templates": TEMPLATES[:1]},
    "layer": lambda: {"layer": 2},
    "site": lambda: {"site": "down_proj"},
    "fact_token": lambda: {"fact_token": "last"},
    "v_num_grad_steps": lambda: {"v_num_grad_steps": 4},
    "v_lr": lambda: {"v_lr": 0.4},
    "v_loss_layer": lambda: {"v_loss_layer": 2},
    "v_weight_decay": lambda: {"v_weight_decay": 0.4},
    "clamp_norm_factor": lambda: {"clamp_norm_factor": 1.0},
    "end_of_text": lambda: {"end_of_text": True},
    "kl_factor": lambda: {"kl_factor": 0.0},
    "target_tokens": lambda: {"target_tokens": "text"},
    "kl_prompt": lambda: {"kl_prompt": "{} és"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_result_changes_the_key(sought, tmp_path, change):
    first = cached_optimise(**question(), folder=tmp_path)
    other = cached_optimise(**question(**CHANGES[change]()), folder=tmp_path)
    assert len(sought) == 2 and not torch.equal(first.target, other.target)
    again = cached_optimise(**question(**CHANGES[change]()), folder=tmp_path)
    assert len(sought) == 2 and torch.equal(again.initial, other.initial) and torch.equal(again.delta, other.delta)


def test_every_setting_that_the_optimisation_reads_is_in_the_key():
    assert set(SETTINGS) == set(ValueSettings.__annotations__) == set(HPARAMS)


@pytest.mark.parametrize("same", [
    {"requests": [Request("{} lives in", "Orla Venn", " Lutmere", case_id=7, target_true="Rome")]},
    {"tok": copy.deepcopy(tiny_tokenizer())},
    {"progress": True},
])
def test_what_does_not_change_the_result_finds_it(sought, tmp_path, same):
    first = cached_optimise(**question(), folder=tmp_path)
    assert torch.equal(cached_optimise(**question(**same), folder=tmp_path).target, first.target) and len(sought) == 1


def test_a_batch_is_read_whole_or_sought_whole(sought, tmp_path):
    """Which requests run together decides the last digits: after a kill in the midst of writing all are sought again."""
    both = cached_optimise(**question(requests=REQUESTS), folder=tmp_path)
    again = cached_optimise(**question(requests=REQUESTS), folder=tmp_path)
    assert sought == REQUESTS and torch.equal(both.target, again.target)
    next(tmp_path.iterdir()).unlink()
    cached_optimise(**question(requests=REQUESTS), folder=tmp_path)
    assert sought == REQUESTS * 2


def test_without_a_folder_nothing_is_kept(sought, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cached_optimise(**question()), cached_optimise(**question())
    assert len(sought) == 2 and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named_before_the_work(sought, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="file/z: target states can't be written there .* choose another folder"):
        cached_optimise(**question(), folder=tmp_path / "file" / "z")
    assert not sought


def test_files_have_the_permissions_of_new_files_and_no_company(sought, tmp_path):
    before = os.umask(0o027)
    try:
        cached_optimise(**question(), folder=tmp_path / "z")
    finally:
        os.umask(before)
    (path,) = (tmp_path / "z").iterdir()
    assert path.suffix == ".safetensors" and path.stat().st_mode & 0o777 == 0o640


def test_a_damaged_file_is_named_and_made_again(sought, tmp_path):
    cached_optimise(**question(), folder=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-10], whole[:-1] + bytes([whole[-1] ^ 64])):
        path.write_bytes(damaged)
        sought.clear()
        with pytest.warns(UserWarning, match=f"{path.name}: truncated or damaged.*: it is found anew$"):
            again = cached_optimise(**question(), folder=tmp_path)
        assert sought and torch.equal(cached_optimise(**question(), folder=tmp_path).delta, again.delta) and len(sought) == 1
