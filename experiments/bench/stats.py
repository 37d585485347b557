"""`python -m experiments.bench stats`: second moments of several layers, in one pass against one pass a layer.

The model is a random GPT-2 of the small shape (12 blocks, width 768, vocabulary 50,257), the texts are random words with
lengths spread like those of encyclopedia articles. The plain loop does what the published code does for each layer: tokenise,
sort 100 texts by length, pack them under 3 * n_positions tokens with padding, run the model up to the layer's down-projection,
drop padding, add the keys' product in place.
"""

import random
import time
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from editors.core.budget import statistics_tokens
from editors.core.decoder import Decoder
from editors.core.key_sums import KeySums, add_batch, batches
from experiments.run.cli import at_least_one

from experiments.bench.inputs import random_gpt2, SMALL, TINY, word_tokenizer
from experiments.bench.options import options, parse

TOLERANCE = 1e-6
"""Largest relative difference (Frobenius) between the two ways' moments that counts as equal."""


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Prints seconds of both ways, their ratio and the largest difference; returns them. Exits with 1 if the moments differ."""
    parser = options("stats", __doc__, tiny=True)
    parser.add_argument("--layers", type=_layers, default="4,5,6,7,8",
                        help="comma list of blocks, counted from 0 (default: %(default)s)")
    parser.add_argument("--texts", type=at_least_one, default=100, help="number of texts (default: %(default)s)")
    parser.add_argument("--repeats", type=at_least_one, default=1,
                        help="times that each way runs, in turn (default: %(default)s)")
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
    moments, wall, cpu = {}, {"ours": [], "plain": []}, {"ours": [], "plain": []}
    with torch.no_grad():
        for _ in tqdm(range(args.repeats), desc="repeats", unit="run"):
            # In turn, so that whatever else runs on the machine slows both.
            for way, run in ways.items():
                start, start_cpu = time.perf_counter(), time.process_time()
                moments[way] = run()
                wall[way].append(time.perf_counter() - start)
                cpu[way].append(time.process_time() - start_cpu)

    difference = max(float((moments["ours"][layer] - plain).norm() / plain.norm()) for layer, plain in moments["plain"].items())
    result = {
        "ours_seconds": min(wall["ours"]), "plain_seconds": min(wall["plain"]),
        "ratio": min(wall["plain"]) / min(wall["ours"]),
        "cpu_ratio": min(cpu["plain"]) / min(cpu["ours"]),
        "difference": difference,
    }
    tokens = sum(len(tok(text, truncation=True, max_length=shape["n_positions"])["input_ids"]) for text in texts)
    print(f"layers {', '.join(map(str, layers))} of {shape['n_layer']}, width {shape['n_embd']}, {len(texts)} texts, "
          f"{tokens} tokens, {args.threads} threads, best of {args.repeats}")
    print(f"one pass a layer (published way): {min(wall['plain']):8.2f} s, {min(cpu['plain']):8.2f} s of processor time")
    print(f"one pass for all layers (ours):   {min(wall['ours']):8.2f} s, {min(cpu['ours']):8.2f} s of processor time")
    print(f"ratio: {result['ratio']:.2f} (of processor time {result['cpu_ratio']:.2f}, which a busy machine disturbs less); "
          f"largest relative difference of a moment: {difference:.1e}")
    if difference > TOLERANCE:
        raise SystemExit(f"the moments differ by more than {TOLERANCE}")
    return result


def _layers(text: str) -> list[int]:
    return [int(layer) for layer in text.split(",")]


def _one_pass(decoder: Decoder, texts: Sequence[str], layers: Sequence[int]) -> dict[int, torch.Tensor]:
    """{layer: moment} in the way of editors.core.covariance, without its files."""
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


def _published_packing(rows: list[list[int]], budget: int) -> list[list[list[int]]]:
    """Longest first; a new batch begins when width * (rows + 1) would exceed the budget."""
    packed: list[list[list[int]]] = []
    for row in sorted(filter(None, rows), key=len, reverse=True):
        if not packed or len(packed[-1][0]) * (len(packed[-1]) + 1) > budget:
            packed.append([])
        packed[-1].append(row)
    return packed


def _made_up_texts(number: int, shape: dict[str, int], seed: int) -> list[str]:
    """Random words; lengths are log-normal with the median at a quarter of the context, some texts exceed it."""
    rng = random.Random(seed)
    lengths = [max(1, round(rng.lognormvariate(0, 1) * shape["n_positions"] / 4)) for _ in range(number)]
    return [" ".join(f"w{rng.randrange(shape['vocab_size'])}" for _ in range(length)) for length in lengths]
