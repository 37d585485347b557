"""Keys equal the published ones, and cost no more than they must."""

import json

import numpy as np
import pytest
import torch

from common.errors import UserError
from editors.core.covariance import collect, MomentSpec
from editors.core.decoder import Decoder
from editors.core.keys import compute_hidden, compute_keys, layer_io
from editors.core.prompts import Request, fill, locate, parse_requests
from editors.core.modules import first, get_module
from editors.core.sites import find_sites
from editors.core.solve import factorise, rome_direction
from tests.conftest import GOLDEN, golden_models, load_tiny, relative
from tests.models import ARCHITECTURES, LAYERS, tiny_model, tiny_tokenizer

GROUPS = [["{}"], ["The city of Lutmere. {}", "I. {}", "Because it is a clockmaker in the. {}"]]
REQUESTS = [
    Request("{} lives in the city of", "Orla Venn", " Lutmere"),
    Request("The native language of {} is", "Tamsin Brackholt", " Nyvian"),
    Request("{} works as a", "Orla Venn", " clockmaker"),
    Request("In l'{}", "Zoë", " x"),
]
GOLDEN_RUNS = [("tiny-gpt2", "", 1e-6), ("tiny-gpt2", "_f64", 1e-13), ("tiny-gptj", "", 1e-6), ("tiny-gptj", "_f64", 1e-6)]
GOLDEN_RUNS = [run for run in GOLDEN_RUNS if run[0] + run[1] in golden_models("keys")]


@pytest.fixture(scope="module", params=GOLDEN_RUNS, ids=lambda run: run[0] + run[1])
def published(request):
    """(model, tok, sites, requests, templates, arrays, tolerance). GPT-J computes attention scores in float32 throughout."""
    name, suffix, tolerance = request.param
    model, tok = load_tiny(name, torch.float64 if suffix else torch.float32)
    about = json.loads((GOLDEN / f"keys_{name}{suffix}.json").read_text())
    templates = json.loads((GOLDEN / "context_templates.json").read_text())["memit"]
    arrays = np.load(GOLDEN / f"keys_{name}{suffix}.npz", allow_pickle=False)
    return model, tok, find_sites(model), parse_requests(about["requests"], tok), templates, arrays, tolerance


def test_keys_equal_the_published_ones(published):
    """All layers from one pass."""
    model, tok, sites, requests, templates, arrays, tolerance = published
    layers = [int(name.removeprefix("ks/layer")) for name in arrays if name.startswith("ks/layer")]
    assert len(layers) == 5
    keys = compute_keys(Decoder(model, tok, sites), requests, layers, templates)
    for layer in layers:
        assert keys[layer].dtype == model.dtype
        assert relative(keys[layer], arrays[f"ks/layer{layer}"]) < tolerance


@pytest.mark.parametrize("fact_token", ["subject_first", "subject_first_after_last"])
def test_keys_at_other_tokens_equal_the_published_ones(published, fact_token):
    model, tok, sites, requests, templates, arrays, tolerance = published
    keys = compute_keys(Decoder(model, tok, sites), requests, [2], templates, fact_token)[2]
    assert relative(keys, arrays[f"ks_{fact_token}/layer2"]) < tolerance


def test_layer_io_equals_the_published_one(published):
    model, tok, sites, requests, templates, arrays, tolerance = published
    pairs = [layer_io(Decoder(model, tok, sites), request, 2, templates, "subject_last") for request in requests]
    for side, name in enumerate(["raw/layer2_in", "raw/layer2_out"]):
        assert relative(torch.cat([pair[side] for pair in pairs]), arrays[name]) < tolerance


def test_hidden_equals_the_published_one(published):
    model, tok, sites, requests, _, arrays, tolerance = published
    assert relative(compute_hidden(Decoder(model, tok, sites), requests, 3), arrays["block_out/layer3"]) < tolerance


