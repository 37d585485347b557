"""`python -m experiments.bench trace`: causal tracing, all cells of many prompts together, against one run a cell.

A random GPT-2 of the small shape (12 blocks, width 768, vocabulary 50,257) and prompts of random words. The plain loop takes
one token and one block (or window) at a time and runs a clean and ten noisy copies of the prompt through the whole model, with
the logits of all positions. It runs a random sample of the cells; both are timed by the cell.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from data.known import KnownFact
from editors.core.decoder import Decoder
from editors.core.prompts import fill
from editors.core.modules import by_row, evaluating, first, get_module, hooked
from editors.core.tracing.noise import Noise
from editors.core.tracing.prompts import TracePrompt, trace_prompts
from editors.core.tracing.scores import KINDS, SEVERED, default_window, trace, window

from experiments.bench.inputs import random_gpt2, SMALL, TINY, word_tokenizer
from experiments.bench.options import options, parse
from experiments.bench.race import require_equal, timed
from experiments.bench.values import made_up_requests

TOLERANCE = 1e-4
STD = 0.1


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Prints milliseconds a cell of both ways, their ratio and the largest difference; exits with 1 if the scores differ."""
    args = parse(options("trace", __doc__, tiny=True, prompts=(8, ""), cells=(40, "that the plain loop runs")), argv)
    shape = TINY if args.tiny else SMALL
    model, tok = random_gpt2(shape, args.seed), word_tokenizer(shape["vocab_size"])
    decoder, noise = Decoder.of(model, tok), Noise("gaussian", STD)
    requests, _ = made_up_requests(args.prompts, shape["vocab_size"], args.seed)
    facts = [KnownFact(i, r.subject, "w1", fill(r.prompt, r.subject)) for i, r in enumerate(requests)]
    prompts, size = trace_prompts(tok, facts, None), default_window(decoder.sites.layers)

    ours, seconds = timed(lambda: trace(decoder, prompts, noise, size=size, known_only=False))
    cells = [(i, kind, token, layer) for i, traced in enumerate(ours) for kind, scores in traced.scores.items()
             for token in range(scores.shape[0]) for layer in range(scores.shape[1])]
    seconds_ours = seconds / len(cells)

    def run_plain() -> float:
        difference = 0.0
        for i, kind, token, layer in tqdm(chosen, desc="plain", unit="cell"):
            low, high = (layer, layer + 1) if kind == "state" else window(layer, size, decoder.sites.layers)
            plain = plain_score(decoder, prompts[i], noise, ours[i].answer, Restored(kind, token, low, high))
            difference = max(difference, abs(plain - ours[i].scores[kind][token, layer]) / plain)
        return difference

    chosen = random.Random(args.seed).sample(cells, min(args.cells, len(cells)))
    difference, seconds = timed(run_plain)
    seconds_plain = seconds / len(chosen)
    ratio = seconds_plain / seconds_ours
    print(f"{len(prompts)} prompts, {len(cells)} cells of hidden states and of MLPs and attentions in windows of {size}, "
          f"{noise.samples} samples, {shape['n_layer']} blocks of width {shape['n_embd']}, {args.threads} threads")
    print(f"one run a cell ({len(chosen)} of the cells): {1e3 * seconds_plain:9.2f} ms a cell")
    print(f"from the token and block on, batched (ours): {1e3 * seconds_ours:9.2f} ms a cell")
    print(f"ratio: {ratio:.1f}; largest relative difference of a score: {difference:.1e}")
    require_equal(difference, TOLERANCE, "scores")
    return {"ratio": ratio, "difference": difference, "ours": seconds_ours, "plain": seconds_plain}


@dataclass(frozen=True)
class Restored:
    """What is restored: outputs of a kind at one token, in the blocks `low` to `high` - 1."""

    kind: str
    token: int
    low: int
    high: int


def plain_score(
    decoder: Decoder, prompt: TracePrompt, noise: Noise, answer: int, cell: Restored | None, replace: bool = False
) -> float:
    """The answer's probability with a cell restored (None: nothing), in a run of its own.

    A kind of SEVERED takes two runs: what the modules put out in one that restores nothing is put in again.
    """
    model, sites, rows, outputs = decoder.model, decoder.sites, noise.samples + 1, {}
    cell = cell or Restored("state", 0, 0, 0)

    def corrupt(module, args, output):
        corrupted, place = output.clone(), (slice(1, rows), slice(prompt.start, prompt.end))
        drawn = noise.draw(prompt.end - prompt.start, output.shape[-1])
        corrupted[place] = (drawn if replace else corrupted[place] + drawn).to(output)
        return corrupted

    def restore(module, args, output):
        restored = by_row(first(output), rows).clone()
        restored[1:, cell.token] = restored[0, cell.token]
        restored = restored.reshape(first(output).shape)
        return restored if isinstance(output, torch.Tensor) else (restored, *output[1:])

    def run(hooks):
        handles = (get_module(model, name).register_forward_hook(hook) for name, hook in hooks)
        with evaluating(model), torch.no_grad(), hooked(handles):
            return model(input_ids=torch.tensor([prompt.ids] * rows, device=model.device)).logits

    def note(name):
        return lambda module, args, output: outputs.update({name: by_row(first(output), rows)[:, cell.token].clone()})

    def keep(name):
        def hook(module, args, output):
            changed = by_row(output, rows).clone()
            changed[1:, cell.token] = outputs[name][1:]
            return changed.reshape(output.shape)
        return hook

    hooks = [(sites.embed, corrupt)]
    if cell.kind in SEVERED:
        names = [sites.name(SEVERED[cell.kind], layer) for layer in range(cell.high, sites.layers)]
        run(hooks + [(name, note(name)) for name in names])
        hooks += [(name, keep(name)) for name in names]
    hooks += [(sites.name(KINDS.get(cell.kind, "block"), layer), restore) for layer in range(cell.low, cell.high)]
    logits = run(hooks)
    return float(logits[1:, -1].softmax(-1)[:, answer].mean())
