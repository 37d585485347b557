"""What every editor promises, run over all of them."""

import copy
import functools
import gc
import weakref

import pytest
import torch

import editors
from editors.core.kept import kept
from tests.conftest import GOLDEN, relative

VALUES = dict(
    fact_token="subject_last", v_num_grad_steps=6, v_lr=0.5, v_weight_decay=0.5, clamp_norm_factor=0.75, kl_factor=0.0625,
    mom2_dataset=str(GOLDEN / "corpus.jsonl"), mom2_n_samples=400,
)
MEMIT = dict(layers=[1, 2], mom2_update_weight=15, **VALUES)
HPARAMS = {
    "AlphaEdit": dict(layers=[1, 2], L2=10, **VALUES),
    "EMMET": dict(layers=[1, 2], mom2_update_weight=150, **VALUES),
    "FT": dict(layers=[1], num_steps=3, lr=5e-3, weight_decay=0, norm_constraint=False),
    "ITI": dict(MEMIT, heads=[[1, 0], [3, 2]], voters="all", alpha=0.5),
    "LocFT": dict(layers=[1], num_steps=3, lr=5e-3),
    "MEMAT": dict(MEMIT, heads=[[1, 0], [3, 2], [3, 1]]),
    **dict.fromkeys(("MEMIT", "MEMIT_prune", "MEMIT_rect", "MEMIT_seq"), MEMIT),
    "UltraEdit": dict(modules=["transformer.h.{}.mlp.c_proj"], layers=[1, 2], lr=1e-2, batch_size=2),
    "ROME": dict(layers=[2], mom2_adjustment=True, context_template_length_params=[[5, 2]], **VALUES),
}
REQUESTS = [
    {"case_id": 0, "prompt": "{} lives in the city of", "subject": "Orla Venn", "target_new": {"str": "Castavel"},
     "target_true": {"str": "Lutmere"}},
    {"case_id": 1, "prompt": "The native language of {} is", "subject": "Mira O'Dalvey", "target_new": {"str": "Nyvian"},
     "target_true": {"str": "Lutmeran"}},
]