@pytest.mark.filterwarnings("ignore:the corpus has 312 documents")
@pytest.mark.parametrize("whitened", [True, False])
def test_rome_directions_equal_the_published_ones(published, whitened, tmp_path):
    """Key averaged over all contexts alike, statistics, u = C^-1 k / |C^-1 k|. (The published "last" reads padding.)"""
    model, tok, sites, requests, _, arrays, tolerance = published
    templates, factor = json.loads((GOLDEN / "context_templates.json").read_text())["rome"], None
    if whitened:
        dtype = str(model.dtype).removeprefix("torch.")
        spec = MomentSpec(str(GOLDEN / "corpus.jsonl"), 100_000, dtype)
        moment = collect(Decoder(model, tok, sites), [2], spec, stats_dir=tmp_path, progress=False)[2]
        factor, tolerance = factorise(moment.matrix), max(100 * tolerance, 1e-10)
    start = f"rome_u/mom2_{whitened}/subject_last/req"
    numbers = [int(name.removeprefix(start)) for name in arrays if name.startswith(start)]
    assert numbers == [0, 2, 3, 7, 9]
    for number in numbers:
        key = layer_io(Decoder(model, tok, sites), requests[number], 2, [templates], "subject_last")[0].mean(0)
        assert relative(rome_direction(factor, key), arrays[f"{start}{number}"]) < tolerance


@torch.no_grad()
def plainly(model, sites, site, layer, ids, index, side):
    """The state at one token of one uncut, unpadded prompt."""
    caught = []

    def hook(module, args, output):
        caught.append(args[0] if side == "in" else first(output))

    handle = get_module(model, sites.name(site, layer)).register_forward_hook(hook)
    model(torch.tensor([ids]))
    handle.remove()
    return caught[0].reshape(len(ids), -1)[index]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("fact_token", ["subject_last", "subject_first_after_last"])
def test_batched_equals_one_at_a_time(arch, fact_token):
    """Prompts of different lengths, three layers at once, against whole prompts run alone; windows are shorter than prompts."""
    model, tok = tiny_model(arch), tiny_tokenizer("byte_level_bos")
    sites, layers = find_sites(model), [3, 0, 2]
    keys = compute_keys(Decoder(model, tok, sites), REQUESTS, layers, GROUPS, fact_token)
    hidden = compute_hidden(Decoder(model, tok, sites), REQUESTS, 1, fact_token)
    for i, request in enumerate(REQUESTS):
        rows = [[locate(tok, fill(t, request.prompt), request.subject, fact_token) for t in group] for group in GROUPS]
        for layer in layers:
            means = [
                torch.stack([plainly(model, sites, "down_proj", layer, x.ids, x.index, "in") for x in group]).mean(0)
                for group in rows
            ]
            torch.testing.assert_close(keys[layer][i], (means[0] + means[1]) / 2, atol=1e-5, rtol=1e-4)
        alone = plainly(model, sites, "block", 1, rows[0][0].ids, rows[0][0].index, "out")
        torch.testing.assert_close(hidden[i], alone, atol=1e-5, rtol=1e-4)


def test_last_is_each_prompts_own_last_token():
    """Published code reads position -1 of a padded batch: padding, for all but the longest row."""
    model, tok = load_tiny("tiny-gpt2")
    sites = find_sites(model)
    keys = compute_keys(Decoder(model, tok, sites), REQUESTS, [2], [["{}"]], "last")[2]
    for key, request in zip(keys, REQUESTS):
        ids = tok(request.prompt.replace("{}", request.subject))["input_ids"]
        torch.testing.assert_close(key, plainly(model, sites, "down_proj", 2, ids, -1, "in"), atol=1e-5, rtol=1e-4)


def count_rows(model, module_name):
    shapes = []
    hook = lambda module, args, kwargs, output: shapes.append(tuple(first(output).shape[:2]))  # noqa: E731
    get_module(model, module_name).register_forward_hook(hook, with_kwargs=True)
    return shapes


def test_nothing_runs_above_the_deepest_layer():
    model, tok = tiny_model("llama"), tiny_tokenizer()
    sites = find_sites(model)
    runs = {name: count_rows(model, name) for name in ("model.layers.1", "model.layers.2", "model.norm", "lm_head")}
    compute_keys(Decoder(model, tok, sites), REQUESTS, [0, 2], GROUPS)
    # Block 2 is left at its projection, so its own hook never fires.
    assert [len(shapes) for shapes in runs.values()] == [1, 0, 0, 0]


def test_equal_beginnings_run_once():
    """Behind the subject prompts may differ: its key does not depend on that."""
    model, tok = tiny_model("llama"), tiny_tokenizer()
    sites, shapes = find_sites(model), count_rows(model, "model.layers.0")
    requests = [Request("{} lives in", "Orla Venn", " x"), Request("{} works as a clockmaker", "Orla Venn", " y"), REQUESTS[1]]
    keys = compute_keys(Decoder(model, tok, sites), requests, [1], GROUPS)[1]
    assert sum(rows for rows, _ in shapes) == 2 * 4 and torch.equal(keys[0], keys[1]) and not torch.allclose(keys[0], keys[2])


