"""`python -m experiments.bench stats`: second moments of several layers, in one pass against one pass a layer.

The model is a random GPT-2 of the small shape (12 blocks, width 768, vocabulary 50,257), the texts are random words with
lengths spread like those of encyclopedia articles. The plain loop does what the published code does for each layer: tokenise,
sort 100 texts by length, pack them under 3 * n_positions tokens with padding, run the model up to the layer's down-projection,
drop padding, add the keys' product in place.
"""

import random
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from editors.core.budget import statistics_tokens
from editors.core.decoder import Decoder
from editors.core.key_sums import KeySums, add_batch, batches
from experiments.bench.inputs import random_gpt2, SMALL, TINY, word_tokenizer
from experiments.bench.options import options, parse
from experiments.bench.race import race, require_equal

TOLERANCE = 1e-6
"""Largest relative difference (Frobenius) between the two ways' moments that counts as equal."""


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Prints seconds of both ways, their ratio and the largest difference; returns them. Exits with 1 if the moments differ."""
    parser = options(
        "stats", __doc__, tiny=True, texts=(100, "number of texts"), repeats=(1, "times that each way runs, in turn"))
    parser.add_argument("--layers", type=_layers, default="4,5,6,7,8",
                        help="comma list of blocks, counted from 0 (default: %(default)s)")
    args = parse(parser, argv)
    layers = args.layers

    shape = TINY if args.tiny else SMALL
    model = random_gpt2(shape, args.seed)
    tok = word_tokenizer(shape["vocab_size"])
    texts = _made_up_texts(args.texts, shape, args.seed)
    decoder = Decoder.of(model, tok)

    ways = {
        "ours": lambda: _one_pass(decoder, texts, layers),
        "plain": lambda: {layer: _plain_pass(decoder, texts, layer) for layer in layers},
    }
    with torch.no_grad():
        run = race(ways, args.repeats)
    ours, busy = run.results["ours"], {way: min(seconds) for way, seconds in run.busy.items()}
    difference = max(float((ours[layer] - plain).norm() / plain.norm()) for layer, plain in run.results["plain"].items())
    result = {
        "ours_seconds": run.best("ours"), "plain_seconds": run.best("plain"), "ratio": run.best("plain") / run.best("ours"),
        "cpu_ratio": busy["plain"] / busy["ours"], "difference": difference,
    }
    tokens = sum(len(tok(text, truncation=True, max_length=shape["n_positions"])["input_ids"]) for text in texts)
    print(f"layers {', '.join(map(str, layers))} of {shape['n_layer']}, width {shape['n_embd']}, {len(texts)} texts, "
          f"{tokens} tokens, {args.threads} threads, best of {args.repeats}")
    print(f"one pass a layer (published way): {run.best('plain'):8.2f} s, {busy['plain']:8.2f} s of processor time")
    print(f"one pass for all layers (ours):   {run.best('ours'):8.2f} s, {busy['ours']:8.2f} s of processor time")
    print(f"ratio: {result['ratio']:.2f} (of processor time {result['cpu_ratio']:.2f}, which a busy machine disturbs less); "
          f"largest relative difference of a moment: {difference:.1e}")
    require_equal(difference, TOLERANCE, "moments")
    return result


def _layers(text: str) -> list[int]:
    return [int(layer) for layer in text.split(",")]


def _one_pass(decoder: Decoder, texts: Sequence[str], layers: Sequence[int]) -> dict[int, torch.Tensor]:
    """{layer: second moment} of all layers in one pass, as editors.core.covariance collects them, without its files."""
    model, tok = decoder.model, decoder.tok
    longest, d_in = model.config.n_positions, 4 * model.config.n_embd
    sums = {layer: KeySums(d_in, torch.float32, model.device) for layer in layers}
    count = 0
    for batch in batches(tok, texts, range(len(texts)), longest, statistics_tokens(decoder, d_in, longest)):
        add_batch(decoder, sums, batch.rows)
        count += sum(map(len, batch.rows))
    return {layer: part.tensors()["mom2"] / count for layer, part in sums.items()}


def _plain_pass(decoder: Decoder, texts: Sequence[str], layer: int) -> torch.Tensor:
    """The moment of one layer, as the published code collects it."""
    model, tok = decoder.model, decoder.tok
    longest, d_in = model.config.n_positions, 4 * model.config.n_embd
    mom2, count = torch.zeros(d_in, d_in), 0
    inputs = []

    def keep_and_stop(module, args, output):
        inputs.append(args[0])
        raise StopIteration

    handle = decoder.down_proj(layer).register_forward_hook(keep_and_stop)
    try:
        for start in range(0, len(texts), 100):
            rows = [tok(text, truncation=True, max_length=longest)["input_ids"] for text in texts[start : start + 100]]
            for packed in _published_packing(rows, 3 * longest):
                ids = pad_sequence([torch.tensor(row) for row in packed], batch_first=True)
                mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in packed], batch_first=True)
                positions = pad_sequence([torch.arange(len(row)) for row in packed], batch_first=True)
                try:
                    model(input_ids=ids, attention_mask=mask, position_ids=positions)
                except StopIteration:
                    pass
                keys = inputs.pop()[mask.bool()]
                mom2.addmm_(keys.T, keys)
                count += len(keys)
    finally:
        handle.remove()
    return mom2 / count


def _published_packing(rows: list[list[int]], token_limit: int) -> list[list[list[int]]]:
    """Longest first; a new batch begins when width * (rows + 1) would exceed the limit."""
    packed: list[list[list[int]]] = []
    for row in sorted(filter(None, rows), key=len, reverse=True):
        if not packed or len(packed[-1][0]) * (len(packed[-1]) + 1) > token_limit:
            packed.append([])
        packed[-1].append(row)
    return packed


def _made_up_texts(number: int, shape: dict[str, int], seed: int) -> list[str]:
    """Random words; lengths are log-normal with the median at a quarter of the context, some texts exceed it."""
    rng = random.Random(seed)
    lengths = [max(1, round(rng.lognormvariate(0, 1) * shape["n_positions"] / 4)) for _ in range(number)]
    return [" ".join(f"w{rng.randrange(shape['vocab_size'])}" for _ in range(length)) for length in lengths]
