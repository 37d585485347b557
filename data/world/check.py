"""Prints how much of the world a checkpoint recalls greedily: `python -m data.world.check [folder] [--every N]`."""
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.errors import UserError
from common.programs import Parser, run_program
from data.world import BASE_FACTS, CHECKPOINT, LANGUAGES, SEED, world as built_in_world
from data.world.recall import recall


def main(argv=None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=CHECKPOINT, help="a checkpoint (default: the shipped one)")
    parser.add_argument("--every", type=int, default=1, help="only every N-th fact")
    parser.add_argument("--facts", type=int, default=BASE_FACTS)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args(argv)
    if not (args.folder / "config.json").is_file():
        raise UserError(f"{args.folder}: no model there (no config.json)")
    if args.every < 1:
        raise UserError(f"--every must be at least 1, not {args.every}")
    try:
        model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32).eval()
        tok = AutoTokenizer.from_pretrained(args.folder)
    except ValueError as error:
        raise UserError(f"{args.folder}: no model that loads ({' '.join(str(error).split())[:160]})") from None
    world = built_in_world(args.facts, args.seed)
    facts = world.facts[::args.every]
    print(f"{len(facts)} facts; greedy recall (%) on phrasings 1, 2, ... of each language")
    for prefixed in (False, True):
        shares = recall(model, tok, world, facts, prefixed=prefixed)
        for language in LANGUAGES:
            row = "  ".join(f"{100 * share:6.2f}" for share in shares[language])
            print(f"{language}  {'after an unrelated sentence' if prefixed else 'alone':28}{row}")


if __name__ == "__main__":
    run_program(main)
