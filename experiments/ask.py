"""``python -m experiments.ask``: ask a model with and without edits, the two answers side by side.

    python -m experiments.ask --edit edit.safetensors "Astrid Skezurd plays the"
    python -m experiments.ask --model_name gpt2-xl --edit first.safetensors second.safetensors
    python -m experiments.ask --chat --edit edit.safetensors < questions.txt

Without prompts it reads them line by line; at a terminal, with a history. Lines that begin with a slash are commands:

    /edit {} plays the | Astrid Skezurd | drum    edits this fact, too, by --alg_name
    /undo                                         takes the last edit out again
    /save FILE                                    keeps all edits of weights as one, or the one edit that is a memory
    /why [PROMPT]                                 which edits are about the subject of the prompt (by default the last one)
    /quit

Edits of weights are put on top of each other in their order; those that are memories (SERAC, LU) answer what is in their scope.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, ExitStack
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.orthography import is_whole_word, without_space
from data.download import cache_folder
from editors.core.fingerprint import model_fingerprint
from editors.core.files import check_writable
from editors.core.prompts import fill, Ids, prompt_ids
from editors.core.recall import TargetNotReached
from editors.edit import Edit
from editors.memory.routed import RoutedEdit
import editors
from experiments.edit import editor_for, facts_of, in_chat, with_facts
from experiments.metrics.answers import chat_prompt, greedy, MOST
from experiments.metrics.incremental import shortened
from experiments.results.tables import Table
from experiments.run.cli import at_least_one, Parser, run_program
from experiments.run.config import add_flags, EditFlags, FolderFlags, ModelFlags, RunConfig, RunFlags
from experiments.run.models import check_readable, load_model

EDIT_FILES = (".safetensors", ".memory")


class Session:
    """A model and the edits that it is asked with. Between two questions the model is as it was loaded."""

    def __init__(self, args: argparse.Namespace):
        """Raises UserError for a model or an edit that can't be read, and for an edit that does not fit the model."""
        self.args = args
        loaded = [Edit.load(path) for path in args.edits]
        self.model, self.tok = load_model(args.model_name, args.dtype, args.device)
        check_readable(self.model)
        self.edits: list[Edit] = []
        self.last: str | None = None
        for path, edit in zip(args.edits, loaded):
            try:
                edit.check(self.model)
                self.edits.append(edit)
                with self.applied():  # networks of a memory are looked for now
                    pass
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
            made_for = edit.info.get("model")
            if edit.changes and made_for not in (None, model_fingerprint(self.model)):
                print(f"warning: {path} was made on other weights than those of {args.model_name} in {self.model.dtype}",
                      file=sys.stderr)
            if edit.info.get("chat", args.chat) != args.chat:
                print(f"warning: {path} was made {'without' if args.chat else 'with'} --chat, and is asked "
                      f"{'with' if args.chat else 'without'} it", file=sys.stderr)

    @contextmanager
    def applied(self, weights_only: bool = False) -> Iterator[None]:
        """Inside, the model has the edits, or those of weights."""
        with ExitStack() as stack:
            for edit in self.edits:
                if edit.changes or not weights_only:
                    stack.enter_context(edit.applied(self.model))
            yield

    def row(self, prompt: str) -> Ids:
        """Token ids of a prompt as the model reads it."""
        text = chat_prompt(self.tok, prompt, self.args.model_name) if self.args.chat else without_space(prompt)
        return prompt_ids(self.tok, text)

    def answers(self, prompts: Sequence[str]) -> tuple[list[str], list[str]]:
        """(answers without the edits, answers with them). Raises UserError for a prompt that is empty or too long."""
        if not all(prompt.strip() for prompt in prompts):
            raise UserError("a prompt is empty")
        rows, self.last = [self.row(prompt) for prompt in prompts], prompts[-1]
        without = greedy(self.model, self.tok, rows, self.args.tokens)
        if not self.edits:
            return without, without
        with self.applied():
            return without, greedy(self.model, self.tok, rows, self.args.tokens)

    def edit(self, words: str) -> str:
        """Edits a fact, PROMPT | SUBJECT | TARGET, on top of the edits that are there; returns what to say of it."""
        parts = [part.strip() for part in words.split("|")]
        if len(parts) != 3:
            raise UserError("/edit needs a prompt with {}, a subject and a target, with | between: "
                            "/edit {} plays the | Astrid Skezurd | drum")
        facts = facts_of(argparse.Namespace(facts=None, fact=[parts]))
        config = RunConfig(**{name: getattr(self.args, name) for name in (
            "alg_name", "hparams_fname", "set", "model_name", "dtype", "device", "data_dir", "stats_dir")}).complete()
        requests = in_chat(facts, self.tok, self.args.model_name) if self.args.chat else facts
        check_readable(self.model, f"an edit by {config.alg_name}")
        with config.folders():
            editor = editor_for(config, self.model, self.tok)
            with self.applied(weights_only=True), warnings.catch_warnings():
                warnings.simplefilter("ignore", TargetNotReached)
                edit = editor.edit(self.model, self.tok, requests, progress=False)
        self.edits.append(with_facts(edit, facts, self.args.chat))
        reached = edit.info.get("reached", [True])[0]
        return f"edit {len(self.edits)}: {_name(self.edits[-1])}" + ("" if reached else "; the target was not reached")

    def undo(self, words: str) -> str:
        """Takes the last edit out."""
        if not self.edits:
            raise UserError("/undo: there is no edit")
        edit = self.edits.pop()
        return f"taken out: {_name(edit)}; {len(self.edits)} left"

    def save(self, words: str) -> str:
        """Keeps the edits in a file."""
        path = Path(words)
        if not words:
            raise UserError("/save needs a file's name: /save edit.safetensors")
        if not self.edits:
            raise UserError("/save: there is no edit")
        if len(self.edits) > 1 and not all(edit.changes for edit in self.edits):
            raise UserError("/save: edits that are memories can't be joined with others in one file")
        if path.exists():
            raise UserError(f"/save {path}: is there already; choose another name, or delete it")
        check_writable(path.absolute().parent, "the edit")
        total = self.edits[0]
        for edit in self.edits[1:]:
            facts = [*total.info.get("facts", []), *edit.info.get("facts", [])]
            total = total.plus(edit, {**total.info, "editor": total.info.get("editor"), "facts": facts, "requests": len(facts)})
        total.save(path)
        return f"written: {path}"

    def why(self, words: str) -> str:
        """The edits that are about the subject of a prompt, or that answer it."""
        prompt = words or self.last
        if not prompt:
            raise UserError("/why needs a prompt: nothing was asked yet")
        if not self.edits:
            return "no edit: the model answers by itself"
        lines = []
        for number, edit in enumerate(self.edits, 1):
            if isinstance(edit, RoutedEdit):
                lines.append(f"edit {number}, {_name(edit)}: {self._scope(edit, prompt)}")
                continue
            facts = edit.info.get("facts")
            if facts is None:
                lines.append(f"edit {number}, {_name(edit)}: does not tell its facts")
            else:
                lines += [f"edit {number}, {_name(edit)}: {fill(fact['prompt'], fact['subject'])} -> {fact['target_new']}"
                          for fact in facts if _names(prompt, fact["subject"])]
        return "\n".join(lines) or f"no edit is about what {shortened(prompt)} names"

    def _scope(self, edit: RoutedEdit, prompt: str) -> str:
        with edit.applied(self.model):
            answerer = edit.answering(self.model)
            (value, place), = answerer.find([list(self.row(prompt))])
            inside = answerer.is_inside(value)
        entry = list(edit.memory)[place]
        return f"{'in' if inside else 'not in'} the scope of {entry.input} -> {entry.label} ({answerer.measure} {value:.3f})"

    def respond(self, line: str) -> str:
        """What to print for a line: the answers, or what a command did."""
        word, _, words = line.strip().partition(" ")
        if word.startswith("/"):
            commands = {"/edit": self.edit, "/undo": self.undo, "/save": self.save, "/why": self.why}
            if word not in commands:
                raise UserError(f"no command {word}; there are {', '.join(commands)} and /quit")
            return commands[word](words.strip())
        (without,), (edited,) = self.answers([line])
        if not self.edits:
            return without
        return f"without: {without}\nwith {len(self.edits)} edit{'s' * (len(self.edits) > 1)}: {edited}"


