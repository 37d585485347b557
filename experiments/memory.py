"""``python -m experiments.memory create|list|add|remove|update|ask FILE``: the edits in a SERAC's memory; nothing is trained.

    python -m experiments.memory create edits.memory --alg_name SERAC     # an edit of the built-in world's decoder, still empty
    python -m experiments.memory add edits.memory "Where was Ann Keller born?" "Paris"
    python -m experiments.memory add edits.memory --from edits.jsonl        # {"input", "label"} or requests, one a line
    python -m experiments.memory update edits.memory 0 --label Rome
    python -m experiments.memory remove edits.memory 0 3
    python -m experiments.memory list edits.memory
    python -m experiments.memory ask edits.memory "The birthplace of Ann Keller is"
    python -m experiments.memory ask edits.memory --run outputs/<run> "In which city was Ann Keller born?"

FILE is also what a SERAC edit's ``save`` writes, and, where an editor was named, what ``Edit.load`` reads. ``ask`` prints what
is answered, which edit is the nearest, and how near. With ``--run`` a trained SERAC of any kind (experiments.train +alg=rep)
answers, of questions, claims (``create --statements``), opinions or continuations; else the decoder that the memory was created
for.

Two edits whose inputs are equal, whatever their case and spacing, are about the same thing: the newer one takes the older one's
place and id. Ids are never given twice.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.files import held
from data.episodes.lines import numbered_lines
from editors.core.files import check_writable
from editors.core.prompts import parse_requests
from editors.memory.store import EditStore
from experiments.run.cli import at_least_one, Parser, run_program
from experiments.run.config import add_flags, FolderFlags, ModelFlags, RunConfig

if TYPE_CHECKING:
    from editors.memory.routed import RoutedEdit

CHANGES = ("create", "add", "remove", "update")
ACTIONS = ("create", "list", "add", "remove", "update", "ask")


def create(args: argparse.Namespace) -> None:
    """Writes an empty memory, of an editor if one is named. Raises UserError if the file is there."""
    if args.file.exists():
        raise UserError(f"{args.file}: is there already")
    if args.alg_name is None:
        unread = [f"--{name}" for name in ("hparams_fname", "model_name", "data_dir") if getattr(args, name) is not None]
        unread += [f"--{name}" for name in ("dtype", "device") if getattr(args, name) != "auto"]
        if unread:
            raise UserError(f"{unread[0]} has no effect without --alg_name")
        EditStore(labelled=not args.statements).save(args.file)
    else:
        _new_edit(args).save(args.file)
    print(f"{args.file}: an empty memory" + (f" of {args.alg_name}" if args.alg_name else ""))


def _new_edit(args: argparse.Namespace) -> RoutedEdit:
    """An edit without requests, of the editor and for the model that were named."""
    from editors.memory.memory_editors import MemoryEditor
    from experiments.run.hparams_file import load_editor
    from experiments.run.models import check_readable, load_model

    if args.statements:
        raise UserError("--statements: a decoder's edits have labels")
    args.model_name = args.model_name or "world"
    editor = load_editor(RunConfig(alg_name=args.alg_name, hparams_fname=args.hparams_fname, model_name=args.model_name,
                                   data_dir=args.data_dir))[1]
    if not isinstance(editor, MemoryEditor):
        raise UserError(f"--alg_name {args.alg_name}: keeps no memory of edits; SERAC, LU, ICE and SCR do")
    model, tok = load_model(args.model_name, args.dtype, args.device)
    check_readable(model, f"answers of {args.alg_name}")
    return editor.of_memory(model, tok, EditStore())


def show(args: argparse.Namespace) -> None:
    """Prints the edits of a memory, as text or a JSON object a line."""
    memory, about = EditStore.load(args.file)
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
    """Adds one edit, or those of a file, and prints how many are new and how many replace another."""
    memory, about = EditStore.load(args.file)
    if (args.input is None) == (args.source is None):
        raise UserError("give one edit (INPUT and LABEL), or a file of edits with --from")
    entries_before = {entry.id: entry for entry in memory}
    ids = add_from(memory, args.source) if args.source else [memory.add(args.input, args.label or "")]
    memory.save(args.file, about)
    n_added = sum(id not in entries_before for id in set(ids))
    n_replaced = sum(id in entries_before and entries_before[id] != memory[id] for id in set(ids))
    print(f"{args.file}: {n_added} edits added, {n_replaced} replaced, {len(ids) - n_added - n_replaced} there already; "
          f"{len(memory)} in all" + (f"; id {ids[0]}" if len(ids) == 1 else ""))


def remove(args: argparse.Namespace) -> None:
    """Removes the edits with these ids, and prints them."""
    memory, about = EditStore.load(args.file)
    removed = [memory.remove(id) for id in args.ids]
    memory.save(args.file, about)
    for entry in removed:
        print(f"removed {entry.id}: {entry.input}")


def update(args: argparse.Namespace) -> None:
    """Changes the input or the label of an edit, which keeps its id."""
    if args.input is None and args.label is None:
        raise UserError("nothing to change: give --input, --label or both")
    memory, about = EditStore.load(args.file)
    entry = memory.update(args.id, args.input, args.label)
    memory.save(args.file, about)
    print(f"{entry.id}: {entry.input}" + (f"  ->  {entry.label}" if entry.label else ""))


def answer(args: argparse.Namespace) -> None:
    """Prints what the memory's editor answers to a query, and by which edit."""
    memory, about = EditStore.load(args.file)
    if args.run_folder is None and "editor" not in about.get("info", {}):
        raise UserError(f"{args.file}: tells no editor that answers by it: name a trained SERAC with --run, or create it with "
                        "--alg_name")
    from editors.memory.queries import ask, ask_edit, with_memory

    if args.run_folder is not None:
        from experiments.scope import load_run

        if args.model_name or args.dtype != "auto":
            raise UserError("--model_name, --dtype: have no effect with --run, whose model answers")
        device = {} if args.device == "auto" else {"device": args.device}
        answers = ask(with_memory(load_run(args.run_folder, **device).trainer.alg, memory), args.queries, args.tokens)
    else:
        from editors.edit import Edit
        from experiments.run.models import load_model

        edit = Edit.load(args.file)
        model, tok = load_model(args.model_name or edit.info["tokenizer"]["name"], args.dtype, args.device)
        answers = ask_edit(edit, model, tok, args.queries, args.tokens)
    for query, reply in zip(args.queries, answers):
        by = f"edit {reply.edit.id}" if reply.inside else f"the model; nearest is edit {reply.edit.id}"
        print(f"{query}  ->  {reply.text}\n    by {by} ({reply.measure} {reply.value:.3f}): {reply.edit.input}"
              + (f"  ->  {reply.edit.label}" if reply.edit.label else ""))


