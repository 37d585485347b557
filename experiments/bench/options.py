"""Options that the benchmarks share."""

import argparse
from collections.abc import Sequence

import torch

from experiments.run.cli import a_seed, at_least_one, Parser


def options(part: str, doc: str, seed: bool = True, tiny: bool = False) -> Parser:
    """A parser with --threads, --seed and --tiny; the first sentence of ``doc`` is its description."""
    parser = Parser(prog=f"python -m experiments.bench {part}", description=doc.split("\n\n")[0])
    parser.add_argument("--threads", type=at_least_one, default=torch.get_num_threads(), help="torch threads (default: %(default)s)")
    if seed:
        parser.add_argument("--seed", type=a_seed, default=0, help="of all that is random (default: %(default)s)")
    if tiny:
        parser.add_argument("--tiny", action="store_true", help="a tiny model: tests the program, its times mean nothing")
    return parser


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, their threads set."""
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    return args