def _name(edit: Edit) -> str:
    """An edit in a few words."""
    facts = edit.info.get("facts")
    count = len(edit.memory) if isinstance(edit, RoutedEdit) else len(facts) if facts else edit.info.get("requests", "?")
    return f"{edit.info.get('editor', 'an unnamed editor')} of {count} fact{'s' * (count != 1)}"


def _names(prompt: str, subject: str) -> bool:
    """Whether a prompt names a subject, as whole words, in whatever case."""
    text, name = prompt.casefold(), subject.strip().casefold()
    start = text.find(name)
    while start >= 0:
        if is_whole_word(text, start, start + len(name)):
            return True
        start = text.find(name, start + 1)
    return False


def converse(session: Session) -> None:
    """Reads lines to the end of the input, or /quit. A mistake is a line, and the next line is read."""
    with _history(Path(cache_folder(session.args.data_dir)) / "ask_history"):
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "")
            except EOFError:
                return
            if line.strip() == "/quit":
                return
            if line.strip():
                try:
                    print(session.respond(line), flush=True)
                except UserError as error:
                    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


@contextmanager
def _history(path: Path) -> Iterator[None]:
    """At a terminal, lines can be edited, and those of earlier sessions come back."""
    if not sys.stdin.isatty():
        yield
        return
    try:
        import readline
    except ImportError:  # not on every system
        yield
        return
    try:
        readline.read_history_file(path)
    except OSError:
        pass
    readline.set_history_length(1000)
    try:
        yield
    finally:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
        except OSError:
            pass


