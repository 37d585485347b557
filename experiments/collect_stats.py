"""``python -m experiments.collect_stats``: second moments of the keys, precomputed for all layers in one pass over a corpus.

    python -m experiments.collect_stats --model_name gpt2-xl --layers 13-17
    python -m experiments.collect_stats --model_name world --alg_name MEMIT --hparams_fname world.json
    python -m experiments.collect_stats --model_name ./my-model --layers all --dataset texts.jsonl --sample_size all

Editors collect what they lack by themselves; this program does it ahead of time, for more layers, or with other options.
A killed run goes on where it stopped when the same command is given again. Several processes share the texts:
``torchrun --nproc_per_node=4 -m experiments.collect_stats ...``, with the same result to the last bit.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.programs import goes_on
from data.download import Unavailable, download
from editors.core import covariance, moment_store, ranks
from editors.core.corpus import HUB, Corpus, find_corpus
from editors.core.decoder import Decoder
from editors.core.moment_store import Moment
from experiments.run.cli import at_least_one, HelpFormatter, Parser, run_program
from experiments.run.config import add_flags, EditFlags, FolderFlags, ModelFlags, RunConfig, RunFlags
from experiments.run.hparams_file import load_editor
from experiments.run.models import check_readable, load_model

PUBLISHED_URL = "https://memit.baulab.info/data/stats"
MOST_LAYERS = 10_000
"""No model has as many; a range up to a billion would be written out."""
ALWAYS_COLLECTED = ("mom2", "mean", "norm_mean")


def main(argv: Sequence[str] | None = None) -> dict[int, Moment]:
    """Collects, prints a line a layer, and returns {layer: Moment}. Raises UserError for a user's mistake."""
    args = ranks.in_turn(lambda: _parse(argv))
    settings, corpus, decoder = ranks.in_turn(lambda: _prepare(args))
    layers = range(decoder.sites.layers) if settings["layers"] == "all" else settings["layers"]
    max_keys = args.max_keys
    if max_keys is None and settings["dynamic_multiplier"] is not None:
        max_keys = covariance.keys_for(settings["dynamic_multiplier"], decoder.weight(layers[0]).d_in)
    spec = covariance.MomentSpec(settings["dataset"], settings["n_samples"], settings["dtype"], args.batch_tokens, max_keys)
    folder = covariance.folder_of(decoder.model, corpus, args.stats_dir)
    if args.download and not args.force:
        identities = covariance.identities(decoder, layers, spec, corpus)
        ranks.from_first(lambda: _download(identities, folder, corpus))
    with goes_on(lambda: f"finished layers and the last snapshot, if there was one, are in {folder}: the same command goes on"):
        moments = covariance.collect(
            decoder, layers, spec, stats_dir=args.stats_dir, pack_tokens=args.pack_tokens, force=args.force,
            resume=not args.no_resume,
        )
    print(f"statistics in {folder}")
    for layer, moment in moments.items():
        norm = "" if moment.norm_mean is None else f", mean length of a key {moment.norm_mean:.4g}"
        print(f"layer {layer}: {moment.count} tokens, keys of width {moment.d_in}{norm}")
    return moments


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    program = "python -m experiments.collect_stats"
    parser = Parser(prog=program, description=__doc__, formatter_class=_Formatter)
    add = parser.add_argument
    add_flags(parser, ModelFlags)
    parser.set_defaults(model_name="gpt2-xl")
    add("--layers", help="comma list of blocks and ranges, 3,5-8, or all; default: the hparams file's, else 17 as published")
    add("--dataset", help="wikipedia, wikitext, owner/name[:config] of the hub, world, or the path of a .jsonl (field text) or "
                          ".txt file; default: the hparams file's mom2_dataset, else wikipedia")
    add("--sample_size", type=_number_or("all"),
        help='texts to read, or "all"; default: the hparams file\'s mom2_n_samples, else 100000')
    add("--precision", choices=sorted(covariance.DTYPES),
        help="of the sums; default: the hparams file's mom2_dtype, else float32")
    add("--alg_name", help="editor that the hparams file is for (default: MEMIT)")
    add("--hparams_fname",
        help="take layers, corpus, sizes, precision and module names from this file in hparams/<alg_name>/, or from a path")
    add_flags(parser, EditFlags, "set")
    add("--to_collect", default="mom2",
        help=f"comma list of {', '.join(ALWAYS_COLLECTED)}; all three are in every file, whatever is asked")
    add("--batch_tokens", type=_number_or("any"),
        help='tokens of a text that are read at most; "any": up to the model\'s longest context')
    add("--max_keys", type=at_least_one,
        help="stop at exactly so many tokens; default: the hparams file's dynamic_multiplier, times the keys' width, or none")
    add("--pack_tokens", type=at_least_one,
        help="tokens in one forward pass, padding included; default: chosen from the memory")
    add_flags(parser, RunFlags, "stats_dir")
    add_flags(parser, FolderFlags, "data_dir")
    add("--download", type=int, choices=(0, 1), default=1,
        help="1: ask the authors' server for statistics that are not there; their model and corpus can't be checked")
    add("--force", action="store_true", help="collect again, even if the statistics are there")
    add("--no_resume", action="store_true", help="start from the first text, even if a killed run left a snapshot")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.to_collect.split(",")) - set(ALWAYS_COLLECTED))
    if unknown:
        raise UserError(f"--to_collect {unknown[0]!r} is not known: give {', '.join(ALWAYS_COLLECTED)}")
    if args.alg_name and not args.hparams_fname:
        raise UserError(f"--alg_name {args.alg_name}: has no effect without --hparams_fname")
    args.alg_name = args.alg_name or "MEMIT"
    if args.set and not args.hparams_fname:
        raise UserError("--set has no effect without --hparams_fname")
    args.batch_tokens = None if args.batch_tokens == "any" else args.batch_tokens
    return args


