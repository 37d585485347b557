"""Second moments: equal to the published ones and to their definition, whatever the batching, the kills and the files."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from common.tensor_files import read_tensors
from editors.core import covariance, key_sums, moment_store
from editors.core.covariance import MomentSpec
from editors.core.decoder import Decoder
from editors.core.kept import kept
from editors.core.key_sums import KeySums, batches
from editors.core.moment import IDENTITY, spectrum
from editors.core.modules import get_module
from editors.core.sites import find_sites
from tests.conftest import GOLDEN, ROOT, golden_models, load_tiny, relative
from tests.models import ARCHITECTURES, tiny_model

CORPUS = str(GOLDEN / "corpus.jsonl")
WORDS = 200


@pytest.fixture
def gpt2():
    """A model of the test's own: caches are kept by model."""
    return load_tiny("tiny-gpt2")


def collect(model, tok, layers, dataset, n_samples, dtype="float32", batch_tokens=None, max_keys=None, **options):
    """`covariance.collect` of this model and these texts."""
    spec = MomentSpec(dataset, n_samples, dtype, batch_tokens, max_keys)
    return covariance.collect(Decoder.of(model, tok), layers, spec, **options)


def word_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """"w7" is token 7; with `bos`, token 1 is put in front of every text."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        words.post_processor = processors.TemplateProcessing(single="w1 $A", special_tokens=[("w1", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")


def word_corpus(path, lengths, seed=0) -> str:
    rng = np.random.default_rng(seed)
    texts = [" ".join(f"w{i}" for i in rng.integers(3, WORDS, n)) for n in lengths]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def direct(model, tok, texts, layers, max_length):
    """{layer: keys of all tokens} by the definition: whole model, one text at a time, no padding."""
    sites, keys = find_sites(model), {layer: [] for layer in layers}
    handles = [
        get_module(model, sites.name("down_proj", layer)).register_forward_pre_hook(
            lambda module, args, layer=layer: keys[layer].append(args[0].reshape(-1, args[0].shape[-1]).double()))
        for layer in layers
    ]
    with torch.no_grad():
        for text in texts:
            ids = tok(text)["input_ids"][:max_length]
            if ids:
                model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return {layer: torch.cat(part) for layer, part in keys.items()}


# ---------------------------------------------------------------------------------------------- the numbers


TOLERANCES = {"tiny-gpt2": 1e-6, "tiny-gptj": 1e-6, "tiny-gpt2_f64": 1e-12, "tiny-gptj_f64": 1e-7}


@pytest.mark.parametrize("name, tolerance", [(name, TOLERANCES[name]) for name in golden_models("stats")])
def test_published_statistics(name, tolerance, tmp_path):
    dtype = "float64" if name.endswith("f64") else "float32"
    model, tok = load_tiny(name.removesuffix("_f64"), getattr(torch, dtype))
    with np.load(GOLDEN / f"stats_{name}.npz") as theirs:
        runs = ("all", "all", None, range(6)), ("n100", 100, None, [2]), ("bt40", "all", 40, [2])
        for run, n_samples, crop, layers in runs:
            if f"{run}/mom2_layer2" not in theirs:
                continue
            ours = collect(model, tok, layers, CORPUS, n_samples, dtype, stats_dir=tmp_path, batch_tokens=crop, progress=False)
            for layer, moment in ours.items():
                assert moment.count == theirs[f"{run}/count_layer{layer}"] == {"all": 5055, "n100": 1560, "bt40": 4610}[run]
                assert relative(moment.matrix, theirs[f"{run}/mom2_layer{layer}"]) < tolerance
                assert moment.matrix.dtype == getattr(torch, dtype)
                if run == "all":
                    assert relative(moment.mean, theirs[f"all/mean_layer{layer}"]) < tolerance
                    assert relative(moment.norm_mean, theirs[f"all/norm_mean_layer{layer}"]) < tolerance


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_moment_is_the_mean_of_k_kt_over_all_tokens(arch, tmp_path):
    # Lengths that need padding, cropping (more than the context), a text of one token, and one of none but bos.
    model, tok = tiny_model(arch), word_tokenizer(bos=True)
    corpus = word_corpus(tmp_path / "c.jsonl", [5, 150, 0, 1, 40, 17])
    texts = [json.loads(line)["text"] for line in open(corpus)]
    # The others' contexts are longer than the texts, or not limited.
    longest = 2048 if arch in ("falcon", "falcon_new", "bloom") else 128
    keys = direct(model, tok, texts, [1, 2], max_length=longest)
    moments = collect(model, tok, [2, 1], corpus, "all", stats_dir=tmp_path, pack_tokens=200, progress=False)
    assert list(moments) == [2, 1]
    for layer, moment in moments.items():
        layer_keys = keys[layer]
        assert moment.count == len(layer_keys) == 6 + min(151, longest) + 1 + 2 + 41 + 18
        assert relative(moment.matrix, layer_keys.T @ layer_keys / len(layer_keys)) < 2e-6
        assert relative(moment.mean, layer_keys.mean(0)) < 2e-6
        assert moment.norm_mean == pytest.approx(layer_keys.norm(dim=1).mean().item(), rel=1e-5)


def test_start_of_each_text_is_read_whatever_the_tokenizer_truncates(gpt2, tmp_path):
    model, tok = gpt2
    moment = collect(model, tok, [2], CORPUS, "all", stats_dir=tmp_path, batch_tokens=40, progress=False)[2]
    tok.truncation_side = "left"
    again = collect(model, tok, [2], CORPUS, "all", stats_dir=tmp_path, batch_tokens=40, progress=False, force=True)[2]
    assert tok.truncation_side == "left"
    assert torch.equal(moment.matrix, again.matrix)


def test_packing_changes_rounding_only(gpt2, tmp_path):
    model, tok = gpt2
    one, many = (
        collect(model, tok, [3], CORPUS, 60, stats_dir=tmp_path / str(n), pack_tokens=n, progress=False)[3] for n in (1, 5000)
    )
    assert one.count == many.count
    assert relative(one.matrix, many.matrix) < 1e-6


@pytest.mark.parametrize("d_in", [5, 256, 300, 2100])
def test_sums_of_a_width_that_blocks_do_not_divide(d_in):
    keys = torch.randn(50, d_in, generator=torch.Generator().manual_seed(0))
    sums = KeySums(d_in, torch.float64, keys.device)
    sums.add(keys[:20])
    assert torch.equal(sums.tensors()["mom2"], sums.tensors()["mom2"])
    sums.add(keys[20:])
    tensors, keys = sums.tensors(), keys.double()
    assert torch.equal(tensors["mom2"], tensors["mom2"].T)
    assert relative(tensors["mom2"], keys.T @ keys) < 1e-14
    assert relative(tensors["key_sum"], keys.sum(0)) < 1e-14
    assert relative(tensors["norm_sum"], keys.norm(dim=1).sum()) < 1e-14


def test_float16_rounds_keys_but_not_their_sums():
    keys = 200 * torch.rand(100, 8, generator=torch.Generator().manual_seed(0))
    sums = KeySums(8, torch.float16, keys.device)
    sums.add(keys)
    rounded = keys.half().double()
    mom2 = sums.tensors()["mom2"]
    assert mom2.dtype == torch.float32 and mom2.max() > torch.finfo(torch.float16).max
    assert relative(mom2, rounded.T @ rounded) < 1e-6 < relative(mom2, keys.double().T @ keys.double())


# ---------------------------------------------------------------------------------------------- the stream of texts


def test_max_keys_takes_the_first_tokens_in_document_order(gpt2, tmp_path):
    model, tok = gpt2
    texts = [json.loads(line)["text"] for line in open(CORPUS)]
    order = covariance.document_order(len(texts), "all")
    keys = direct(model, tok, [texts[i] for i in order[:60]], [2], max_length=128)[2]
    for most in (1, 500, 777):
        moment = collect(model, tok, [2], CORPUS, "all", stats_dir=tmp_path, max_keys=most, progress=False)[2]
        assert moment.count == most
        assert relative(moment.matrix, keys[:most].T @ keys[:most] / most) < 1e-6


def test_max_keys_beyond_the_corpus(gpt2, tmp_path):
    with pytest.warns(UserWarning, match="5055 tokens, fewer than the 6000 keys"):
        assert collect(*gpt2, [0], CORPUS, "all", stats_dir=tmp_path, max_keys=6000, progress=False)[0].count == 5055


@pytest.mark.parametrize("window, max_keys", [(7, None), (512, None), (7, 400), (3, 61)])
def test_batches_are_packed_and_can_be_entered_anywhere(window, max_keys, monkeypatch):
    monkeypatch.setattr(key_sums, "WINDOW", window)
    tok, lengths = word_tokenizer(), [3, 0, 30, 12, 12, 0, 1, 45, 20, 8, 9, 10, 11, 2, 2, 60, 33, 5, 0, 4]
    texts = [" ".join(["w5"] * n) for n in lengths]
    order = list(reversed(range(len(texts))))
    stream = list(batches(tok, texts, order, 50, 64, max_keys))
    tokens = sum(len(row) for batch in stream for row in batch.rows)
    assert tokens == min(max_keys or 10**9, sum(min(n, 50) for n in lengths))
    for batch in stream:
        assert all(batch.rows) and (len(batch.rows) == 1 or len(batch.rows[0]) * len(batch.rows) <= 64)
        assert [len(row) for row in batch.rows] == sorted(map(len, batch.rows), reverse=True)
    for i, batch in enumerate(stream):
        rest = batches(tok, texts, order, 50, 64, max_keys, window=batch.window, tokens_before=batch.tokens_before)
        assert list(rest) == stream[i - batch.index :]


def test_forward_stops_at_the_deepest_layer_and_leaves_the_model_alone(gpt2, tmp_path):
    model, tok = gpt2
    find_sites(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    ran = []
    handles = [
        model.transformer.h[layer].mlp.register_forward_hook(lambda *_, layer=layer: ran.append(layer)) for layer in range(6)
    ]
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    collect(model, tok, [1, 3], CORPUS, 20, stats_dir=tmp_path, progress=False)
    assert set(ran) == {0, 1, 2}  # layer 3 is left before its MLP is through
    for handle in handles:
        handle.remove()
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(before[name], p) and p.requires_grad for name, p in model.named_parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_layers_that_do_not_fit_into_memory_together_take_several_passes(gpt2, tmp_path, monkeypatch):
    model, tok = gpt2
    together = collect(model, tok, [0, 1, 2], CORPUS, 30, stats_dir=tmp_path / "a", pack_tokens=500, progress=False)
    passes = []
    run = covariance._Pass.run
    monkeypatch.setattr(covariance._Pass, "run", lambda self, progress: (passes.append(list(self.sums)), run(self, progress)))
    monkeypatch.setattr("editors.core.budget.total_bytes", lambda device: 9 * 256 * 256 * 4)
    apart = collect(model, tok, [2, 1, 0], CORPUS, 30, stats_dir=tmp_path / "b", pack_tokens=500, progress=False)
    assert passes == [[0, 1], [2]]
    assert all(torch.equal(together[layer].matrix, apart[layer].matrix) for layer in range(3))


# ---------------------------------------------------------------------------------------------- caches and files


@pytest.fixture
def no_pass(monkeypatch):
    """From when it is called, statistics must come from a cache or a file."""
    def forbid():
        monkeypatch.setattr(covariance, "add_batch", lambda *_: pytest.fail("collected again"))
    return forbid


def only_file(folder: Path, suffix=".safetensors") -> Path:
    matches = list(folder.rglob(f"*{suffix}"))
    assert len(matches) == 1, matches
    return matches[0]


def test_files_give_the_same_bits_and_say_what_they_are_of(gpt2, tmp_path, no_pass):
    model, tok = gpt2
    first = collect(model, tok, [2], CORPUS, 40, stats_dir=tmp_path, progress=False)[2]
    no_pass()
    other, tok = load_tiny("tiny-gpt2")
    again = collect(other, tok, [2], CORPUS, 40, stats_dir=tmp_path, progress=False)[2]
    assert torch.equal(first.matrix, again.matrix) and torch.equal(first.mean, again.mean)
    assert (first.count, first.norm_mean, first.layer, first.identity) == (again.count, again.norm_mean, 2, again.identity)
    assert again.identity["module"] == "transformer.h.2.mlp.c_proj" and again.identity["n_samples"] == 40
    assert again.identity["corpus_name"] == CORPUS and again.identity["corpus"].startswith("sha256:")
    path = only_file(tmp_path)
    assert path.name == "transformer.h.2.mlp.c_proj_float32_mom2_40.safetensors"
    assert path.parent.parent.name == str(GOLDEN / "tiny-gpt2").replace("/", "_")


def test_only_missing_layers_are_collected(gpt2, tmp_path, monkeypatch):
    model, tok = gpt2
    collect(model, tok, [1, 2], CORPUS, 20, stats_dir=tmp_path, progress=False)
    collected_layers = []
    add_batch = covariance.add_batch
    monkeypatch.setattr(covariance, "add_batch", lambda *args: (collected_layers.append(set(args[1])), add_batch(*args)))
    assert set(collect(model, tok, [2, 3, 1], CORPUS, 20, stats_dir=tmp_path, progress=False)) == {1, 2, 3}
    assert collected_layers and all(layers == {3} for layers in collected_layers)


def test_an_edited_model_keeps_its_statistics_and_gets_no_new_ones(gpt2, tmp_path):
    model, tok = gpt2
    options = dict(stats_dir=tmp_path, progress=False)
    first = collect(model, tok, [2], CORPUS, 20, **options)[2]
    weight = model.transformer.h[1].mlp.c_proj.weight
    original = weight.detach().clone()
    with torch.no_grad():
        weight[0, ::2] += 1
    assert collect(model, tok, [2], CORPUS, 20, **options)[2] is first
    with pytest.raises(UserError, match=r"layers \[3\] have no statistics yet, and the model was changed"):
        collect(model, tok, [2, 3], CORPUS, 20, **options)
    with torch.no_grad():
        weight.copy_(original)
    assert collect(model, tok, [2, 3], CORPUS, 20, **options)[2] is first
    with torch.no_grad():
        weight[0, ::2] += 1
    forced = collect(model, tok, [2], CORPUS, 20, **options, force=True)[2]
    assert relative(forced.matrix, first.matrix) > 1e-3
    assert collect(model, tok, [2], CORPUS, 20, **options)[2] is forced


def test_statistics_of_another_model_are_refused(gpt2, tmp_path):
    model, tok = gpt2
    collect(model, tok, [2], CORPUS, 20, stats_dir=tmp_path, progress=False)
    other, _ = load_tiny("tiny-gpt2")
    with torch.no_grad():
        other.transformer.wte.weight[0, 0] += 1
    with pytest.raises(UserError, match=r"mom2_20.safetensors: statistics of another model \(weights is"):
        collect(other, tok, [2], CORPUS, 20, stats_dir=tmp_path, progress=False)


@pytest.mark.parametrize("field, value, kind", [
    ("layer", 3, "layer"), ("module", "transformer.h.2.mlp.c_fc", "module"), ("tokenizer", "0", "tokenizer"),
    ("corpus", "hub:a/b:c:train", "corpus"), ("n_samples", 21, "number of documents"), ("max_length", 64, "truncation"),
    ("dtype", "float64", "precision"), ("format", 99, "format"), ("model_dtype", "bfloat16", "model precision"),
])
def test_files_of_something_else_are_refused(gpt2, tmp_path, field, value, kind):
    model, tok = gpt2
    collect(model, tok, [2], CORPUS, 20, stats_dir=tmp_path, progress=False)
    path = only_file(tmp_path)
    header, tensors = read_tensors(path, "file")
    moment_store.save(path, tensors, {**header["identity"], field: value})
    with pytest.raises(UserError, match=rf"statistics of another {kind} \({field} is {value!r}") as caught:
        collect(load_tiny("tiny-gpt2")[0], tok, [2], CORPUS, 20, stats_dir=tmp_path, progress=False)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_precisions_and_crops_have_files_of_their_own(gpt2, tmp_path):
    model, tok = gpt2
    options = dict(stats_dir=tmp_path, progress=False)
    collect(model, tok, [2], CORPUS, 20, **options)
    collect(model, tok, [2], CORPUS, 20, "float64", **options)
    collect(model, tok, [2], CORPUS, 20, batch_tokens=40, **options)
    collect(model, tok, [2], CORPUS, 20, batch_tokens=4000, **options)  # crops nothing: the first file
    collect(model, tok, [2], CORPUS, "all", max_keys=50, **options)
    collect(load_tiny("tiny-gpt2", torch.float64)[0], tok, [2], CORPUS, 20, **options)
    start = "transformer.h.2.mlp.c_proj_"
    assert {path.name.removeprefix(start).removesuffix(".safetensors") for path in tmp_path.rglob("*.*") if path.is_file()} == {
        "float32_mom2_20", "float64_mom2_20", "float32_mom2_t40_20", "float32_mom2_keys50_all", "float32_mom2_20_float64-model",
    }


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "foreign", "no sums", "nan", "one bit"])
def test_damaged_files_are_named_and_collected_anew(gpt2, tmp_path, damage):
    model, tok = gpt2
    collect(model, tok, [2], CORPUS, 20, stats_dir=tmp_path, progress=False)
    path = only_file(tmp_path)
    whole = path.read_bytes()
    header, tensors = read_tensors(path, "file")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("no tensors here, but a text that is long enough")
    elif damage == "foreign":
        save_file({"weight": torch.ones(3)}, path)
    elif damage == "no sums":
        moment_store.save(path, {"key_sum": tensors["key_sum"]}, header["identity"])
    elif damage == "nan":
        tensors["mom2"][7, 7] = float("nan")
        moment_store.save(path, tensors, header["identity"])
    else:
        path.write_bytes(whole[:-999] + bytes([whole[-999] ^ 1]) + whole[-998:])
    with pytest.warns(UserWarning, match="collected anew") as caught:
        collect(load_tiny("tiny-gpt2")[0], tok, [2], CORPUS, 20, stats_dir=tmp_path, progress=False)
    message = str(caught[-1].message)
    assert message.startswith(str(path)) and "\n" not in message
    again = read_tensors(path, "file")[1]
    path.write_bytes(whole)
    assert all(torch.equal(again[name], tensor) for name, tensor in read_tensors(path, "file")[1].items())


def test_two_writers_of_one_file_do_not_spoil_it(tmp_path):
    path = tmp_path / "m.safetensors"
    identity = {field: 0 for field in IDENTITY} | {"count": 1, "layer": 0}
    moment_store.save(path, {"mom2": torch.zeros(8, 8), "key_sum": torch.zeros(8), "norm_sum": torch.zeros(())}, identity)

    def write(value: float):
        for _ in range(50):
            filled = {"mom2": torch.full((8, 8), value), "key_sum": torch.full((8,), value), "norm_sum": torch.tensor(value)}
            moment_store.save(path, filled, identity)

    writers = [threading.Thread(target=write, args=(value,)) for value in (1.0, 2.0)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        moment = moment_store.load(path, identity, d_in=8)
        assert len({*moment.matrix.flatten().tolist(), *moment.mean.tolist(), moment.norm_mean}) == 1
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------------------------------------- published files


def write_published(folder: Path, moment, name="transformer.h.2.mlp.c_proj_float32_mom2_40.npz", **changes):
    """A file as the published programs write it: the sum, not the mean, of k k^T."""
    arrays = {
        "mom2.constructor": np.array("util.runningstats.SecondMoment()"), "mom2.count": np.array(moment.count),
        "mom2.mom2": (moment.matrix * moment.count).numpy(), "sample_size": np.array(40),
    }
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / name, **{**arrays, **changes})
    return folder / name


@pytest.fixture
def published(gpt2, tmp_path):
    """(model, tok, moment of layer 2 over 40 texts, folder where a published file would be, empty)."""
    model, tok = gpt2
    moment = collect(model, tok, [2], CORPUS, 40, stats_dir=tmp_path, progress=False)[2]
    path = only_file(tmp_path)
    path.unlink()
    kept(model, "moments").clear()
    return model, tok, moment, path.parent


@pytest.mark.parametrize("kinds", ["mom2", "mean-mom2-norm_mean"])
def test_published_file_is_read(published, tmp_path, no_pass, kinds):
    model, tok, moment, folder = published
    path = write_published(folder, moment, name=f"transformer.h.2.mlp.c_proj_float32_{kinds}_40.npz")
    no_pass()
    with pytest.warns(UserWarning, match="which model and corpus they are of can't be checked"):
        loaded = collect(model, tok, [2], CORPUS, 40, stats_dir=tmp_path, progress=False)[2]
    assert relative(loaded.matrix, moment.matrix) < 1e-7 and loaded.count == moment.count and loaded.mean is None
    assert loaded.identity["weights"] == loaded.identity["corpus"] == "unknown" and loaded.identity["file"] == str(path)


def test_published_file_of_cropped_texts_has_braces_in_its_name(published, tmp_path, no_pass):
    model, tok, moment, folder = published
    write_published(folder, moment, name="transformer.h.2.mlp.c_proj_float32_mom2_t{batch_tokens}_40.npz")
    no_pass()
    with pytest.warns(UserWarning, match="can't be checked"):
        loaded = collect(model, tok, [2], CORPUS, 40, stats_dir=tmp_path, batch_tokens=40, progress=False)[2]
    assert loaded.count == moment.count


def test_own_file_is_preferred(published, tmp_path, no_pass):
    model, tok, moment, folder = published
    collect(model, tok, [2], CORPUS, 40, stats_dir=tmp_path, progress=False)
    write_published(folder, moment, **{"mom2.count": np.array(1)})
    no_pass()
    assert collect(load_tiny("tiny-gpt2")[0], tok, [2], CORPUS, 40, stats_dir=tmp_path, progress=False)[2].count == moment.count


@pytest.mark.parametrize("changes, message", [
    ({"sample_size": np.array(41)}, "statistics of 41 documents, wanted 40"),
    ({"mom2.mom2": np.eye(3)}, "keys of width 3, but the model's have 256"),
    ({"mom2.mom2": np.array([{"an": "object"}])}, "not readable as published statistics"),
    ({"mom2.count": np.array(0)}, "statistics over 0 tokens"),
])
def test_bad_published_files_are_named(published, tmp_path, changes, message):
    model, tok, moment, folder = published
    path = write_published(folder, moment, **changes)
    with pytest.raises(UserError, match=message) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they can't be checked
        collect(model, tok, [2], CORPUS, 40, stats_dir=tmp_path, progress=False)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_published_file_is_named(published, tmp_path):
    model, tok, moment, folder = published
    path = write_published(folder, moment)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UserError, match="not readable as published statistics"):
        collect(model, tok, [2], CORPUS, 40, stats_dir=tmp_path, progress=False)


# ---------------------------------------------------------------------------------------------- kills


class Killed(Exception):
    pass


@pytest.fixture
def often(monkeypatch):
    """A snapshot after each batch, which is a segment by itself, and more than one window."""
    monkeypatch.setattr(covariance, "SEGMENT", 1)
    monkeypatch.setattr(covariance, "SNAPSHOT_SECONDS", 0.0)
    monkeypatch.setattr(covariance, "SNAPSHOT_SHARE", float("inf"))
    monkeypatch.setattr(key_sums, "WINDOW", 25)


def kill_after(monkeypatch, number: int) -> list:
    """add_batch fails after `number` calls; returns the list of calls."""
    add_batch, calls = key_sums.add_batch, []

    def add(*args):
        if len(calls) == number:
            raise Killed
        calls.append(args)
        add_batch(*args)

    monkeypatch.setattr(covariance, "add_batch", add)
    return calls


@pytest.mark.parametrize("options", [{}, {"max_keys": 700}])
def test_killed_anywhere_the_result_has_the_same_bits(tmp_path, often, monkeypatch, options):
    corpus, tok, model = word_corpus(tmp_path / "c.jsonl", [30, 5, 60, 0, 12, 33] * 11), word_tokenizer(), tiny_model("llama")
    options = dict(progress=False, pack_tokens=150, force=True, **options)
    calls = kill_after(monkeypatch, -1)
    whole = collect(model, tok, [1, 2], corpus, "all", stats_dir=tmp_path / "whole", **options)
    total = len(calls)
    assert total > 6
    for number in range(1, total):
        kill_after(monkeypatch, number)
        with pytest.raises(Killed):
            collect(model, tok, [1, 2], corpus, "all", stats_dir=tmp_path / "killed", **options)
        assert only_file(tmp_path / "killed").name.startswith("unfinished")
        # Another packing is asked for, but the one of the snapshot is kept.
        calls = kill_after(monkeypatch, -1)
        again = collect(model, tok, [1, 2], corpus, "all", stats_dir=tmp_path / "killed", **{**options, "pack_tokens": 90})
        assert len(calls) == total - number
        for layer in (1, 2):
            assert torch.equal(whole[layer].matrix, again[layer].matrix) and whole[layer].count == again[layer].count
            assert whole[layer].norm_mean == again[layer].norm_mean and torch.equal(whole[layer].mean, again[layer].mean)
        for path in (tmp_path / "killed").rglob("*.safetensors"):
            assert not path.name.startswith("unfinished")
            path.unlink()


def test_a_snapshot_is_for_the_same_question_only(gpt2, tmp_path, often, monkeypatch):
    model, tok = gpt2
    kill_after(monkeypatch, 2)
    with pytest.raises(Killed):
        collect(model, tok, [2], CORPUS, "all", stats_dir=tmp_path, pack_tokens=300, progress=False)
    snapshot = only_file(tmp_path)
    monkeypatch.setattr(covariance, "add_batch", key_sums.add_batch)
    other = collect(model, tok, [3], CORPUS, "all", stats_dir=tmp_path, pack_tokens=300, progress=False)[3]
    assert other.count == 5055 and snapshot.exists()
    calls = kill_after(monkeypatch, -1)
    anew = collect(model, tok, [2], CORPUS, "all", stats_dir=tmp_path, pack_tokens=300, progress=False, resume=False)[2]
    assert sum(len(row) for args in calls for row in args[2]) == anew.count == 5055
    assert not snapshot.exists()


def test_a_damaged_snapshot_is_named(gpt2, tmp_path, often, monkeypatch):
    model, tok = gpt2
    kill_after(monkeypatch, 2)
    with pytest.raises(Killed):
        collect(model, tok, [2], CORPUS, 60, stats_dir=tmp_path, progress=False)
    snapshot = only_file(tmp_path)
    snapshot.write_bytes(snapshot.read_bytes()[:500])
    kill_after(monkeypatch, -1)
    with pytest.warns(UserWarning, match="unfinished.*truncated or damaged.*begins anew"):
        moment = collect(model, tok, [2], CORPUS, 60, stats_dir=tmp_path, progress=False)[2]
    anew = collect(load_tiny("tiny-gpt2")[0], tok, [2], CORPUS, 60, stats_dir=tmp_path / "other", progress=False)[2]
    assert torch.equal(moment.matrix, anew.matrix) and not snapshot.exists()


def test_sigkill(gpt2, tmp_path):
    program = f"""