def command_line() -> Parser:
    """Every flag of the program."""
    parser = Parser(prog="python -m experiments.ask", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what the model shall continue, or with --chat answer")
    parser.add_argument("--edit", nargs="+", action="extend", default=[], metavar="FILE",
                        help="edits (Edit.save, experiments.edit --out); words behind them that are no files are prompts")
    parser.add_argument("--chat", action="store_true", help="ask in the tokenizer's chat template")
    parser.add_argument("--tokens", type=at_least_one, default=MOST, help="of an answer, at most (default: %(default)s)")
    parser.add_argument("--alg_name", default="MEMIT", help=f"editor of /edit: {', '.join(editors.names())} (default: MEMIT)")
    parser.add_argument("--hparams_fname", help="its hyper-parameters, as for experiments.edit")
    add_flags(parser, EditFlags, "set")
    add_flags(parser, ModelFlags)
    add_flags(parser, FolderFlags, "data_dir")
    add_flags(parser, RunFlags, "stats_dir")
    return parser


def separated(args: argparse.Namespace) -> argparse.Namespace:
    """With the words behind --edit told apart: ``edits`` are files, or named as such; the others are prompts."""
    is_edit: dict[str, Any] = {word: Path(word).is_file() or word.endswith(EDIT_FILES) for word in args.edit}
    args.edits = [word for word in args.edit if is_edit[word]]
    args.prompts = [*[word for word in args.edit if not is_edit[word]], *args.prompts]
    if args.edit and not is_edit[args.edit[0]]:
        raise UserError(f"--edit {args.edit[0]}: no such edit file")
    return args


def command() -> None:
    session = Session(separated(command_line().parse_args()))
    if not session.args.prompts:
        converse(session)
        return
    prompts = session.args.prompts
    without, edited = session.answers(prompts)
    columns = ["prompt", "answer", "with the edits"] if session.edits else ["prompt", "answer"]
    rows = [[" ".join(text.split()) for text in row] for row in zip(prompts, without, edited)]
    print(Table(columns, [row[: len(columns)] for row in rows], words=len(columns)).text())


if __name__ == "__main__":
    run_program(command)
