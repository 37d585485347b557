"""`python -m experiments.bench values`: target hidden states, batched with a prefix cache, against the published way.

A random GPT-2 of the small shape (12 blocks, width 768, vocabulary 50,257), requests of random words, five sampled-looking
contexts and the bare one, 25 steps, edit at block 8. The plain loop takes one request at a time; every step runs the whole
model over all positions of 6 contexts and the KL prompt, right-padded, computes the logits of all positions twice (once for
the KL term, once from the last block for the target), and goes back through both.
"""

import random
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from tqdm import tqdm

from editors.core.decoder import Decoder
from editors.core.prompts import Request, fill, locate, pad_batch, pad_id
from editors.core.modules import first, get_module
from editors.core.values import LOSS_GOAL, optimise

from experiments.run.cli import a_count

from experiments.bench.inputs import random_gpt2, SMALL, TINY, word_tokenizer
from experiments.bench.options import options, parse
from experiments.bench.race import race, require_equal

TOLERANCE = 1e-4
SETTINGS = SimpleNamespace(
    fact_token="subject_last", v_num_grad_steps=25, v_lr=0.5, v_loss_layer=None, v_weight_decay=0.5,
    clamp_norm_factor=0.75, kl_factor=0.0625, kl_prompt="{} is a", target_tokens="ids", end_of_text=False,
)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Prints seconds a request of both ways, their ratio and the largest difference; exits with 1 if the states differ."""
    parser = options("values", __doc__, tiny=True, requests=(8, ""), repeats=(1, "times that each way runs, in turn"))
    parser.add_argument("--layer", type=a_count, default=8, help="edited block (default: %(default)s)")
    args = parse(parser, argv)
    shape = TINY if args.tiny else SMALL
    if args.layer >= shape["n_layer"]:
        parser.error(f"--layer {args.layer}: the model has blocks 0 to {shape['n_layer'] - 1}")
    model, tok = random_gpt2(shape, args.seed), word_tokenizer(shape["vocab_size"])
    if args.tiny:
        model.double()  # so small and random a model amplifies float32's rounding over the steps
    decoder = Decoder.of(model, tok)
    requests, templates = made_up_requests(args.requests, shape["vocab_size"], args.seed)

    run = race({
        "ours": lambda: optimise(decoder, requests, args.layer, SETTINGS, templates, "block", progress=False).target,
        "plain": lambda: torch.stack([_plain(decoder, request, args.layer, templates)
                                      for request in tqdm(requests, desc="plain", unit="request")]),
    }, args.repeats)
    seconds_each = {way: run.best(way) / len(requests) for way in run.seconds}
    ratio = seconds_each["plain"] / seconds_each["ours"]
    ours, plain = run.results["ours"], run.results["plain"]
    difference = float(((ours - plain).norm(dim=1) / plain.norm(dim=1)).max())
    print(f"{len(requests)} requests, {len(templates)} contexts, {SETTINGS.v_num_grad_steps} steps, block {args.layer} of "
          f"{shape['n_layer']}, width {shape['n_embd']}, {args.threads} threads, best of {args.repeats}")
    print(f"one request at a time (published way): {seconds_each['plain']:8.3f} s a request")
    print(f"together, prefix cached (ours):        {seconds_each['ours']:8.3f} s a request")
    print(f"ratio: {ratio:.1f}; largest relative difference of a target state: {difference:.1e}")
    require_equal(difference, TOLERANCE, "target states")
    return {"ratio": ratio, "difference": difference, **seconds_each}


def made_up_requests(number: int, vocabulary: int, seed: int) -> tuple[list[Request], list[str]]:
    """Requests of the shape of CounterFact's: a subject of 2 to 4 tokens, 3 to 7 tokens after it, a target of 1 or 2."""
    rng = random.Random(seed)

    def words(least: int, most: int) -> str:
        return " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(rng.randint(least, most)))

    requests = []
    for i in range(number):
        before = words(2, 5) + " " if rng.random() < 0.4 else ""
        requests.append(Request(f"{before}{{}} {words(3, 7)}", words(2, 4), " " + words(1, 2), case_id=i))
    return requests, ["{}"] + [words(9, 9) + " . {}" for _ in range(5)]


def _plain(decoder: Decoder, request: Request, layer: int, templates: Sequence[str]) -> torch.Tensor:
    """The target state of one request, as the published code finds it."""
    model, tok, sites = decoder.model, decoder.tok, decoder.sites
    target = request.target_ids(tok)
    located = [locate(tok, fill(t, request.prompt), request.subject, SETTINGS.fact_token) for t in templates]
    kl = locate(tok, SETTINGS.kl_prompt, request.subject, SETTINGS.fact_token)
    rows = [x.ids + target[:-1] for x in located] + [kl.ids]
    lookups = torch.tensor([x.index for x in located] + [kl.index])
    batch = pad_batch(rows, pad_id(tok), model.device)
    row_numbers = torch.arange(len(rows))
    target_ids = torch.full(batch["input_ids"][:-1].shape, -100)
    for i, row in enumerate(rows[:-1]):
        target_ids[i, len(row) - len(target) : len(row)] = torch.tensor(target)
    delta = torch.zeros(sites.d_model, dtype=model.dtype, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=SETTINGS.v_lr)
    initial, kl_initial, last = None, None, {}

    def edit(module, args, output):
        nonlocal initial
        hidden = first(output).clone()
        if initial is None:
            initial = hidden[0, lookups[0]].detach()
        hidden[row_numbers, lookups] = hidden[row_numbers, lookups] + delta
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    def keep(module, args, output):
        last["hidden"] = first(output)

    hooks = [
        decoder.block(layer).register_forward_hook(edit),
        decoder.block(sites.layers - 1).register_forward_hook(keep),
    ]
    head, norm = get_module(model, sites.lm_head).weight, decoder.final_norm
    model.requires_grad_(False)
    try:
        for step in range(SETTINGS.v_num_grad_steps):
            optimiser.zero_grad()
            logits = model(**batch).logits
            edited = logits[-1, kl.index].log_softmax(-1)
            if kl_initial is None:
                kl_initial = edited.detach()
            log_p = (norm(last["hidden"][:-1]) @ head.T).log_softmax(-1)
            chosen = log_p.gather(2, target_ids.clamp_min(0)[:, :, None])[:, :, 0]
            nll = -(chosen * (target_ids != -100)).sum(1) / len(target)
            loss = nll.mean() + SETTINGS.kl_factor * (edited.exp() * (edited - kl_initial)).sum()
            loss = loss + SETTINGS.v_weight_decay * delta.norm() / initial.norm() ** 2
            if loss < LOSS_GOAL or step == SETTINGS.v_num_grad_steps - 1:
                break
            loss.backward()
            optimiser.step()
            radius = SETTINGS.clamp_norm_factor * initial.norm()
            with torch.no_grad():
                if delta.norm() > radius:
                    delta.mul_(radius / delta.norm())
    finally:
        for hook in hooks:
            hook.remove()
        model.requires_grad_(True)
    return (initial + delta).detach()
