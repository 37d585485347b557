"""MEMAT and ITI as methods: gradients, positions, profiles, two languages."""

import copy
import dataclasses
import itertools

import pytest
import torch

from common.errors import UserError
import editors
from editors.closed_form.bilingual import joint_edit
from editors.core.decoder import Decoder
from editors.core.prompts import encode_target, locate, parse_requests
from editors.core.sites import find_sites
from editors.edit import Edit
from editors.heads import relevance, training
from editors.heads.corrections import Corrections, folded
from editors.heads.outputs import head_outputs, head_shape
from editors.heads.profiles import PROFILES
from tests.conftest import relative
from tests.editors.test_contract import HPARAMS, MEMIT
from tests.models import ARCHITECTURES, tiny_model, tiny_tokenizer

TEMPLATES = ["{}", "The ferry was late. {}", "In the city of Lutmere, on a market day, the ferry was late. {}"]
REQUESTS = [
    {"case_id": i, "prompt": prompt, "subject": subject, "target_new": new, "target_true": true}
    for i, (prompt, subject, new, true) in enumerate([
        ("{} lives in the city of", "Orla Venn", "Castavel", "Lutmere"),
        ("The native language of {} is", "Zoë", "Nyvian", "Lutmeran"),
        ("{} works as a", "Tamsin Brackholt", "clockmaker", "baker"),
        ("Everybody knows that {} plays the", "Ugo", "hurdy-gurdy", "flute"),
    ])
]
HEADS = [(1, 2), (2, 0), (2, 3)]
SETTINGS = training.Settings(
    lr=0.05, clamp=0.75, weight_decay=0.001, kl_factor=0.0625, kl_prompt="{} is a", fact_token="subject_last")


def train(model, tok, requests=REQUESTS, heads=HEADS, **changes):
    steps = []
    settings = dataclasses.replace(SETTINGS, **changes)
    vectors = training.train(Decoder.of(model, tok), parse_requests(requests, tok), heads, TEMPLATES, settings,
                             watch=lambda *step: steps.append(step), progress=False)
    return vectors, steps


def plain_loss(model, tok, vectors, heads, settings, requests=REQUESTS):
    """The definition, a row at a time, vectors added by hand: mean over requests of NLL + KL + weight decay."""
    sites = find_sites(model)
    count, size = head_shape(Decoder.of(model))
    total = 0.0

    def run(ids, marks, vectors):
        handles = []
        for layer in {layer for layer, _ in heads}:
            def hook(module, args, layer=layer):
                states = args[0].clone().reshape(1, len(ids), count, size)
                for (l, head), vector in zip(heads, vectors):
                    if l == layer:
                        where = (torch.tensor(0), marks, torch.tensor(head))
                        states = states + torch.zeros_like(states).index_put(where, vector)
                return (states.reshape(args[0].shape), *args[1:])

            handles.append(model.get_submodule(sites.name("attn_out", layer)).register_forward_pre_hook(hook))
        try:
            return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        finally:
            [handle.remove() for handle in handles]

    for request in parse_requests(requests, tok):
        for template in TEMPLATES:
            prompt = tok(template.replace("{}", request.prompt.replace("{}", request.subject))).input_ids
            target = tok(request.target_new).input_ids[-len(tok(request.target_new, add_special_tokens=False).input_ids):]
            row = prompt + target[:-1]
            marks = torch.tensor([len(row) - 1]) if settings.position == "last_real" else torch.arange(len(row))
            log_p = run(row, marks, vectors)
            scored = [len(target) - 1] if settings.position == "last_real" else range(len(target))
            for t in scored:
                total = total - log_p[len(prompt) - 1 + t, target[t]] / len(TEMPLATES) / len(target)
        subject = tok(request.subject).input_ids
        marks = torch.tensor([len(subject) - 1]) if settings.position == "last_real" else torch.arange(len(subject))
        edited, initial = run(subject, marks, vectors)[-1], run(subject, marks, torch.zeros_like(vectors))[-1].detach()
        total = total + settings.kl_factor * (edited.exp() * (edited - initial)).sum()
    return total / len(requests)