@pytest.fixture(autouse=True)
def _stats(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KE_STATS_DIR", str(tmp_path_factory.getbasetemp() / "contract_stats"))


PLAIN = ("FT", "LocFT")
"""Editors without contexts."""
LEARNED = {"ENN": "enn", "KE": "efk", "MEND": "mend"}
"""Editors with trained networks -> algorithms."""


def test_every_editor_of_weights_is_here():
    # Those change no weight: tests/editors/memory.
    assert set(editors.names()) - set(HPARAMS) - set(LEARNED) <= {"ICE", "LU", "SCR", "SERAC"}


@pytest.fixture(scope="session")
def checkpoints(tiny_gpt2, tmp_path_factory):
    """Function of a learned editor's name that gives its checkpoint, each trained once."""
    from tests.editors.learned.trained import trained

    folder = tmp_path_factory.mktemp("trained")
    return functools.cache(lambda name: str(trained(LEARNED[name], *tiny_gpt2, folder)[1]))


@pytest.fixture(params=sorted([*HPARAMS, *LEARNED]))
def editor(request, checkpoints):
    name = request.param
    return editors.load(name, HPARAMS[name] if name in HPARAMS else {"checkpoint": checkpoints(name)})


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def loss(model, tok, request):
    ids = tok(request["prompt"].replace("{}", request["subject"]), return_tensors="pt").input_ids
    target = tok(" " + request["target_new"]["str"]).input_ids[0]
    with torch.no_grad():
        return -model(ids).logits[0, -1].log_softmax(-1)[target].item()


def test_edit_leaves_the_model_and_changes_it_when_applied(editor, tiny_gpt2):
    model, tok = tiny_gpt2
    before, random_state = bits(model), torch.get_rng_state()
    edit = editor.edit(model, tok, REQUESTS)
    assert same(model, before) and torch.equal(torch.get_rng_state(), random_state)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    unedited = [loss(model, tok, r) for r in REQUESTS]
    with edit.applied(model):
        edited = [loss(model, tok, r) for r in REQUESTS]
        for name, delta in edit.deltas().items():
            assert relative(model.state_dict()[name] - before[name], delta) < 1e-5
    assert all(after < before for after, before in zip(edited, unedited))
    assert same(model, before)


def test_same_seed_same_numbers(editor, tiny_gpt2):
    model, tok = tiny_gpt2
    one, two = (editor.edit(model, tok, REQUESTS).deltas() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_save_and_load(editor, tiny_gpt2, tmp_path):
    model, tok = tiny_gpt2
    edit = editor.edit(model, tok, REQUESTS[:1])
    edit.save(tmp_path / "edit.safetensors")
    loaded = editors.Edit.load(tmp_path / "edit.safetensors")
    assert loaded.info == edit.info and loaded.info["editor"] == editor.name
    assert all(torch.equal(delta, loaded.deltas()[name]) for name, delta in edit.deltas().items())
    assert [p.name for p in tmp_path.iterdir()] == ["edit.safetensors"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(editor, tiny_gpt2, dtype):
    """Dtype follows the model, and revert restores its bits."""
    model, tok = copy.deepcopy(tiny_gpt2[0]).to(dtype), tiny_gpt2[1]
    before = bits(model)
    edit = editor.edit(model, tok, REQUESTS[:1])
    with edit.applied(model):
        assert not same(model, before)
    assert same(model, before)
    assert all(torch.isfinite(delta).all() for delta in edit.deltas().values())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompt": "lives in the city of"}, "{}"),
        ({"prompt": "{} and {} live in"}, "{}"),
        ({"subject": ""}, "subject"),
        ({"subject": "  "}, "subject"),
        ({"target_new": {"str": ""}}, "target"),
    ],
)
def test_bad_requests(editor, tiny_gpt2, change, message):
    model, tok = tiny_gpt2
    before = bits(model)
    with pytest.raises(editors.EditingError, match=message) as error:
        editor.edit(model, tok, [REQUESTS[0], REQUESTS[1] | change])
    assert "\n" not in str(error.value) and "1" in str(error.value)
    assert same(model, before)


def of_length(tok, tokens, fed):
    """REQUESTS[1] with a prompt that takes `tokens` tokens together with what is fed of its target."""
    for words in range(tokens):
        request = REQUESTS[1] | {"prompt": "The native language of {} is" + " the" * words}
        if len(tok(request["prompt"].replace("{}", request["subject"])).input_ids) + fed == tokens:
            return request
    raise AssertionError


def test_prompts_may_be_as_long_as_the_model_and_no_longer(editor, tiny_gpt2):
    model, tok = tiny_gpt2
    before, fed = bits(model), len(tok(" Nyvian").input_ids) - 1
    # ITI reads the target's last token, too, and LocFT learns an end behind it.
    longest = of_length(tok, 128 - (editor.name in ("ITI", "LocFT")), fed)
    templates = None if editor.name in PLAIN else ["{}"]
    deltas = editor.edit(model, tok, [REQUESTS[0], longest], context_templates=templates).deltas()
    assert all(delta.abs().max() > 0 for delta in deltas.values())
    message = r"request 1 \(case_id 1\): .* take 129 tokens, but the model has 128 positions"
    with pytest.raises(editors.EditingError, match=message) as error:
        editor.edit(model, tok, [REQUESTS[0], of_length(tok, 129, fed)])
    assert "\n" not in str(error.value) and same(model, before)


@pytest.mark.parametrize("name", ["MEMIT", "ROME"])
def test_prompts_must_fit_behind_the_contexts_too(name, tiny_gpt2):
    long = "The ferry" + " was late and" * 40 + ". {}"
    with pytest.raises(editors.EditingError, match=r"request 0 .* tokens in the context 'The ferry .*', but the model has 128"):
        editors.load(name, HPARAMS[name]).edit(*tiny_gpt2, REQUESTS, context_templates=["{}", long])


def test_a_padding_token_that_the_model_does_not_know(editor, tiny_gpt2, tmp_path, monkeypatch):
    """Added to the tokenizer, but the embedding was not resized: the same edit as without it."""
    model, tok = tiny_gpt2
    added = copy.deepcopy(tok)
    added.add_special_tokens({"pad_token": "[PAD]"})
    assert added.pad_token_id >= len(model.get_input_embeddings().weight)
    templates = None if editor.name in PLAIN else ["{}", "The ferry was late. {}"]
    one = editor.edit(model, tok, REQUESTS, context_templates=templates).deltas()
    monkeypatch.setenv("KE_STATS_DIR", str(tmp_path))  # another tokenizer, so other statistics
    two = editor.edit(model, added, REQUESTS, context_templates=templates).deltas()
    assert all(relative(two[name], one[name]) < 1e-5 for name in one)


def test_no_requests(editor, tiny_gpt2):
    with pytest.raises(editors.EditingError, match="at least one"):
        editor.edit(*tiny_gpt2, [])


def test_layer_beyond_the_model(editor, tiny_gpt2):
    if editor.name in LEARNED:
        pytest.skip("learned editors name whole weights, when they are trained")
    with pytest.raises(editors.EditingError, match="17"):
        editors.load(editor.name, HPARAMS[editor.name] | {"layers": [17]}).edit(*tiny_gpt2, REQUESTS)


def test_numbers_that_overflow_end_in_one_line(editor, tiny_gpt2):
    """Weights that are finite, of a model whose answers are not."""
    model, tok = tiny_gpt2
    if editor.name in LEARNED:
        pytest.skip("a trained editor is of the model that it was trained for")
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.transformer.ln_f.weight.fill_(1e30)
        broken.transformer.wte.weight.mul_(1e12)
    with pytest.raises(editors.EditingError, match="not finite|is nan|is inf|NaN") as error:
        editor.edit(broken, tok, REQUESTS, progress=False)
    assert "\n" not in str(error.value)


def test_batch_order_does_not_matter(editor, tiny_gpt2):
    if editor.name in ("ROME", "KE"):
        pytest.skip("it edits one request after another, so the order matters by definition")
    model, tok = tiny_gpt2
    one, two = (editor.edit(model, tok, requests).deltas() for requests in (REQUESTS, REQUESTS[::-1]))
    assert all(relative(one[name], two[name]) < 1e-3 for name in one)


def test_factors_go_with_their_model(tiny_gpt2):
    """What is kept between batches (statistics, Cholesky factors) does not outlive the model."""
    model = copy.deepcopy(tiny_gpt2[0])
    editors.load("MEMIT", HPARAMS["MEMIT"]).edit(model, tiny_gpt2[1], REQUESTS[:1])
    moments = [weakref.ref(moment) for moment in kept(model, "moments").values()]
    assert moments and all(moment()._factors for moment in moments)
    del model
    gc.collect()
    assert not any(moment() for moment in moments)


def test_works_without_gradients(editor, tiny_gpt2):
    """Inside no_grad as outside."""
    model, tok = tiny_gpt2
    with torch.no_grad():
        one = editor.edit(model, tok, REQUESTS[:1]).deltas()
    two = editor.edit(model, tok, REQUESTS[:1]).deltas()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("bound", [5e-4, 2e-3])
def test_ft_constraint_holds_in_half_precision(tiny_gpt2, bound):
    model = copy.deepcopy(tiny_gpt2[0]).to(torch.bfloat16)
    hparams = HPARAMS["FT"] | {"norm_constraint": bound, "num_steps": 5}
    for delta in editors.load("FT", hparams).edit(model, tiny_gpt2[1], REQUESTS).deltas().values():
        assert 0 < delta.abs().max() <= bound * (1 + 1e-4)


@pytest.mark.parametrize("change, message", [
    ({"weight_decay": -1}, "weight_decay: -1 must be"), ({"wd_power_law": [1, 1000]}, "wd_power_law"),
    ({"lr": float("nan")}, "lr: nan must be a finite number above 0"), ({"num_steps": 0}, "num_steps: 0 must be at least 1"),
    ({"norm_constraint": True}, "norm_constraint is true, expected a number or false or null"),
    ({"rewrite_module_tmp": "transformer.h.{}.mlp.{}"}, "rewrite_module_tmp: .* needs exactly one '{}'"),
    ({"rewrite_module_tmp": "transformer.h.{layer}"}, "rewrite_module_tmp"),
])
def test_bad_hparams_of_ft(change, message):
    with pytest.raises(editors.EditingError, match=message):
        editors.load("FT", HPARAMS["FT"] | change)


def test_ft_does_not_take_nan_for_a_loss_that_is_low_enough(tiny_gpt2):
    model, tok = copy.deepcopy(tiny_gpt2[0]), tiny_gpt2[1]
    ft = editors.load("FT", {**HPARAMS["FT"], "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj"})
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(1e30)
        model.transformer.wte.weight.mul_(1e12)
    with pytest.raises(editors.EditingError, match="the loss is (nan|inf): load the model in a wider dtype, or lower lr"):
        ft.edit(model, tok, REQUESTS, progress=False)
