"""``python -m experiments.edit``: edit one's own facts into a model; see what it said, what it says, what it cost nearby.

    python -m experiments.edit facts.csv --out edit.safetensors
    python -m experiments.edit --fact "{} plays the" "Astrid Skezurd" "drum" --alg_name ROME
    python -m experiments.edit facts.jsonl --model_name gpt2-xl --check true_facts.csv --text novel.txt --strict

FACTS and --check are files of facts (docs/facts.md). A fact is reached if every token of its target is now the likeliest. What
it cost: of the facts of --check, how many are still said; without it, how many of the likeliest next tokens in texts that the
model samples by itself are now others; and the perplexity of --text, else of those texts. --out keeps the edit for
experiments.ask, experiments.export and Edit.load. The model itself is not changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from data.facts import read_facts
import editors
from editors.base import Editor
from editors.core.files import check_writable
from editors.core.prompts import fill, Ids, parse_requests, prompt_ids, Request
from editors.core.recall import TargetNotReached
from editors.edit import Edit
from experiments.metrics.answers import chat_prompt, next_tokens, own_texts, replies
from experiments.metrics.incremental import shortened
from experiments.metrics.perplexity import stream_perplexity
from experiments.results.tables import Table
from experiments.run import auto_hparams
from experiments.run.cli import Parser, run_program
from experiments.run.config import add_flags, EditFlags, FolderFlags, ModelFlags, RunConfig, RunFlags
from experiments.run.hparams_file import AUTOMATIC, configured, has_file, is_automatic, load_editor
from experiments.run.models import check_readable, load_model

TEXTS, LENGTH = 32, 24
"""Texts that the model samples, and tokens of each, to see what an edit costs."""
WINDOW = 20_000
"""Tokens that are read of --text."""


def facts_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The requests of the command line. Raises UserError for none, one that is there twice, or two that contradict."""
    requests = read_facts(args.facts) if args.facts else []
    targets = {(request["prompt"].strip(), request["subject"].strip()): request["target_new"] for request in requests}
    for prompt, subject, target in args.fact:
        fact = prompt.strip(), subject.strip()
        if fact in targets:
            says = "is there twice" if targets[fact] == target else f"says {targets[fact]!r} and {target!r}"
            raise UserError(f"--fact: {prompt.replace('{}', subject)!r} {says}: keep one of the two")
        targets[fact] = target
        requests.append({"prompt": prompt, "subject": subject, "target_new": target})
    if not requests:
        raise UserError("no facts: name a file, or give --fact PROMPT SUBJECT TARGET")
    parse_requests(requests)
    return requests


def editor_for(config: RunConfig, model: PreTrainedModel, tok: PreTrainedTokenizerBase) -> Editor:
    """With the hyper-parameters that the configuration names, those shipped for the model, or else by ``auto``."""
    if not config.hparams_fname and not has_file(config):
        config = dataclasses.replace(config, hparams_fname=AUTOMATIC)
    if not is_automatic(config.hparams_fname):
        return load_editor(config)[1]
    return configured(config, auto_hparams.propose_hparams(config, model, tok)[0])


def in_chat(requests: Sequence[dict[str, Any]], tok: PreTrainedTokenizerBase, name: str) -> list[dict[str, Any]]:
    """The same facts, asked in the chat template; the answer begins the model's turn."""
    asked = []
    for request in requests:
        prompt = chat_prompt(tok, request["prompt"], name)
        if prompt.count("{}") != 1:
            raise UserError(f"--chat: the chat template of {name} does not keep the prompt {request['prompt']!r} as it is")
        asked.append({**request, "prompt": prompt, "joined": True})
    return asked


def with_facts(edit: Edit, facts: Sequence[dict[str, Any]], chat: bool) -> Edit:
    """The edit that tells, in its file, which facts it is of. One that is a memory does so already."""
    return dataclasses.replace(edit, info={**edit.info, "facts": list(facts), "chat": chat}) if edit.changes else edit


