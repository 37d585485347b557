"""A forward pass that fails, wherever it fails, leaves the model as it was: no hook, no replaced forward, no mode, no flag."""

from types import SimpleNamespace

import pytest
import torch

from common.errors import UserError
from editors.core import contexts, key_sums
from editors.core.decoder import Decoder
from editors.core.keys import compute_hidden, compute_keys, layer_io
from editors.core.modules import LeaveForward, hooked
from editors.core.prompts import Request
from editors.core.site_search import search
from editors.core.sites import find_sites, weight_of
from editors.core.values import optimise
from tests.models import tiny_model, tiny_tokenizer

REQUESTS = [Request("{} lives in the city of", "Orla Venn", " Lutmere"), Request("The work of {} is", "Zoë", " clockmaker of")]
GROUPS = [["{}"], ["The city of Lutmere. {}"]]
SETTINGS = dict(
    fact_token="subject_last", v_num_grad_steps=3, v_lr=0.5, v_loss_layer=None, v_weight_decay=0.5, clamp_norm_factor=0.75,
    kl_factor=0.0625, kl_prompt="{} is a", target_tokens="ids", end_of_text=False,
)
TOK = tiny_tokenizer("byte_level_bos")


def add_batch(model):
    sites = find_sites(model)
    width = max(weight_of(model, sites, 1)[1].shape)
    sums = {layer: key_sums.KeySums(width, torch.float32, model.device) for layer in (1, 3)}
    key_sums.add_batch(Decoder(model, None, sites), sums, [[5, 6, 7], [8]])


def values(site, **changes):
    def run(model):
        settings = SimpleNamespace(**SETTINGS | changes)
        optimise(Decoder.of(model, TOK), REQUESTS, 1, settings, GROUPS[0] + GROUPS[1], site, progress=False)
    return run


OPERATIONS = {
    "sites": lambda model: search(model, {}),
    "keys": lambda model: compute_keys(Decoder.of(model, TOK), REQUESTS, [3, 1], GROUPS),
    "hidden": lambda model: compute_hidden(Decoder.of(model, TOK), REQUESTS, 3),
    "layer_io": lambda model: layer_io(Decoder.of(model, TOK), REQUESTS[0], 3, GROUPS, "subject_last"),
    "sums": add_batch,
    "contexts": lambda model: contexts._sample(model, [[1], [1, 7]], 4, torch.Generator()),
    "z": values("block"),
    "z at an inner block": values("block", v_loss_layer=2),
    "v": values("down_proj"),
}


class Broken(Exception):
    pass


def state(model, ids):
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)]
    modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        return hooks, modes, flags, model.eval()(ids).logits.tolist(), model.train() and None


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_nothing_is_left_behind(arch, operation):
    """The last block fails at its first call, then at its second, ..., until the operation gets through."""
    model, ids = tiny_model(arch).train(), torch.tensor([[1, 5, 9, 4]])
    find_sites(model)
    before = state(model, ids)
    assert before[0] == []
    blocks = model.transformer.h if arch == "gpt2" else model.model.layers
    for number in range(100):
        calls = []

        def fail(module, args, kwargs):
            calls.append(module)
            if len(calls) == number + 1:
                raise Broken

        hook = blocks[3].register_forward_pre_hook(fail, with_kwargs=True)
        try:
            OPERATIONS[operation](model)
            done = True
        except Broken:
            done = False
        hook.remove()
        assert state(model, ids) == before
        if done:
            break
    assert done and number == len(calls) >= 1


def test_hooks_that_were_placed_go_when_a_later_one_cannot_be():
    model = tiny_model("gpt2")

    def handles():
        yield model.transformer.h[0].register_forward_hook(print)
        yield model.get_submodule("transformer.h.9").register_forward_hook(print)

    with pytest.raises(AttributeError), hooked(handles()):
        pass
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(UserError, match="no module 'transformer.h.9.mlp.c_proj'"):
        sites = SimpleNamespace(
            name=lambda site, layer: f"transformer.h.{layer}.mlp.c_proj", d_model=32, decoder="transformer")
        compute_keys(Decoder(model, TOK, sites), REQUESTS, [9], GROUPS)


def test_leaving_ends_the_pass_and_nothing_else():
    model, ran = tiny_model("gpt2"), []

    def leave(module, args, output):
        raise LeaveForward

    with hooked([model.transformer.h[1].register_forward_hook(leave),
                 model.transformer.h[2].register_forward_hook(lambda *_: ran.append(2))]):
        model(torch.tensor([[1, 5]]))
        ran.append("behind")
    assert not ran and not any(m._forward_hooks for m in model.modules())
