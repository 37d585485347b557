"""Target hidden states: equal to the published trajectories, and independent of how requests are batched."""

import json

import numpy as np
import pytest
import torch

from editors.core.decoder import Decoder
from editors.core.prompts import parse_requests
from editors.core.replay import Replay, shared_beginnings
from editors.core.modules import get_module
from editors.core.sites import find_sites
from editors.core.values import optimise
from tests.conftest import GOLDEN, golden_models, load_tiny, relative
from tests.models import ARCHITECTURES, tiny_model, tiny_tokenizer


class Settings:
    kl_prompt, target_tokens, end_of_text = "{} is a", "ids", False

    def __init__(self, hparams):
        self.__dict__.update(hparams)


def golden_cases():
    for name in golden_models("zv"):
        for case in json.loads((GOLDEN / f"zv_{name}.json").read_text())["cases"]:
            yield name, case


@pytest.mark.parametrize("name, case", list(golden_cases()))
def test_equals_published_trajectory(golden_model, name, case):
    """Every step's loss terms and delta. The published "last" reads a padding position, so that case is only ours (below)."""
    if "/last/" in case or case.startswith("v/last"):
        pytest.skip("fact_token=last reads a padding position in the published code")
    description = json.loads((GOLDEN / f"zv_{name}.json").read_text())
    arrays = np.load(GOLDEN / f"zv_{name}.npz", allow_pickle=False)
    about = description["cases"][case]
    memit = case.startswith("z/")
    templates = sum(description["memit_templates"], []) if memit else description["rome_templates"]
    model, tok = golden_model(name)
    steps = []

    def watch(step, numbers, delta, terms):
        steps.append((delta[0].numpy(), {k: float(v[0]) for k, v in terms.items()}))

    hparams = about["hparams"]
    decoder = Decoder.of(model, tok, {k: v for k, v in hparams.items() if "module" in k})
    values = optimise(
        decoder, parse_requests([about["request"]], tok), about["layer"], Settings(hparams), templates,
        "block" if memit else "down_proj", watch=watch, progress=False,
    )
    tolerance = 1e-8 if name == "tiny-gpt2_f64" else 1e-5 if name == "tiny-gptj_f64" else 1e-4
    assert len(steps) == len(arrays[f"{case}/loss"])
    assert relative(values.initial[0], arrays[f"{case}/target_init"]) < tolerance
    assert relative([t["nll"] for _, t in steps], arrays[f"{case}/nll"]) < tolerance
    assert relative([sum(t.values()) for _, t in steps], arrays[f"{case}/loss"]) < tolerance
    kl_tolerance = 1e-3 if tolerance > 1e-6 else tolerance  # tiny numbers: see f32_vs_f64_reldiff.json
    assert relative([t["kl"] for _, t in steps], arrays[f"{case}/kl"]) < kl_tolerance
    assert relative(np.stack([d for d, _ in steps]), arrays[f"{case}/delta_steps"]) < tolerance
    assert relative(values.target[0], arrays[f"{case}/target"]) < tolerance


REQUESTS = [
    {"prompt": "{} lives in the city of", "subject": "Orla Venn", "target_new": {"str": "Castavel"}},
    {"prompt": "The native language of {} is", "subject": "Quentin Ablewhite-Moss", "target_new": {"str": "Nyvian"}},
    {"prompt": "On market days in town, {} plays", "subject": "Petra Lowick", "target_new": {"str": "the hurdy-gurdy"}},
    {"prompt": "The workshop belongs to {}", "subject": "Bram Oystergaard", "target_new": {"str": "a clockmaker of note"}},
]
SETTINGS = dict(
    fact_token="subject_last", v_num_grad_steps=12, v_lr=0.5, v_loss_layer=None, v_weight_decay=0.05,
    clamp_norm_factor=4, kl_factor=0.0625,
)
TEMPLATES = ["{}", "The old bridge in Lutmere was. {}", "Because it rained. {}"]


@pytest.mark.parametrize("site", ["block", "down_proj"])
@pytest.mark.parametrize("loss_goal", [0.05, 1.5])  # at 1.5 rows leave the batch at different steps
@pytest.mark.parametrize("grouped", [False, True])  # all in one pass, or each length in a pass of its own
def test_batch_equals_one_at_a_time(tiny_gpt2, site, loss_goal, grouped, monkeypatch):
    monkeypatch.setattr("editors.core.values.LOSS_GOAL", loss_goal)
    if grouped:
        monkeypatch.setattr("editors.core.values.alike", lambda requests, device: ([request] for request in requests))
    model, tok = tiny_gpt2
    model = load_tiny("tiny-gpt2", torch.float64)[0]
    requests = parse_requests(REQUESTS, tok)
    steps = {}

    def watch(step, numbers, delta, terms):
        for number in numbers:
            steps[number] = step

    arguments = dict(layer=2, settings=Settings(SETTINGS), templates=TEMPLATES, site=site, progress=False)
    together = optimise(Decoder.of(model, tok), requests, watch=watch, **arguments)
    if loss_goal > 1:
        assert len(set(steps.values())) > 1, "rows were to leave the batch at different steps"
    for i, request in enumerate(requests):
        alone = optimise(Decoder.of(model, tok), [request], **arguments)
        assert relative(together.target[i], alone.target[0]) < 1e-10