def command_line() -> Parser:
    """Every flag of the program."""
    parser = Parser(prog="python -m experiments.edit", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", nargs="?", type=Path, metavar="FACTS", help="a .csv, .json or .jsonl file of facts")
    parser.add_argument("--fact", nargs=3, action="append", default=[], metavar=("PROMPT", "SUBJECT", "TARGET"),
                        help="a fact, with {} in the prompt for the subject; may be repeated")
    parser.add_argument("--alg_name", default="MEMIT", help=f"editor: {', '.join(editors.names())} (default: MEMIT)")
    parser.add_argument("--hparams_fname", help="file in hparams/<alg_name>/, or a path; by default <model_name>.json, "
                        "and auto where there is none")
    parser.add_argument("--out", type=Path, metavar="EDIT", help="keep the edit in this file")
    parser.add_argument("--check", type=Path, metavar="FILE", help="facts that shall stay as they are")
    parser.add_argument("--text", type=Path, metavar="FILE", help="measure the perplexity of this text")
    parser.add_argument("--chat", action="store_true", help="ask and edit in the tokenizer's chat template")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if a fact was not reached")
    add_flags(parser, EditFlags, "set")
    add_flags(parser, ModelFlags)
    add_flags(parser, FolderFlags, "data_dir")
    add_flags(parser, RunFlags, "stats_dir")
    return parser


def command() -> None:
    args = command_line().parse_args()
    facts = facts_of(args)
    staying = read_facts(args.check) if args.check else []
    text = _text(args.text) if args.text else None
    if args.out:
        if args.out.exists():
            raise UserError(f"--out {args.out}: is there already; choose another name, or delete it")
        check_writable(args.out.absolute().parent, "the edit")
    config = RunConfig(**{name: getattr(args, name) for name in (
        "alg_name", "hparams_fname", "set", "model_name", "dtype", "device", "data_dir", "stats_dir")}).complete()
    kind = editors.editor_class(args.alg_name)
    with config.folders():
        model, tok = load_model(args.model_name, args.dtype, args.device)
        check_readable(model, f"an edit by {args.alg_name}" if kind.needs_cache else None)
        requests, staying = ((in_chat(each, tok, args.model_name) if args.chat else each) for each in (facts, staying))
        parsed, checks = parse_requests(requests, tok), parse_requests(staying, tok)
        before = replies(model, tok, parsed)
        editor = editor_for(config, model, tok)
        nearby = Nearby(model, tok, checks, text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TargetNotReached)  # said fact by fact below
            edit = with_facts(editor.edit(model, tok, requests), facts, args.chat)
        with edit.applied(model):
            after = replies(model, tok, parsed)
            cost = nearby.cost()
    rows = [[shortened(fill(fact["prompt"], fact["subject"]))[1:-1], shortened(old.text)[1:-1], shortened(new.text)[1:-1],
             f"{old.probability:.4f}", f"{new.probability:.4f}", "yes" if new.said else "no"]
            for fact, old, new in zip(facts, before, after)]
    print(Table(["prompt", "before", "now", "p(target) before", "p(target) now", "reached"], rows, words=3).text())
    n_reached = sum(new.said for new in after)
    print(f"\n{n_reached} of {len(facts)} facts reached", *cost, sep="\n")
    if args.out:
        edit.save(args.out)
        print(f"written: {args.out}")
    if args.strict and n_reached < len(facts):
        sys.exit(1)


class Nearby:
    """What else a model says before an edit, to be compared with what it says after it."""

    def __init__(self, model: PreTrainedModel, tok: PreTrainedTokenizerBase, checks: Sequence[Request], text: str | None):
        self.model, self.tok, self.checks = model, tok, checks
        texts = [] if checks and text is not None else own_texts(model, tok, TEXTS, LENGTH)
        self.rows: list[Ids] = [] if checks else [row[:end] for row in texts for end in range(4, len(row), 4)]
        self.streams = texts if text is None else [prompt_ids(tok, text)[:WINDOW]]
        self.named = "of the model's own texts" if text is None else "of the text"
        self.said = replies(model, tok, checks) if checks else []
        self.tokens, self.perplexity = self._now()

    def _now(self) -> tuple[list[int], float]:
        stream = [token for row in self.streams for token in row]
        return next_tokens(self.model, self.tok, self.rows), stream_perplexity(self.model, self.tok, stream).perplexity

    def cost(self) -> list[str]:
        """Lines on what the model, as it is now, says otherwise than before."""
        tokens, perplexity = self._now()
        lines = [f"perplexity {self.named}: {self.perplexity:.4g} before, {perplexity:.4g} now"]
        if self.checks:
            now = replies(self.model, self.tok, self.checks)
            kept = sum(old.said and new.said for old, new in zip(self.said, now))
            said = sum(old.said for old in self.said)
            lines.insert(0, f"nearby: of {len(now)} facts to be kept the model said {said} before, and still says {kept} of "
                         "these")
            lines[1:1] = [f"  no longer: {shortened(fact.text + fact.target_new)[1:-1]} (now: {shortened(new.text)[1:-1]})"
                          for fact, old, new in zip(self.checks, self.said, now) if old.said and not new.said]
        else:
            changed = sum(a != b for a, b in zip(self.tokens, tokens))
            lines.insert(0, f"nearby: {changed} of {len(tokens)} likeliest next tokens in the model's own texts are others now")
        return lines


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text {path}: can't be read ({getattr(error, 'strerror', None) or error})") from None
    if not text.strip():
        raise UserError(f"--text {path}: is empty")
    return text


if __name__ == "__main__":
    run_program(command)