@pytest.mark.parametrize("position", ["last_real", "all"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradients_are_those_of_the_definition(arch, position):
    """The second step's, where the vectors are not 0 any more."""
    model, tok = tiny_model(arch), tiny_tokenizer()
    vectors, steps = train(model, tok, position=position, epochs=2, weight_decay=0.0)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    settings = dataclasses.replace(SETTINGS, position=position)
    for (_, gradient, *_), at in zip(steps, (torch.zeros_like(vectors), steps[0][3])):
        at = at.clone().requires_grad_(True)
        (expected,) = torch.autograd.grad(plain_loss(model, tok, at, HEADS, settings), at)
        assert relative(gradient, expected) < 1e-3


def test_every_context_teaches():
    """Published, only the longest row of a request has a gradient; by default each has."""
    model, tok = tiny_model("falcon"), tiny_tokenizer()
    (request,) = parse_requests(REQUESTS[:1], tok)

    def gradient(templates, position):
        steps = []
        settings = dataclasses.replace(SETTINGS, position=position, kl_factor=0.0)
        training.train(Decoder.of(model, tok), [request], HEADS, templates, settings, lambda *step: steps.append(step),
                       progress=False)
        return steps[0][1] * len(templates)

    longest = max(TEMPLATES, key=len)
    for position in ("last_real", "all"):
        alone = sum(gradient([template], position) for template in TEMPLATES)
        assert relative(gradient(TEMPLATES, position), alone) < 1e-4
    assert relative(gradient(TEMPLATES, "legacy"), gradient([longest], "legacy")) < 1e-4


def test_the_kl_term_reaches_the_vectors():
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    without, with_kl = (train(model, tok, epochs=2, kl_factor=k)[1][1][1] for k in (0.0, 5.0))
    assert relative(with_kl, without) > 1e-2


def test_vectors_stay_within_their_own_heads_size():
    model, tok = tiny_model("llama"), tiny_tokenizer()
    vectors, steps = train(model, tok, epochs=6, lr=1.0, clamp=0.3)
    rows = [tok(r["prompt"].replace("{}", r["subject"])).input_ids for r in REQUESTS]
    rows = [ids + tok(" " + r["target_new"]).input_ids[:-1] for ids, r in zip(rows, REQUESTS)]
    outputs = head_outputs(Decoder.of(model, tok), rows)
    sizes = torch.stack([outputs[:, layer, head].norm(dim=1).mean() for layer, head in HEADS])
    assert torch.allclose(vectors.norm(dim=1), 0.3 * sizes, rtol=1e-3)


def test_batches_add_up_to_one():
    """Four facts in one step, or the gradient of two and two, whatever fits into memory."""
    model, tok = tiny_model("gpt_neox"), tiny_tokenizer()
    whole = train(model, tok)[1][0][1]
    halves = [train(model, tok, REQUESTS[i : i + 2])[1][0][1] for i in (0, 2)]
    assert relative(sum(halves) / 2, whole) < 1e-4
    short = train(model, tok, REQUESTS[:1], divide_by_full_batch=True, batch=8)[1][0][1]
    assert relative(8 * short, train(model, tok, REQUESTS[:1])[1][0][1]) < 1e-4


def test_more_heads_than_a_head_is_wide():
    model, tok = tiny_model("falcon"), tiny_tokenizer()
    heads = list(itertools.product(range(4), range(4)))
    _, size = head_shape(Decoder.of(model))
    assert len(heads) > size
    for changes in ({}, {"position": "legacy", "norm": "shared"}):
        assert train(model, tok, heads=heads, **changes)[0].shape == (16, size)


@pytest.fixture
def profile(monkeypatch):
    """profile(name, **settings): that profile with other settings."""
    return lambda name, **settings: monkeypatch.setitem(PROFILES, name, dataclasses.replace(PROFILES[name], **settings))


def test_what_profiles_decide():
    base = dict(MEMIT, heads=[[1, 0]])
    for name, lookup in (("default", "subject_last"), ("paper", "subject_last_separate")):
        editor, profile = editors.load("MEMAT", base | {"profile": name}), PROFILES[name]
        shared = ("target_tokens", "mom2_dtype", "mom2_tokens", "train_position")
        assert {key: getattr(editor.hparams, key) for key in shared} == {key: getattr(profile, key) for key in shared}
        assert editor.hparams.fact_token == lookup and editor.refreshes == (profile.residual == "refresh")
        assert editor.overwrites == (name == "paper") and editors.load("ITI", base | {"profile": name}).overwrites is False
        settings = editor.settings()
        assert (settings.norm, settings.divide_by_full_batch) == (profile.head_norm, profile.full_batch)
        assert settings.kl_factor == (MEMIT["kl_factor"] if profile.correction_kl else 0)
    alone = {"mom2_dtype": "float64", "mom2_tokens": 50, "train_position": "all"}
    for name in PROFILES:
        hp = editors.load("MEMAT", base | {"profile": name} | alone).hparams
        assert {key: getattr(hp, key) for key in alone} == alone


def test_a_stale_residual_overshoots(profile):
    """1/2 + 1/1 of the distance over two layers, on every device; a fresh one halves what is left."""
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    profile("paper", residual="stale", lookup="offsets", target_tokens="ids", mom2_dtype="float32", mom2_tokens=None)
    options = dict(context_templates=["{}"], progress=False)
    stale = editors.load("MEMAT", HPARAMS["MEMAT"] | {"profile": "paper"}).memit(model, tok, REQUESTS, **options)
    fresh = editors.load("MEMIT", MEMIT).edit(model, tok, REQUESTS, **options)
    one, two = MEMIT["layers"]
    name = "transformer.h.{}.mlp.c_proj.weight"
    left = {i: stale.changes[name.format(i)].right for i in (one, two)}
    assert torch.allclose(2 * left[one], left[two], atol=1e-6)
    assert torch.equal(fresh.deltas()[name.format(one)], stale.deltas()[name.format(one)])
    assert relative(fresh.deltas()[name.format(two)], stale.deltas()[name.format(two)]) > 1e-2


def test_heads_are_chosen_and_told(tmp_path):
    model, tok = tiny_model("falcon"), tiny_tokenizer()
    hp = dict(HPARAMS["MEMAT"], heads=None, top_num_heads=5, voters="all")
    edit = editors.load("MEMAT", hp).edit(model, tok, REQUESTS, progress=False)
    accuracy = torch.tensor(edit.info["probe_accuracy"])
    assert accuracy.shape == (4, 4) and len(edit.info["heads"]) == 5 and edit.info["voters"] == 4
    chosen = [float(accuracy[layer][head]) for layer, head in edit.info["heads"]]
    assert chosen == sorted(chosen, reverse=True) and min(chosen) >= sorted(accuracy.flatten().tolist())[-5]
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert loaded.info == edit.info
    with loaded.applied(model):
        lowest = min(layer for layer, _ in edit.info["heads"])
        assert f"transformer.h.{lowest}.self_attention.dense.bias" in dict(model.named_parameters())
    assert not any(name.endswith("dense.bias") for name, _ in model.named_parameters())


def test_held_out_facts_are_edited_all_the_same():
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    hp = dict(HPARAMS["MEMAT"], heads=None, top_num_heads=5, voters="all")
    whole, held = (editors.load("MEMAT", hp | change).edit(model, tok, REQUESTS, progress=False)
                   for change in ({}, {"held_out": 0.3}))
    other = editors.load("MEMAT", hp).edit(model, tok, REQUESTS, progress=False, heads_requests=REQUESTS[:3])
    assert held.info["voters"] == 3 and held.info["heads"] == other.info["heads"]
    assert held.changes.keys() == other.changes.keys()
    assert all(torch.equal(held.deltas()[name], other.deltas()[name]) for name in held.changes)
    assert all(torch.equal(held.deltas()[name], whole.deltas()[name]) for name in held.changes if name.endswith("weight"))


def test_heads_may_be_any_as_a_control():
    ranking = relevance.Relevance(torch.rand(4, 5), [], [], [])
    editor = editors.load("MEMAT", HPARAMS["MEMAT"] | {"head_choice": "random"})
    heads = editor.choose(ranking, 20)
    assert editor.choose(relevance.Relevance(torch.zeros(4, 5), [], [], []), 7) == heads[:7]
    assert sorted(heads) == sorted(ranking.best(20)) and heads != ranking.best(20)
    first, second = (editors.load("MEMAT", HPARAMS["MEMAT"] | {"head_choice": "random", "probe_seed": None}) for _ in range(2))
    assert first.choose(ranking, 7) == second.choose(ranking, 7)


def test_heads_may_be_read_in_front_of_the_object():
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    requests = parse_requests([REQUESTS[0] | {"true_prompt": "{} lives by the"}, *REQUESTS[1:]], tok)
    features = relevance.features(Decoder.of(model, tok), requests, "prompt")
    rows = [tok(text).input_ids for text in ("Orla Venn lives in the city of", "Orla Venn lives by the")]
    expected = head_outputs(Decoder.of(model, tok), rows)
    assert torch.allclose(features[0], expected, atol=1e-6) and torch.equal(features[1, 0], features[1, 1])
    editor = editors.load("MEMAT", HPARAMS["MEMAT"] | {"heads": None, "probe_token": "prompt", "voters": "all"})
    assert editor.voters(model, tok, requests) == [0] == editor.telling(requests, range(len(requests)))  # the others look alike
    with pytest.raises(UserError, match="behind the same prompt"):
        editors.load("MEMAT", HPARAMS["MEMAT"] | {"heads": None, "top_num_heads": 2, "probe_token": "prompt"}).edit(
            model, tok, REQUESTS, progress=False)


def test_heads_for_facts_in_another_language_and_their_own_contexts(profile):
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    others = [dict(r, prompt=r["prompt"].replace("lives in the city of", "viu a")) for r in REQUESTS]
    hp = dict(HPARAMS["MEMAT"], head_context_starts=["El", "Ella"], head_kl_prompt="{} és", context_starts=["The", "She"])
    mine = editors.load("MEMAT", hp)
    one = mine.edit(model, tok, REQUESTS, progress=False)
    two = mine.edit(model, tok, REQUESTS, progress=False, heads_requests=others)
    weights, biases = ([name for name in one.changes if name.endswith(end)] for end in ("weight", "bias"))
    assert all(torch.equal(one.deltas()[name], two.deltas()[name]) for name in weights)
    assert any(not torch.equal(one.deltas()[name], two.deltas()[name]) for name in biases)
    assert mine.head_templates(model, tok)[1].startswith("El")
    profile("default", head_contexts="edits")
    assert mine.head_templates(model, tok)[1].startswith("The") and mine.settings().kl_prompt == "{} is a"


def test_a_fact_in_two_languages_is_in_one_part():
    features = torch.randn(8, 2, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    split = relevance.probe(features, [0, 1, 2, 3, 4, 6, 7], 0.3, 123, facts=[0, 1, 2, 3] * 2)
    assert sorted(split.training + split.validation) == split.voters == [0, 1, 2, 3, 4, 6, 7]
    assert not {i % 4 for i in split.training} & {i % 4 for i in split.validation} and split.validation


def test_how_often_the_lookups_differ_is_told():
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    editor = editors.load("MEMAT", HPARAMS["MEMAT"] | {"v_num_grad_steps": 1})
    elided = dict(REQUESTS[0], prompt="Prop d'{} hi ha")
    requests = [*REQUESTS[1:], elided]
    apart = [len({locate(tok, r["prompt"], r["subject"], way).index for way in ("subject_last", "subject_last_separate")}) > 1
             for r in requests]
    assert editor.memit(model, tok, requests, progress=False).info["lookups_differ"] == sum(apart)


def test_true_facts_are_worded_for_their_object():
    tok, model = tiny_tokenizer(), tiny_model("gpt2")
    request = dict(REQUESTS[0], true_prompt="{} lives by the", true_subject="Orla")
    new, true = relevance.sentence_rows(Decoder.of(model, tok), parse_requests([request], tok))
    assert tok.decode(new) == "Orla Venn lives in the city of Castavel" and tok.decode(true) == "Orla lives by the Lutmere"


def test_the_model_says_what_it_says():
    """A model whose output matrix is made to say one target behind one prompt: no other target, and no longer one."""
    model, tok, request = copy.deepcopy(tiny_model("llama")), tiny_tokenizer("byte_level_bos"), REQUESTS[2]
    target = encode_target(tok, " " + request["target_new"])
    assert len(target) > 1
    row = tok(request["prompt"].replace("{}", request["subject"])).input_ids + target[:-1]
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([row])).last_hidden_state[0, -len(target) :]
        inverse = torch.linalg.pinv(hidden).T
        weight = torch.zeros_like(model.lm_head.weight).index_add(0, torch.tensor(target), inverse)
        model.lm_head.weight = torch.nn.Parameter(weight)
    requests = [dict(request, target_new=text) for text in (request["target_new"], "baker", request["target_new"] + "s")]
    assert relevance.says_targets(Decoder.of(model, tok), parse_requests(requests, tok)).tolist() == [True, False, False]


def test_under_inference_mode():
    """The same edit as without; heads chosen, too."""
    model, tok = tiny_model("falcon"), tiny_tokenizer()
    editor = editors.load("MEMAT", dict(HPARAMS["MEMAT"], heads=None, top_num_heads=3, voters="all"))
    requests = parse_requests(REQUESTS, tok)
    plain = editor.edit(model, tok, REQUESTS, progress=False)
    with torch.inference_mode():
        inside = editor.edit(model, tok, REQUESTS, progress=False)
        alone = editor.correct(model, tok, requests, HEADS, TEMPLATES, progress=False)
    assert inside.info["heads"] == plain.info["heads"] and len(plain.info["heads"]) == 3
    assert all(torch.equal(change, plain.deltas()[name]) for name, change in inside.deltas().items())
    assert torch.equal(alone.vectors, editor.correct(model, tok, requests, HEADS, TEMPLATES, progress=False).vectors)


def test_vectors_that_are_not_finite_are_refused(monkeypatch):
    model, tok = tiny_model("falcon"), tiny_tokenizer()
    editor = editors.load("MEMAT", dict(HPARAMS["MEMAT"], heads=[[1, 2]]))
    monkeypatch.setattr(training, "train", lambda *args, **kwargs: torch.tensor([[0.0] * 7 + [float("nan")]]))
    message = "correction vectors are not finite: load the model in a wider dtype, or lower the learning rate"
    with pytest.raises(UserError, match=message):
        editor.edit(model, tok, REQUESTS, progress=False)


def test_iti_is_linear_in_alpha():
    model, tok = tiny_model("falcon"), tiny_tokenizer()
    one, three = (editors.load("ITI", HPARAMS["ITI"] | {"alpha": alpha}).edit(model, tok, REQUESTS, progress=False).deltas()
                  for alpha in (1.0, 3.0))
    biases = [name for name in one if name.endswith("bias")]
    assert len(biases) == 2
    assert all(torch.allclose(3 * one[name], three[name], atol=1e-6) for name in biases)


def test_corrections_on_disk(tmp_path):
    corrections = Corrections(HEADS, torch.randn(3, 8), {"language": "catalan", "shape": [4, 4, 8]})
    corrections.save(tmp_path / "new" / "c.safetensors")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["c.npy", "c.safetensors"]
    again = Corrections.load(tmp_path / "new" / "c.safetensors")
    assert again.heads == HEADS and torch.equal(again.vectors, corrections.vectors) and again.info == corrections.info
    assert again.first(2).heads == HEADS[:2]
    (tmp_path / "new" / "c.safetensors").write_bytes(b"12345678")
    with pytest.raises(UserError, match="damaged"):
        Corrections.load(tmp_path / "new" / "c.safetensors")
    with pytest.raises(UserError, match="no such"):
        Corrections.load(tmp_path / "c.safetensors")


@pytest.mark.parametrize("change, message", [
    ({"heads": [[7, 0]]}, r"heads: \[7, 0\] is no \(layer, head\) of this model"),
    ({"heads": []}, "heads: an empty list"),
    ({"heads": None, "top_num_heads": 17}, "top_num_heads: 17 heads can't be chosen, the model has 16"),
    ({"top_num_heads": 0}, "top_num_heads: 0"), ({"val_share": 1.0}, "val_share"), ({"held_out": 1.0}, "held_out"),
    ({"correction_lr": -1.0}, "correction_lr"),
    ({"heads": None, "top_num_heads": 4, "voters": "correct"}, "0 voting facts can't be split"),
    ({"head_kl_prompt": "is a"}, "head_kl_prompt"), ({"profile": "papre"}, "profile"), ({"kl_prompt": "{} {}"}, "kl_prompt"),
])
def test_bad_hparams(change, message):
    model, tok = tiny_model("falcon"), tiny_tokenizer()
    with pytest.raises(UserError, match=message) as error:
        editors.load("MEMAT", HPARAMS["MEMAT"] | {"v_num_grad_steps": 1} | change).edit(model, tok, REQUESTS, progress=False)
    assert "\n" not in str(error.value)


def test_probing_needs_the_true_object():
    model, tok = tiny_model("falcon"), tiny_tokenizer()
    lacking = [{k: v for k, v in r.items() if k != "target_true"} for r in REQUESTS]
    with pytest.raises(UserError, match=r"request 0 \(case_id 0\) has no target_true"):
        editors.load("MEMAT", HPARAMS["MEMAT"] | {"heads": None, "top_num_heads": 3}).edit(model, tok, lacking, progress=False)


def test_vectors_of_another_size_are_refused():
    model = tiny_model("falcon")
    with pytest.raises(UserError, match="of another model or other heads"):
        folded(Decoder.of(model), Corrections(HEADS, torch.zeros(3, 5)), overwrite=False)


@pytest.mark.parametrize("residual", ["refresh", "stale"])
def test_one_language_twice_is_that_language(profile, residual):
    """The joint edit of the same facts in two languages that are one is MEMIT's."""
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    profile("default", residual=residual)
    memat = editors.load("MEMAT", HPARAMS["MEMAT"] | {"context_starts": ["The"]})
    joint = joint_edit([(memat, REQUESTS), (memat, REQUESTS)], model, tok).deltas()
    single = memat.memit(model, tok, REQUESTS, progress=False).deltas()
    assert all(relative(joint[name], single[name]) < 1e-3 for name in single)


def test_a_joint_edit_needs_the_same_facts():
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    memit = editors.load("MEMIT", MEMIT)
    with pytest.raises(UserError, match="the languages have 4, 2 facts"):
        joint_edit([(memit, REQUESTS), (memit, REQUESTS[:2])], model, tok)


def test_a_joint_edit_needs_the_same_layers():
    one, two = editors.load("MEMIT", MEMIT), editors.load("MEMIT", MEMIT | {"layers": [2, 3]})
    with pytest.raises(UserError, match=r"layers: \[1, 2\] and \[2, 3\]; a joint edit needs the same"):
        joint_edit([(one, REQUESTS), (two, REQUESTS)], tiny_model("gpt2"), tiny_tokenizer())


def test_each_language_has_its_own_looked_up_token():
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    last, subject_last = (editors.load("MEMIT", MEMIT | {"fact_token": token, "context_starts": ["The"]})
                          for token in ("last", "subject_last"))
    pairs = ((last, subject_last), (subject_last, last))
    joint = [joint_edit([(one, REQUESTS), (two, REQUESTS)], model, tok).deltas() for one, two in pairs]
    assert all(relative(joint[0][name], joint[1][name]) < 1e-3 for name in joint[0])


def test_templates_of_modules_are_for_the_heads_too():
    """A template that is wrong is noticed by MEMAT's own steps, so a right one is used there."""
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    memat = editors.load("MEMAT", HPARAMS["MEMAT"] | {"attn_module_tmp": "transformer.h.{}.nothing"})
    corrections = Corrections(HEADS, torch.zeros(3, 8))
    steps = (
        lambda: memat.fold(model, corrections), lambda: memat.check(model, tok, []), lambda: memat.features(model, tok, [])
    )
    for step in steps:
        with pytest.raises(UserError, match="attn"):
            step()


def test_a_joint_edit_tells_each_languages_statistics():
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    memit = editors.load("MEMIT", MEMIT | {"context_starts": ["The"]})
    joint_statistics = joint_edit([(memit, REQUESTS), (memit, REQUESTS)], model, tok).info["statistics"]
    single_statistics = memit.edit(model, tok, REQUESTS, progress=False).info["statistics"]
    by_layer = {layer: statistics["languages"] for layer, statistics in joint_statistics.items()}
    assert by_layer == {layer: [statistics, statistics] for layer, statistics in single_statistics.items()}


@pytest.mark.parametrize("name, value", [
    ("rect_share", 0.4), ("edited_key_memory", True), ("prune", True), ("calculate_objective_value", True),
])
def test_what_a_joint_edit_does_not_have_is_refused(name, value):
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    one, two = editors.load("MEMIT", MEMIT), editors.load("MEMIT", MEMIT | {name: value})
    with pytest.raises(UserError, match=f"^{name}: a joint edit of several languages does not have it"):
        joint_edit([(one, REQUESTS), (two, REQUESTS)], model, tok)


def test_the_sum_of_two_edits_is_their_sum():
    model, tok = tiny_model("gpt2"), tiny_tokenizer()
    memit = editors.load("MEMIT", MEMIT)
    one, two = (memit.edit(model, tok, requests, context_templates=["{}"], progress=False)
                for requests in (REQUESTS[:2], REQUESTS[2:]))
    both = one.plus(two).deltas()
    assert all(relative(both[name], one.deltas()[name] + two.deltas()[name]) < 1e-6 for name in both)
