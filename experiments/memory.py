"""``python -m experiments.memory create|list|add|remove|update FILE``: the edits in a SERAC's memory; nothing is trained.

    python -m experiments.memory create edits.memory
    python -m experiments.memory add edits.memory "Where was Ann Keller born?" "Paris"
    python -m experiments.memory add edits.memory --from edits.jsonl        # {"input", "label"} or requests, one a line
    python -m experiments.memory update edits.memory 0 --label Rome
    python -m experiments.memory remove edits.memory 0 3
    python -m experiments.memory list edits.memory

FILE is also what a SERAC edit's ``save`` writes. Two edits whose inputs are equal, whatever their case and spacing, are about
the same thing: the newer one takes the older one's place and id. Ids are never given twice.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.episodes.lines import numbered_lines
from data.errors import DataError
from editors.core.prompts import fill, parse_requests
from editors.errors import EditingError
from editors.learned.memory import EditMemory
from experiments.cli import Parser, at_least_one, run_program

ACTIONS = ("create", "list", "add", "remove", "update")


def create(args: argparse.Namespace) -> None:
    if args.file.exists():
        raise EditingError(f"{args.file}: is there already")
    EditMemory(labelled=not args.statements).save(args.file)
    print(f"{args.file}: an empty memory")


def show(args: argparse.Namespace) -> None:
    memory, about = EditMemory.load(args.file)
    if args.json:
        for entry in memory:
            print(json.dumps({"id": entry.id, "input": entry.input, "label": entry.label}, ensure_ascii=False))
        return
    info = about.get("info", {})
    print(f"{len(memory)} edits" + (f" of {info['editor']}" if "editor" in info else ""))
    for number, entry in enumerate(memory):
        if args.limit is not None and number >= args.limit:
            print(f"... and {len(memory) - number} more")
            break
        print(f"{entry.id:6d}  {entry.input}" + (f"  ->  {entry.label}" if entry.label else ""))


def add(args: argparse.Namespace) -> None:
    memory, about = EditMemory.load(args.file)
    if (args.input is None) == (args.source is None):
        raise EditingError("give one edit (INPUT and LABEL), or a file of edits with --from")
    pairs = list(read_edits(args.source)) if args.source else [(args.input, args.label or "")]
    before = {entry.id: entry for entry in memory}
    ids = [memory.add(*pair) for pair in pairs]
    memory.save(args.file, about)
    new = sum(id not in before for id in set(ids))
    changed = sum(id in before and before[id] != memory[id] for id in set(ids))
    print(f"{args.file}: {new} edits added, {changed} replaced, {len(pairs) - new - changed} there already; "
          f"{len(memory)} in all" + (f"; id {ids[0]}" if len(ids) == 1 else ""))


def remove(args: argparse.Namespace) -> None:
    memory, about = EditMemory.load(args.file)
    gone = [memory.remove(id) for id in args.ids]
    memory.save(args.file, about)
    for entry in gone:
        print(f"removed {entry.id}: {entry.input}")


def update(args: argparse.Namespace) -> None:
    if args.input is None and args.label is None:
        raise EditingError("nothing to change: give --input, --label or both")
    memory, about = EditMemory.load(args.file)
    entry = memory.update(args.id, args.input, args.label)
    memory.save(args.file, about)
    print(f"{entry.id}: {entry.input}" + (f"  ->  {entry.label}" if entry.label else ""))


def read_edits(path: Path) -> Iterator[tuple[str, str]]:
    """(input, label) of each line: {"input", "label"}, or a request as editors take it. Raises DataError naming the line."""
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            edit = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not valid JSON ({error})") from None
        try:
            yield _edit(edit)
        except EditingError as error:
            raise DataError(f"{path}, line {number}: {error}") from None


def _edit(edit: Any) -> tuple[str, str]:
    if isinstance(edit, Mapping) and isinstance(edit.get("input"), str) and isinstance(edit.get("label", ""), str):
        return edit["input"], edit.get("label", "")
    request, = parse_requests([edit])
    return fill(request.prompt, request.subject), request.target_new.strip()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m experiments.memory", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS), parser_class=Parser)

    def action(name: str, run, help: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        sub.add_argument("file", type=Path, metavar="FILE")
        return sub

    sub = action("create", create, "write an empty memory")
    sub.add_argument("--statements", action="store_true", help="of a fact checker: edits are statements without a label")
    sub = action("list", show, "print the edits with their ids")
    sub.add_argument("--limit", type=at_least_one, help="at most so many")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")
    sub = action("add", add, "add an edit, or all of a file")
    sub.add_argument("input", nargs="?", metavar="INPUT", help="what is asked")
    sub.add_argument("label", nargs="?", metavar="LABEL", help="what shall be answered")
    sub.add_argument("--from", dest="source", type=Path, metavar="JSONL",
                     help='a line an edit: {"input": ..., "label": ...}, or a request {"prompt", "subject", "target_new"}')
    sub = action("remove", remove, "take edits out")
    sub.add_argument("ids", nargs="+", type=int, metavar="ID")
    sub = action("update", update, "change an edit")
    sub.add_argument("id", type=int, metavar="ID")
    sub.add_argument("--input")
    sub.add_argument("--label")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    run_program(main)