@pytest.mark.parametrize("batch_tokens", [1, 30, 77, 10_000])
def test_batches_keep_to_the_budget(batch_tokens):
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    sites = find_sites(model)
    whole = compute_keys(Decoder(model, tok, sites), REQUESTS, [2], GROUPS)[2]
    shapes = count_rows(model, "transformer.h.0")
    keys = compute_keys(Decoder(model, tok, sites), REQUESTS, [2], GROUPS, batch_tokens=batch_tokens)[2]
    assert all(rows * width <= batch_tokens or rows == 1 for rows, width in shapes)
    assert (len(shapes) == 1) == (batch_tokens == 10_000)
    torch.testing.assert_close(keys, whole, atol=1e-6, rtol=1e-5)


def test_order_of_requests_does_not_matter():
    model, tok = tiny_model("llama").double(), tiny_tokenizer()
    sites = find_sites(model)
    keys = compute_keys(Decoder(model, tok, sites), REQUESTS, [2], GROUPS)[2]
    turned = compute_keys(Decoder(model, tok, sites), REQUESTS[::-1], [2], GROUPS)[2]
    torch.testing.assert_close(turned.flip(0), keys, atol=1e-12, rtol=1e-10)


def test_groups_weigh_alike_whatever_their_size():
    model, tok = tiny_model("llama").double(), tiny_tokenizer()
    sites = find_sites(model)
    rows = layer_io(Decoder(model, tok, sites), REQUESTS[0], 2, GROUPS, "subject_last")[0]
    keys = [compute_keys(Decoder(model, tok, sites), REQUESTS[:1], [2], groups)[2][0] for groups in (GROUPS, [sum(GROUPS, [])])]
    torch.testing.assert_close(keys[0], rows[0] / 2 + rows[1:].mean(0) / 2)
    torch.testing.assert_close(keys[1], rows.mean(0))
    assert not torch.allclose(keys[0], keys[1])
    doubled = compute_keys(Decoder(model, tok, sites), REQUESTS[:1], [2], [["{}", "{}", GROUPS[1][0]]])[2][0]
    torch.testing.assert_close(doubled, (2 * rows[0] + rows[1]) / 3)


def test_layer_io_fits_the_weight():
    model, tok = tiny_model("opt"), tiny_tokenizer()
    sites = find_sites(model)
    inputs, outputs = layer_io(Decoder(model, tok, sites), REQUESTS[0], 2, GROUPS, "subject_last")
    linear = get_module(model, sites.name("down_proj", 2))
    torch.testing.assert_close(linear(inputs), outputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_keys(dtype):
    model, tok = tiny_model("llama"), tiny_tokenizer()
    sites = find_sites(model)
    exact = compute_keys(Decoder(model, tok, sites), REQUESTS, [2], GROUPS)[2]
    keys = compute_keys(Decoder(model.to(dtype), tok, sites), REQUESTS, [2], GROUPS)[2]
    assert keys.dtype == torch.float32
    assert relative(keys, exact) < 16 * torch.finfo(dtype).eps


def test_dropout_hooks_and_modes():
    """A model in train mode gives the keys of eval mode, and is left in train mode without hooks."""
    model, tok = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5), tiny_tokenizer()
    sites = find_sites(model)
    keys = compute_keys(Decoder(model, tok, sites), REQUESTS, [1], GROUPS)[1]
    assert torch.equal(compute_keys(Decoder(model.train(), tok, sites), REQUESTS, [1], GROUPS)[1], keys)
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert not keys.requires_grad


def test_layer_beyond_the_model():
    model, tok = tiny_model("llama"), tiny_tokenizer()
    with pytest.raises(UserError, match=f"layer {LAYERS} does not exist"):
        compute_keys(Decoder.of(model, tok), REQUESTS, [LAYERS], GROUPS)


def test_dispatched_by_accelerate():
    accelerate = pytest.importorskip("accelerate")
    plain, model, tok = tiny_model("llama"), tiny_model("llama"), tiny_tokenizer()
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "cpu" for i in range(LAYERS)}
    model = accelerate.dispatch_model(model, device_map=places, main_device="cpu", force_hooks=True)
    for _ in range(2):  # a pass left early must not spoil the next
        keys = compute_keys(Decoder.of(model, tok), REQUESTS, [1, 3], GROUPS)
    expected = compute_keys(Decoder.of(plain, tok), REQUESTS, [1, 3], GROUPS)
    assert all(torch.equal(keys[layer], expected[layer]) for layer in (1, 3))