def _prepare(args: argparse.Namespace) -> tuple[dict[str, Any], Corpus, Decoder]:
    """(what to collect, from which corpus, of which decoder)"""
    settings = _settings(args)
    corpus = find_corpus(settings["dataset"])
    model, tok = load_model(args.model_name, args.dtype, args.device)
    check_readable(model)
    return settings, corpus, Decoder.of(model, tok, settings["templates"])


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What to collect: flags first, then the hparams file, then the published defaults."""
    settings = {"layers": [17], "dataset": "wikipedia", "n_samples": 100_000, "dtype": "float32", "templates": {},
                "dynamic_multiplier": None}
    if args.hparams_fname:
        hparams = load_editor(RunConfig(alg_name=args.alg_name, hparams_fname=args.hparams_fname, model_name=args.model_name,
                                        data_dir=args.data_dir, set=args.set))[1].hparams
        if not hasattr(hparams, "mom2_dataset"):
            raise UserError(f"{args.alg_name} uses no statistics: give the --hparams_fname of an editor that does")
        settings = {"layers": hparams.layers, "dataset": hparams.mom2_dataset, "n_samples": hparams.mom2_n_samples,
                    "dtype": hparams.mom2_dtype, "templates": hparams.templates(),
                    "dynamic_multiplier": hparams.dynamic_multiplier}
    flags = {"layers": None if args.layers is None else _layers(args.layers), "dataset": args.dataset,
             "n_samples": args.sample_size, "dtype": args.precision}
    settings.update({name: value for name, value in flags.items() if value is not None})
    if settings["dataset"] == "world":
        from data import world
        settings["dataset"] = str(world.corpus_path(args.data_dir))
    return settings


def _layers(text: str) -> list[int] | str:
    if text == "all":
        return text
    layers = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            blocks = range(int(first), int(last if dash else first) + 1)
            if not blocks or blocks[-1] >= MOST_LAYERS:
                raise ValueError("a range that runs backwards")
            layers.extend(blocks)
    except ValueError:
        raise UserError(f"--layers {text!r}: give a comma list of blocks and ranges, 3,5-8, or all") from None
    return list(dict.fromkeys(layers))


def _download(identities: Mapping[int, Mapping[str, Any]], folder: Path, corpus: Corpus) -> None:
    """Put the authors' files beside ours, where there are none of either; after the first refusal no more are asked for."""
    for identity in identities.values():
        published = moment_store.published_files(folder, identity)
        exists = moment_store.file_of(folder, identity).exists() or any(path.exists() for path in published)
        # Cropped or counted keys were never published, nor other corpora.
        if exists or corpus.name not in HUB or identity["cropped"] or identity["max_keys"]:
            continue
        try:
            download(f"{PUBLISHED_URL}/{folder.parent.name}/{folder.name}/{published[0].name}", published[0])
        except Unavailable as error:
            reason = str(error).partition(";")[0]
            print(f"no published statistics, collecting them: {reason}", file=sys.stderr)
            return


def _number_or(word: str):
    def parse(text: str) -> int | str:
        if text == word:
            return word
        try:
            return at_least_one(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}, or {word!r}") from None

    return parse


class _Formatter(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the examples' line breaks."""


if __name__ == "__main__":
    run_program(main, several=True)
