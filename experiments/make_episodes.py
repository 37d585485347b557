"""``python -m experiments.make_episodes``: edit data that is published without an address, or not at all.

    python -m experiments.make_episodes gen --model_name distilgpt2 --count 20000 --out 10token/data/self_sample/train.json
    python -m experiments.make_episodes nq --out nq
    python -m experiments.make_episodes kilt --experiment qa --split train --out questions.jsonl
    python -m experiments.make_episodes rephrase --rows questions.jsonl --out rephrased.jsonl [--there MODEL --back MODEL]
    python -m experiments.make_episodes answers --experiment qa --rows rephrased.jsonl --model_name bart-base --out rows.jsonl
    python -m experiments.make_episodes world --experiment qa --out data/zsre

gen: a model continues passages of wikitext, and the samples are the edits' targets (MEND's data are gone from the web).
nq: Natural Questions (open), as unrelated questions. kilt: the published rows of zsRE and FEVER. rephrase: adds paraphrases
to rows that lack them, by translation there and back as published, else by templates, which vary the form and not the words.
answers: adds what a model answers, and what it could be made to answer instead; after rephrase this turns KILT's rows into
edit data. world: the built-in world's rows in the published formats.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from common.errors import UserError
from data import episodes
from data.episodes import back_translation, export, locality, published, rephrase
from data.episodes.lines import read_rows
from data.files import json_lines, write_json, write_text
from editors.core.modules import longest_context
from experiments.run.cli import a_seed, at_least_one, HelpFormatter, Parser, run_program
from experiments.run.config import add_flags, ModelFlags
from experiments.run.models import load_model
from experiments.training import answers
from experiments.training.models import load_editable


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the file or files, and says how many rows. Raises UserError for a user's mistake."""
    args = _parse(argv)
    {"gen": _gen, "nq": _nq, "kilt": _kilt, "rephrase": _rephrase, "answers": _answers, "world": _world}[args.what](args)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m experiments.make_episodes", description=__doc__, formatter_class=HelpFormatter)
    subparsers = parser.add_subparsers(dest="what", required=True, parser_class=Parser)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, formatter_class=HelpFormatter)
        sub.add_argument("--out", type=Path, required=True, help="what is written")
        return sub

    gen = add("gen", "continuations that a model samples")
    gen.add_argument("--model_name", required=True, help="hub id, folder, or world")
    gen.add_argument("--texts", help=".txt or .jsonl of passages, one a line (default: wikitext-103 of the hub)")
    gen.add_argument("--split", choices=episodes.SPLITS, default="train", help="of --texts or of the hub's data")
    gen.add_argument("--count", type=at_least_one, default=1000)
    gen.add_argument("--n_tokens", type=at_least_one, default=10, help="of a continuation")
    gen.add_argument("--context_tokens", type=at_least_one, default=40, help="of the passage before it, at most")
    gen.add_argument("--batch_size", type=at_least_one, default=16)
    gen.add_argument("--seed", type=a_seed, default=0)
    add_flags(gen, ModelFlags, "dtype", "device")

    nq = add("nq", "Natural Questions as unrelated questions; --out is their folder")
    nq.add_argument("--limit", type=at_least_one, help="rows of each file")

    kilt = add("kilt", "KILT's rows of zsRE (qa) or FEVER (fc), without predictions and rephrases")
    kilt.add_argument("--experiment", choices=("qa", "fc"), required=True)
    kilt.add_argument("--split", choices=("train", "dev"), required=True)

    rephrase = add("rephrase", "paraphrases of the inputs of JSON lines")
    rephrase.add_argument("--rows", type=Path, required=True, help="JSON lines with input; filtered_rephrases is filled in")
    rephrase.add_argument("--there",
                          help="translation model to another language (with --back; e.g. Helsinki-NLP/opus-mt-en-de)")
    rephrase.add_argument("--back", help="translation model back again (e.g. Helsinki-NLP/opus-mt-de-en)")
    rephrase.add_argument("--beams", type=at_least_one, default=5, help="translations kept in either direction")

    answers = add("answers", "a model's predictions and alternatives for rephrased rows")
    answers.add_argument("--experiment", choices=("qa", "fc"), required=True)
    answers.add_argument("--rows", type=Path, required=True, help="JSON lines with input, output and filtered_rephrases")
    answers.add_argument("--model_name", required=True, help="hub id or folder of the model to be edited, or world")
    answers.add_argument("--batch_size", type=at_least_one, default=16)
    answers.add_argument("--device", default="auto")

    world = add("world", "the built-in world's rows in the published formats; --out is their folder")
    world.add_argument("--experiment", choices=export.EXPERIMENTS, required=True)
    world.add_argument("--facts", type=at_least_one, help="size of the world (default: the usual one)")
    return parser.parse_args(argv)


