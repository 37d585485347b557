"""``python -m experiments.ledger FOLDER``: facts that a model shall hold, any of which can be taken back.

    python -m experiments.ledger facts.ledger --create --model_name world --alg_name MEMIT
    python -m experiments.ledger facts.ledger --add facts.csv
    python -m experiments.ledger facts.ledger --fact "{} plays the" "Astrid Skezurd" "drum"
    python -m experiments.ledger facts.ledger --list
    python -m experiments.ledger facts.ledger --remove 3 5
    python -m experiments.ledger facts.ledger --apply edit.safetensors
    python -m experiments.ledger facts.ledger --diff other.ledger

Of every fact its target state is kept, which is what takes long. --apply solves for the facts that are there from what is kept
and writes the edit (``Edit.load``, experiments.export), the same as if just these had been edited from the start. A fact is
known by its prompt and subject: one with another target is refused, or with --replace takes the older one's place.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.facts import read_facts
from editors.core.files import check_writable
from editors.core.recall import TargetNotReached
from editors.closed_form.ledger import Ledger, locked
from experiments.run.cli import Parser, run_program
from experiments.run.config import add_flags, ModelFlags, RunConfig


def create(args: argparse.Namespace) -> None:
    """Makes an empty ledger of an editor and its hyper-parameters for a model."""
    from experiments.run.hparams_file import load_editor

    config = RunConfig(alg_name=args.alg_name, hparams_fname=args.hparams_fname, model_name=args.model_name)
    hparams = load_editor(config)[0]
    with locked(args.folder):
        Ledger.create(args.folder, args.model_name, args.alg_name, hparams)
    print(f"{args.folder}: an empty ledger of {args.alg_name} for {args.model_name}")


def add(args: argparse.Namespace) -> None:
    """Adds the facts of a file, or those of the command line, and seeks their target states."""
    requests = read_facts(args.add) if args.add else []
    requests += [{"prompt": prompt, "subject": subject, "target_new": target} for prompt, subject, target in args.fact]
    with locked(args.folder):
        ledger = _read(args)
        there = set(ledger.facts)
        started = time.perf_counter()
        ids = ledger.add(*_model(args, ledger), requests, args.replace)
    new = len(set(ids) - there)
    print(f"{args.folder}: {new} facts added, {len(ids) - new} there before; {len(ledger.facts)} in all "
          f"({time.perf_counter() - started:.1f} s)")


def remove(args: argparse.Namespace) -> None:
    """Takes facts out by their ids."""
    with locked(args.folder):
        for fact in _read(args).remove(args.remove):
            print(f"removed {fact.id}: {fact.text} -> {fact.target_new}")


def show(args: argparse.Namespace) -> None:
    """Prints the facts."""
    ledger = _read(args)
    print(f"{len(ledger.facts)} facts, {ledger.editor}, {ledger.model_name}")
    for fact in ledger.facts.values():
        print(f"{fact.id:6d}  {fact.text} -> {fact.target_new}")


def apply(args: argparse.Namespace) -> None:
    """Writes the edit of the facts that are there, and prints what the edited model makes of each."""
    if args.apply.exists():
        raise UserError(f"{args.apply}: is there already; choose another name, or delete it")
    check_writable(args.apply.absolute().parent, "the edit")
    ledger = _read(args)
    model, tok = _model(args, ledger)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TargetNotReached)  # said fact by fact below
        edit = ledger.edit(model, tok)
    edit.save(args.apply)
    for fact, probability, reached in zip(ledger.facts.values(), edit.info["target_probability"], edit.info["reached"]):
        print(f"{fact.id:6d}  {fact.text} -> {fact.target_new}  {probability:.3f}" + ("" if reached else "  not reached"))
    print(f"written: {args.apply} ({len(ledger.facts)} facts, {time.perf_counter() - started:.1f} s)")


def diff(args: argparse.Namespace) -> None:
    """Prints the facts that only one of two ledgers holds, as + and -, and what else they differ in."""
    ledger, other = _read(args), Ledger.read(args.diff)
    for name in ("editor", "hparams", "basis"):
        if getattr(ledger, name) != getattr(other, name):
            print(f"{name} differs")
    facts, others = ({(fact.text, fact.target_new) for fact in each.facts.values()} for each in (ledger, other))
    lines = [*((fact, "-") for fact in facts - others), *((fact, "+") for fact in others - facts)]
    for (text, target), sign in sorted(lines):
        print(f"{sign} {text} -> {target}")
    print(f"{len(facts - others)} facts in {args.folder} alone, {len(others - facts)} in {args.diff} alone, "
          f"{len(facts & others)} in both")


def _read(args: argparse.Namespace) -> Ledger:
    def build(name: str, hparams: Mapping[str, Any]) -> Any:
        from experiments.run.hparams_file import configured

        return configured(RunConfig(alg_name=name), hparams)

    return Ledger.read(args.folder, build)


def _model(args: argparse.Namespace, ledger: Ledger) -> tuple[Any, Any]:
    from experiments.run.models import load_model

    return load_model(args.model_name or ledger.model_name, args.dtype, args.device)


def command() -> None:
    parser = Parser(prog="python -m experiments.ledger", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the ledger")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--create", action="store_true", help="make an empty one, of --alg_name for --model_name")
    action.add_argument("--add", type=Path, metavar="FACTS", help="add the facts of a .csv, .json or .jsonl file")
    action.add_argument("--fact", nargs=3, action="append", default=[], metavar=("PROMPT", "SUBJECT", "TARGET"),
                        help="add this fact; may be repeated")
    action.add_argument("--remove", type=int, nargs="+", metavar="ID", help="take facts out")
    action.add_argument("--list", action="store_true", help="print the facts")
    action.add_argument("--apply", type=Path, metavar="EDIT", help="write the edit of the facts that are there")
    action.add_argument("--diff", type=Path, metavar="LEDGER", help="print what another ledger holds that this one does not")
    parser.add_argument("--alg_name", help="--create: MEMIT, EMMET or AlphaEdit")
    parser.add_argument("--hparams_fname", help="--create: file in hparams/<alg_name>/, or a path (default: <model_name>.json)")
    parser.add_argument("--replace", action="store_true", help="--add, --fact: a fact that is there takes its new target")
    parser.add_argument("--model_name", help="hub id, folder, .gguf file, world or smollm2; by default the one of --create")
    add_flags(parser, ModelFlags, "dtype", "device")
    args = parser.parse_args()
    if args.create and not (args.alg_name and args.model_name):
        raise UserError("--create needs --alg_name and --model_name")
    if not args.create and (args.alg_name or args.hparams_fname):
        raise UserError(f"--{'alg_name' if args.alg_name else 'hparams_fname'} has no effect without --create")
    if args.replace and not (args.add or args.fact):
        raise UserError("--replace has no effect without --add or --fact")
    actions = {"create": create, "add": add, "fact": add, "remove": remove, "list": show, "apply": apply, "diff": diff}
    next(function for name, function in actions.items() if getattr(args, name))(args)


if __name__ == "__main__":
    run_program(command)