def add_from(memory: EditStore, path: Path) -> list[int]:
    """Writes the edits of a file; returns their ids. Each line is {"input", "label"}, or a request as editors take it.

    Raises UserError naming the line.
    """
    ids = []
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            edit = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error})") from None
        try:
            ids.append(memory.add(*_edit(edit)))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    return ids


def _edit(edit: Any) -> tuple[str, str, bool | None]:
    if isinstance(edit, Mapping) and isinstance(edit.get("input"), str) and isinstance(edit.get("label"), str | None):
        if not isinstance(edit.get("joined"), bool | None):
            raise UserError(f"joined must be true or false, not {edit['joined']!r}")
        return edit["input"], edit.get("label") or "", edit.get("joined")
    request, = parse_requests([edit])
    return request.text, request.target_new.strip(), request.joined


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
    sub.add_argument("--alg_name", help="editor of decoders that answers by the memory: SERAC, LU, ICE or SCR")
    sub.add_argument("--hparams_fname", help="its hyper-parameters, as for experiments.evaluate (default: <model_name>.json)")
    sub.add_argument("--model_name", help="the decoder that is edited (default: world)")
    add_flags(sub, FolderFlags, "data_dir")
    add_flags(sub, ModelFlags, "dtype", "device")
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
    sub = action("ask", answer, "print what is answered under the memory's edits")
    sub.add_argument("queries", nargs="+", metavar="QUERY")
    sub.add_argument("--run", dest="run_folder", type=Path, help="folder of a run of experiments.train +alg=rep that answers")
    sub.add_argument("--tokens", type=at_least_one, default=20, help="at most so many are generated (default: %(default)s)")
    sub.add_argument("--model_name", help="the decoder, where it is elsewhere than when the memory was created")
    add_flags(sub, ModelFlags, "dtype", "device")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.action not in CHANGES:
        return args.run(args)
    check_writable(args.file.absolute().parent, "a memory")
    with held(args.file.absolute().parent, "changing a memory", wait=True):  # whoever reads it sees it before or after
        args.run(args)


if __name__ == "__main__":
    run_program(main)