def _gen(args: argparse.Namespace) -> None:
    passages = [text for text in locality.paragraphs(args.split, args.texts)
                if text.isascii() and len(text.split(" ")) >= locality.SHORTEST_PARAGRAPH]
    if not passages:
        raise UserError(f"{args.texts or 'wikitext'}: no passage of {locality.SHORTEST_PARAGRAPH} or more words in ASCII")
    model, tok = load_model(args.model_name, args.dtype, args.device)
    random.Random(args.seed).shuffle(passages)
    originals, completions = sample(model, tok, passages, args)
    if not completions:
        raise UserError(f"{args.model_name}: no continuation has the same {args.n_tokens} tokens when it is read again")
    write_json(args.out, {"n_tokens": args.n_tokens, "original": originals, "completions": completions})
    print(f"{args.out}: {len(completions)} completions of {args.n_tokens} tokens")


@torch.no_grad()
def sample(model, tok, passages: Sequence[str], args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """(passages as they go on, the same beginnings as the model goes on): the first ``args.count`` that are usable.

    Kept are only samples that are the same tokens after decoding and reading again, and no prefix that the model's own
    limit cuts. Passages shorter than ``n_tokens`` + 2 tokens are passed over.
    """
    torch.manual_seed(args.seed)
    longest = longest_context(model) or args.context_tokens + args.n_tokens
    context_tokens = min(args.context_tokens, longest - args.n_tokens)
    if context_tokens < 2:
        raise UserError("--context_tokens 1: a continuation needs at least 2 tokens before it" if args.context_tokens < 2 else
                        f"the model reads {longest} tokens, which leaves no context before {args.n_tokens} new ones")
    originals: list[str] = []
    completions: list[str] = []
    rows = [ids for ids in (tok(p, add_special_tokens=False)["input_ids"][:context_tokens + args.n_tokens] for p in passages)
            if len(ids) >= args.n_tokens + 2]
    with tqdm(total=min(args.count, len(rows)), unit="text") as bar:
        for start in range(0, len(rows), args.batch_size):
            batch = rows[start:start + args.batch_size]
            contexts = [ids[:min(context_tokens, len(ids) - args.n_tokens)] for ids in batch]
            for i, new in enumerate(_continued(model, tok, contexts, args.n_tokens)):
                text = tok.decode(contexts[i] + new, clean_up_tokenization_spaces=False)
                again = tok(text, add_special_tokens=False)["input_ids"]
                if again[-args.n_tokens:] == new and again[:-args.n_tokens] and tok.eos_token_id not in new:
                    originals.append(tok.decode(batch[i], clean_up_tokenization_spaces=False))
                    completions.append(text)
                    bar.update()
                    if len(completions) == args.count:
                        return originals, completions
    return originals, completions


def _continued(model, tok, contexts: list[list[int]], n_tokens: int) -> list[list[int]]:
    """``n_tokens`` sampled tokens after each context; padded on the left, so that all end together."""
    width = max(map(len, contexts))
    ids = torch.tensor([[tok.pad_token_id] * (width - len(c)) + c for c in contexts], device=model.device)
    mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts], device=model.device)
    out = model.generate(input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=n_tokens,
                         min_new_tokens=n_tokens, pad_token_id=tok.pad_token_id)
    return out[:, width:].tolist()


def _nq(args: argparse.Namespace) -> None:
    for split, name in (("train", "train.json"), ("validation", "validation.json")):
        pairs = locality.open_questions(split, args.limit)
        write_json(args.out / name, {"questions": [q for q, _ in pairs], "answers": [a for _, a in pairs]})
        print(f"{args.out / name}: {len(pairs)} questions")


def _kilt(args: argparse.Namespace) -> None:
    published.kilt(args.experiment, args.split, args.out)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


def _rephrase(args: argparse.Namespace) -> None:
    if bool(args.there) != bool(args.back):
        raise UserError("translation needs both directions: --there and --back")
    raw = read_rows(args.rows, lambda fields: (fields.text("input"), fields.rest()))
    inputs = [text for text, _ in raw]
    if args.there:
        rephrases = back_translation.rephrase(inputs, args.there, args.back, args.beams)
    else:
        rephrases = [rephrase.questions_like(text) if text.endswith("?") else rephrase.statements_like(text) for text in inputs]
    write_text(args.out, json_lines({"input": text, **rest, "filtered_rephrases": forms}
                                    for (text, rest), forms in zip(raw, rephrases)))
    print(f"{args.out}: {len(raw)} rows, {sum(map(len, rephrases))} rephrases by "
          f"{'translation there and back' if args.there else 'templates'}")


def _answers(args: argparse.Namespace) -> None:
    rows = read_rows(args.rows, lambda fields: {
        "input": fields.text("input"), "filtered_rephrases": list(fields.texts("filtered_rephrases")), **fields.rest()})
    model, tok = load_editable({"name": args.model_name}, args.experiment, args.device)
    answer = {"qa": answers.answered_questions, "fc": answers.checked_claims}[args.experiment]
    answered = answer(model, tok, rows, args.batch_size)
    write_text(args.out, json_lines(answered))
    usable = sum(bool(row["alternatives"] and row["filtered_rephrases"]) for row in answered)
    print(f"{args.out}: {len(answered)} rows, {usable} of them with alternatives and rephrases")


def _world(args: argparse.Namespace) -> None:
    for path, count in export.world(args.experiment, args.out, args.facts):
        print(f"{path}: {count} rows")


if __name__ == "__main__":
    run_program(main)