@pytest.mark.parametrize("site", ["block", "down_proj"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("attention, dtype", [
    ("eager", "float32"), ("sdpa", "float32"), ("eager", "float64"), ("eager", "float16"),
])
@pytest.mark.parametrize("shared", [False, True])
def test_replay_equals_full_pass(arch, site, attention, dtype, shared):
    """Left-padded prefix cache + upper blocks give the hidden states of one unpadded pass of the whole model."""
    try:
        model = tiny_model(arch, attn_implementation=attention).to(getattr(torch, dtype))
    except ValueError as error:
        pytest.skip(f"no {attention} attention: {error}")
    tolerance = {"float32": 3e-6, "float64": 1e-6, "float16": 2e-2}[dtype]  # some architectures keep parts in float32
    sites = find_sites(model)
    generator = torch.Generator().manual_seed(1)
    lengths, lookups = [5, 12, 9, 2], [0, 10, 4, 1]  # one row has no prefix at all
    rows = [torch.randint(4, 250, (n,), generator=generator).tolist() for n in lengths]
    if shared:  # beginnings of 7 and of 4 tokens, with 0 to 5 before the looked-up one; and the same row twice
        rows += [[*range(20, 27), *range(40 + 9 * i, 44 + 3 * i)] for i in range(3)]
        rows += [[30, 31, 32, 33, 60 + i, 5, 6] for i in range(2)]
        rows += [rows[1]]
        lookups += [7, 8, 9, 6, 5, 10]
    layer = 1
    start = layer + 1 if site == "block" else layer
    replay = Replay(Decoder(model, tiny_tokenizer(), sites), rows, lookups, start)
    kept = [0, 2, 3]
    for attempt in range(2):
        with torch.no_grad():
            out = replay()
        for i, (row, lookup) in enumerate(zip(rows, lookups)):
            with torch.no_grad():
                full = get_module(model, sites.decoder)(torch.tensor([row])).last_hidden_state[0, lookup:]
            assert relative(out[i, : len(full)], full) < tolerance, (arch, i)
        replay.keep(torch.tensor(kept))
        rows, lookups, kept = [rows[i] for i in kept], [lookups[i] for i in kept], [0]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_optimises_every_architecture(arch, tiny_gpt2):
    """The loss falls, the model keeps its bits and its gradient flags."""
    tok = tiny_gpt2[1]
    model = tiny_model(arch, vocab_size=len(tok))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    losses = []
    optimise(
        Decoder.of(model, tok), parse_requests(REQUESTS[:2], tok), 1, Settings(SETTINGS), TEMPLATES, "down_proj",
        watch=lambda step, numbers, delta, terms: losses.append(float(terms["nll"].mean())), progress=False,
    )
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_last_is_the_prompts_last_token(tiny_gpt2):
    """The fixed meaning of fact_token=last: the state at the bare prompt's last token, whatever the padding."""
    model, tok = tiny_gpt2
    sites = find_sites(model)
    requests = parse_requests(REQUESTS, tok)
    settings = Settings(SETTINGS | {"fact_token": "last", "v_num_grad_steps": 1})
    values = optimise(Decoder(model, tok, sites), requests, 2, settings, TEMPLATES, "block", progress=False)
    for request, initial in zip(requests, values.initial):
        ids = tok(request.prompt.replace("{}", request.subject), return_tensors="pt").input_ids
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[3][0, -1]
        assert relative(initial, hidden) < 1e-5


def test_shared_beginnings_run_once(tiny_gpt2):
    assert shared_beginnings([[1, 2, 3], [9], [1, 2, 4, 5], [1, 7], []]) == [2, 0, 2, 1, 0]
    model, _ = tiny_gpt2
    token_counts = []
    hook = model.transformer.h[0].register_forward_pre_hook(lambda module, args: token_counts.append(args[0].shape[:2].numel()))
    rows = [[*range(20), 30 + i, 50] for i in range(10)]
    try:
        Replay(Decoder.of(model, tiny_tokenizer()), rows, [21] * 10, start=2)
    finally:
        hook.remove()
    assert token_counts == [20, 10, 10]  # the common tokens, each row's own one, and the replayed column


def test_rows_that_begin_alike_up_to_the_looked_up_token(tiny_gpt2):
    model, _ = tiny_gpt2
    rows = [[*range(9), 30 + i, 50] for i in range(10)]
    replay = Replay(Decoder.of(model, tiny_tokenizer()), rows, [9] * 10, start=2)
    with torch.no_grad():
        full = model.transformer(torch.tensor(rows)).last_hidden_state[:, 9:]
        assert relative(replay(), full) < 1e-6
