"""The batched, prefix-cached optimisation equals a plain loop: one request and one context at a time, whole model, no cache."""

from types import SimpleNamespace

import pytest
import torch

from editors.core.decoder import Decoder
from editors.core.prompts import FACT_TOKENS, Request, encode_target, fill, locate
from editors.core.modules import by_row, first, get_module, logits_of
from editors.core.sites import find_sites
from editors.core.values import optimise
from tests.conftest import relative
from tests.models import ARCHITECTURES, TOKENIZERS, tiny_model, tiny_tokenizer

LAYER = 1
TEMPLATES = ["{}", "The city of Lutmere. {}"]
REQUESTS = [
    Request("{} lives in the city of", "Orla Venn", " Lutmere"),
    Request("The native language of {} is", "Tamsin Brackholt", " Nyvian and"),
    Request("On market days, in the city, {} works as a", "Zoë", " clockmaker"),
]
TOLERANCE = 1e-4
SETTINGS = dict(
    fact_token="subject_last", v_num_grad_steps=5, v_lr=0.5, v_loss_layer=None, v_weight_decay=0.5, clamp_norm_factor=0.75,
    kl_factor=0.5, kl_prompt="{} is a", target_tokens="ids", end_of_text=False,
)


def plainly(model, tok, request, settings, site):
    """(initial state, target state) by the definition (MEMIT section 4.2, ROME section 3.1), with torch's own Adam."""
    sites = find_sites(model)
    inner = settings.v_loss_layer if site == "block" else None  # ROME scores at the model's output whatever it is
    target = torch.tensor(encode_target(tok, request.target_new))
    rows = [locate(tok, fill(t, request.prompt), request.subject, settings.fact_token) for t in TEMPLATES]
    kl_row = locate(tok, settings.kl_prompt, request.subject, settings.fact_token)
    delta = torch.zeros(sites.d_model, dtype=model.dtype, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=settings.v_lr)
    states = {}

    def run(ids, index):
        """Logits of one text with delta added; notes the state that stood there and the loss layer's output."""
        def add(module, args, output):
            changed = by_row(first(output), 1).clone()
            states.setdefault("initial", changed[0, index].detach().clone())
            changed[0, index] += delta
            changed = changed.reshape(first(output).shape)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        hooks = [get_module(model, sites.name(site, LAYER)).register_forward_hook(add)]
        if inner is not None:
            block = get_module(model, sites.name("block", inner))
            hooks.append(block.register_forward_hook(lambda module, args, output: states.update(lens=first(output)[0])))
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
        for hook in hooks:
            hook.remove()
        return logits

    for step in range(settings.v_num_grad_steps):
        loss = 0
        for row in rows:
            logits = run(row.ids + target[:-1].tolist(), row.index)
            if inner is not None:
                logits = logits_of(model, sites.lm_head, get_module(model, sites.final_norm)(states["lens"]))
            log_p = logits[len(row.ids) - 1 :].log_softmax(-1)
            loss = loss - log_p.gather(1, target[:, None]).mean() / len(rows)
        edited = run(kl_row.ids, kl_row.index)[kl_row.index].log_softmax(-1)
        unedited = states.setdefault("unedited", edited.detach())
        loss = loss + settings.kl_factor * (edited.exp() * (edited - unedited)).sum()
        initial = states["initial"].norm()
        loss = loss + settings.v_weight_decay * delta.norm() / initial**2
        if loss < 0.05 or step == settings.v_num_grad_steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            delta *= min(1, settings.clamp_norm_factor * initial / delta.norm())
    return states["initial"], states["initial"] + delta.detach()


def check(arch, tokenizer, site, **changes):
    model, tok = tiny_model(arch).double(), tiny_tokenizer(tokenizer)
    settings = SimpleNamespace(**SETTINGS | changes)
    # Through one block of a short window the first request's target does not see its subject: no gradient, but rounding.
    requests = REQUESTS if settings.v_loss_layer is None else REQUESTS[1:]
    values = optimise(Decoder.of(model, tok), requests, LAYER, settings, TEMPLATES, site, progress=False)
    for i, request in enumerate(requests):
        initial, target = plainly(model, tok, request, settings, site)
        assert relative(values.initial[i], initial) < 3e-6
        assert relative(values.delta[i], target - initial) < TOLERANCE
        assert values.delta[i].norm() > 0.1 * initial.norm()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("site, v_loss_layer", [("block", None), ("block", 2), ("down_proj", None), ("down_proj", 2)])
def test_every_architecture(arch, site, v_loss_layer):
    """BOS before each text; windows are shorter than the prompts; the loss at the last block or an inner one (not ROME's)."""
    check(arch, "byte_level_bos", site, v_loss_layer=v_loss_layer)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("site", ["block", "down_proj"])
def test_every_tokenizer(tokenizer, site):
    check("llama", tokenizer, site)


@pytest.mark.parametrize("fact_token", FACT_TOKENS)
def test_every_fact_token(fact_token):
    check("gpt2", "byte_level_bos", "block", fact_token=fact_token)


def test_without_the_kl_term():
    check("gpt2", "byte_level_bos", "block", kl_factor=0.0)
    check("gpt2", "byte_level_bos", "block", kl_prompt="Avui, {} és")
