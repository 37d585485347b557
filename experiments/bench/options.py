"""The options that the benchmarks share."""

import argparse
from collections.abc import Sequence

import torch

from experiments.run.cli import a_seed, at_least_one, Parser


def options(part: str, doc: str, seed: bool = True, tiny: bool = False, **counts: tuple[int, str]) -> Parser:
    """A parser with --threads, --seed and --tiny; the first paragraph of ``doc`` is its description.

    counts: further options that are whole numbers from 1, by name: (default, help).
    """
    parser = Parser(prog=f"python -m experiments.bench {part}", description=doc.split("\n\n")[0])
    parser.add_argument("--threads", type=at_least_one, default=torch.get_num_threads(),
                        help="torch threads (default: %(default)s)")
    if seed:
        parser.add_argument("--seed", type=a_seed, default=0, help="of all that is random (default: %(default)s)")
    if tiny:
        parser.add_argument("--tiny", action="store_true", help="a tiny model: tests the program, its times mean nothing")
    for name, (default, what) in counts.items():
        parser.add_argument(f"--{name}", type=at_least_one, default=default, help=f"{what} (default: %(default)s)".strip())
    return parser


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, their threads set."""
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    return args
