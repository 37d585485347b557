"""`python -m experiments.bench memory`: what a query costs SERAC's scope classifier, by the number of edits in its memory.

For each size: seconds a query, in batches, of the search for the nearest edit among vectors that the memory holds; the same
with every distance computed one by one (log_similarity), whose answers must agree; and the encoder's pass over the queries,
which does not depend on the memory. Vectors are random, of the width of the published encoder by default. With --out the
numbers become a file for `python -m figures.memory`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from data.files import write_json
from editors.memory.scope import log_similarity, nearest
from editors.memory.store import EditStore
from experiments.run.cli import at_least_one

from experiments.bench.options import options, parse
from experiments.bench.race import timed

SIZES = (1, 10, 100, 1000, 10_000, 100_000)
PLAIN = 10_000
"""The largest memory with which distances are also computed one by one: it takes queries x edits x width numbers."""


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Prints a line a size and returns the numbers; exits with 1 if the two ways find different edits."""
    parser = options(
        "memory", __doc__, queries=(32, "in a batch"), width=(768, "of a vector"), layers=(6, "of the encoder"),
        tokens=(16, "of a query"), repeats=(5, "the fastest counts"))
    parser.add_argument("--sizes", type=at_least_one, nargs="+", default=list(SIZES),
                        help="edits in the memory (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="a JSON file for the figure")
    args = parse(parser, argv)
    torch.manual_seed(args.seed)

    shape = {"hidden_size": args.width, "num_hidden_layers": args.layers, "num_attention_heads": max(1, args.width // 64)}
    encoder = BertModel(BertConfig(**shape, intermediate_size=4 * args.width, vocab_size=1000)).eval()
    ids = torch.randint(1000, (args.queries, args.tokens))
    with torch.no_grad():
        encoding = _fastest(lambda: encoder(ids), args.repeats) / args.queries
    print(f"{args.queries} queries of {args.tokens} tokens a batch, width {args.width}, {args.threads} threads; "
          f"the encoder takes {1e3 * encoding:.3f} ms a query")
    rows = []
    for size in sorted(args.sizes):
        vectors = torch.randn(size, args.width)
        queries = vectors[torch.randint(size, (args.queries,))] + 0.1 * torch.randn(args.queries, args.width)
        memory = EditStore()
        for i in range(size):
            memory.add(f"edit {i}", "x")
        memory.vectors(lambda entries: vectors, "bench")  # from now on they are there
        search = _fastest(lambda: nearest(queries, memory.vectors(_not_again, "bench")), args.repeats) / args.queries
        row = {"edits": size, "search": search, "encoder": encoding, "plain": None}
        text = f"{size:>8,} edits: search {1e3 * search:9.4f} ms a query"
        if size <= PLAIN:
            row["plain"] = _fastest(lambda: log_similarity(queries, vectors).max(1), 1) / args.queries
            text += f", one by one {1e3 * row['plain']:9.4f} ms, ratio {row['plain'] / search:.1f}"
            if not torch.equal(nearest(queries, vectors)[1], log_similarity(queries, vectors).argmax(1)):
                raise SystemExit(f"with {size} edits the two ways find different edits")
        print(text)
        rows.append(row)
    if args.out:
        about = {name: getattr(args, name) for name in ("queries", "width", "layers", "tokens", "threads", "seed")}
        write_json(args.out, {"about": about, "sizes": rows})
    return rows


def _not_again(entries) -> torch.Tensor:
    raise AssertionError("vectors that the memory has are computed again")


def _fastest(act: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of so many times, after one that does not count."""
    act()
    return min(timed(act)[1] for _ in range(repeats))