import time, torch
from editors.core import covariance, key_sums
from editors.core.decoder import Decoder
from tests.conftest import load_tiny
torch.set_num_threads({torch.get_num_threads()})
covariance.SNAPSHOT_SECONDS, covariance.SNAPSHOT_SHARE = 0.0, float("inf")
add_batch = covariance.add_batch
covariance.add_batch = lambda *args: (time.sleep(0.2), add_batch(*args))
spec = covariance.MomentSpec({CORPUS!r}, "all")
covariance.collect(Decoder.of(*load_tiny("tiny-gpt2")), [1, 2], spec, stats_dir={str(tmp_path)!r}, pack_tokens=256)
"""
    model, tok = gpt2
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list(tmp_path.rglob("unfinished-*")):
        assert process.poll() is None, "the program ended before its first snapshot"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    options = dict(pack_tokens=256, progress=False)
    undisturbed = collect(model, tok, [1, 2], CORPUS, "all", stats_dir=tmp_path / "undisturbed", **options)
    continued = collect(model, tok, [1, 2], CORPUS, "all", stats_dir=tmp_path, **options)
    assert all(torch.equal(undisturbed[layer].matrix, continued[layer].matrix) for layer in (1, 2))


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("arguments, message", [
    ({"n_samples": 0}, "n_samples is 0"),
    ({"n_samples": "many"}, "n_samples is 'many'"),
    ({"n_samples": None}, "n_samples is missing"),
    ({"n_samples": True}, "n_samples is True"),
    ({"batch_tokens": 0}, "batch_tokens is 0"),
    ({"max_keys": 2.5}, "max_keys is 2.5"),
    ({"pack_tokens": -1}, "pack_tokens is -1"),
    ({"dtype": "float8"}, "precision 'float8' of statistics is not known: give float32, float64, float16"),
    ({"layers": [6]}, "layer 6 does not exist: the model has layers 0 to 5"),
    ({"dataset": "wikipdia"}, "did you mean 'wikipedia'"),
])
def test_mistakes_are_named(tiny_gpt2, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        collect(*tiny_gpt2, **{"layers": [2], "dataset": CORPUS, "n_samples": 10, "stats_dir": tmp_path, **arguments})
    assert not list(tmp_path.rglob("*.*"))


def test_corpus_without_tokens(tiny_gpt2, tmp_path):
    corpus = word_corpus(tmp_path / "c.jsonl", [0, 0])
    with pytest.raises(UserError, match="its texts hold no tokens"):
        collect(*tiny_gpt2, [2], corpus, "all", stats_dir=tmp_path / "stats", progress=False)


def test_place_that_can_not_be_written_is_named_before_the_work(tiny_gpt2, tmp_path, no_pass):
    (tmp_path / "file").write_text("not a folder")
    no_pass()
    with pytest.raises(UserError, match="statistics can't be written there .* choose another folder"):
        collect(*tiny_gpt2, [2], CORPUS, 10, stats_dir=tmp_path / "file" / "stats", progress=False)


def test_keys_that_are_not_numbers_leave_no_file(gpt2, tmp_path):
    model, tok = gpt2
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.bias[0] = float("nan")
    with pytest.raises(UserError, match="hold NaN or infinity"):
        sites = find_sites(load_tiny("tiny-gpt2")[0])
        covariance.collect(Decoder(model, tok, sites), [1], MomentSpec(CORPUS, 10), stats_dir=tmp_path, progress=False)
    assert not list(tmp_path.rglob("*mom2*"))


def test_unreachable_corpus_says_where_to_put_statistics(tiny_gpt2, tmp_path, monkeypatch):
    def unreachable(self):
        raise UserError("corpus wikipedia: did not load")

    monkeypatch.setattr(covariance.Corpus, "texts", unreachable)
    with pytest.raises(UserError, match="or put statistics .*/wikipedia_stats/transformer.h.2.mlp.c_proj_float32_mom2_100"):
        collect(*tiny_gpt2, [2], "wikipedia", 100_000, stats_dir=tmp_path, progress=False)


def test_default_folder(monkeypatch):
    monkeypatch.setenv("KE_STATS_DIR", "/stats")
    assert covariance.stats_folder() == Path("/stats")
    monkeypatch.delenv("KE_STATS_DIR")
    monkeypatch.setenv("KE_DATA_DIR", "/data")
    assert covariance.stats_folder() == Path("/data/stats")
    monkeypatch.delenv("KE_DATA_DIR")
    assert covariance.stats_folder() == Path.home() / ".cache/knowledge-editing/stats"


@pytest.mark.parametrize("count, rank", [(100, 100), (2560, 256)])
def test_rank_and_condition_as_far_as_float32_tells(count, rank):
    """Also of keys that are a thousand times longer in some directions than in others, as those of real models are."""
    keys = torch.randn(count, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -3, 256)
    measured = spectrum(keys.T @ keys / count)
    assert measured["rank"] == pytest.approx(rank, abs=2) and measured["rank"] <= rank
    if rank == 256:
        exact = torch.linalg.svdvals(keys.double())
        assert measured["condition"] == pytest.approx(float((exact[0] / exact[-1]) ** 2), rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("arch", ["gemma2", "gemma3", "mistral"])
def test_padding_that_sees_nothing_leaves_the_sums_alone(arch, dtype, tmp_path, monkeypatch):
    """Eager attention makes NaN of a position whose window holds padding alone."""
    monkeypatch.setenv("KE_STATS_DIR", str(tmp_path))
    model, tok = tiny_model(arch).to(dtype), word_tokenizer()
    corpus = word_corpus(tmp_path / "corpus.jsonl", [60, 2, 31, 5, 1])
    moments = collect(model, tok, [0, 2, 3], corpus, 5, dtype="float64", pack_tokens=400)
    texts = [json.loads(line)["text"] for line in open(corpus)]
    for layer, keys in direct(model, tok, texts, [0, 2, 3], 128).items():
        error = relative(moments[layer].matrix, keys.T @ keys / len(keys))
        assert error < (1e-6 if dtype == torch.float64 else 1e-2)  # the models take softmax in float32


def test_rank_is_at_most_the_number_of_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("KE_STATS_DIR", str(tmp_path))
    moment = collect(tiny_model("llama"), word_tokenizer(), [1], word_corpus(tmp_path / "corpus.jsonl", [5]), 1)[1]
    assert moment.count == 5 and moment.rank <= 5 and moment.noted_rank <= 5
    with pytest.raises(UserError, match=r"rank [1-5] of 56 after 5 keys"):
        moment.factor()


def test_snapshots_of_finished_collections_are_swept(gpt2, tmp_path, often, monkeypatch):
    """A kill between the last layer's file and the end; not while the process lives that wrote them."""
    model, tok = gpt2
    kill_after(monkeypatch, 2)
    with pytest.raises(Killed):
        collect(model, tok, [2, 3], CORPUS, 60, stats_dir=tmp_path, progress=False)
    snapshot = only_file(tmp_path)
    content = snapshot.read_bytes()
    kill_after(monkeypatch, -1)
    collect(load_tiny("tiny-gpt2")[0], tok, [2, 3], CORPUS, 60, stats_dir=tmp_path, progress=False)
    assert not snapshot.exists()
    snapshot.write_bytes(content)
    collect(load_tiny("tiny-gpt2")[0], tok, [2], CORPUS, 60, stats_dir=tmp_path, progress=False)
    assert snapshot.exists()
    monkeypatch.setattr(moment_store, "may_live", lambda owner: False)
    collect(load_tiny("tiny-gpt2")[0], tok, [2], CORPUS, 60, stats_dir=tmp_path, progress=False)
    assert not snapshot.exists()
