"""`python -m experiments.bench PART [options of the part]`; the parts are values, stats, evaluate, solve, ... (--help)."""

import argparse
import importlib
import sys

from experiments.run.cli import Parser, run_program

PARTS = {
    "values": "target hidden states: batched with a prefix cache, against one request at a time through the whole model",
    "stats": "second moments: all layers in one pass, against one pass a layer",
    "evaluate": "metrics: batched across cases, against one case at a time",
    "solve": "closed forms: a factor that is kept, against LU of the full system each time",
    "probes": "probes of attention heads: one batched solve, against one scikit-learn fit a head",
    "trace": "causal tracing: batched over tokens, layers and prompts, from the token and block on, against one run a cell",
    "edits": "an evaluation of 10,000 edits at once, from nothing: time and memory, step by step",
    "ranks": "several processes by torchrun, against one",
    "learned": "MEND edits: factors from hooks, against full gradients and weights",
    "memory": "a query to SERAC's memory, by the number of its edits: searched, against all distances one by one",
    "kill": "no race: an evaluation that is killed and continued, against one that is not",
}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(
        prog="python -m experiments.bench", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Same process, same inputs, same torch settings; results are compared, and the ratio of times is printed.",
        epilog="\n".join(f"{part:10}{what}" for part, what in PARTS.items()) + "\n\noptions of a part: <part> --help")
    parser.add_argument("part", choices=PARTS)
    part = parser.parse_args(argv[:1]).part
    importlib.import_module(f"experiments.bench.{part}").main(argv[1:])


if __name__ == "__main__":
    run_program(main)
