"""``python -m experiments.evaluate``: apply an editor to a data set, batch by batch, and measure each case before and after.

    python -m experiments.evaluate --alg_name MEMIT --num_edits 100 --dataset_size_limit 100     # the built-in world
    python -m experiments.evaluate --alg_name ROME --model_name gpt2-xl --hparams_fname gpt2-xl.json --ds_name mcf

Consecutive batches of ``num_edits`` records are edited into the unmodified model, one batch after another (each is taken out
again, bit by bit, before the next). Results: see :mod:`experiments.results`. A run that was killed at any moment goes on with
``--continue_from_run run_<NNN>`` and ends with the same numbers: a batch is done anew unless all its files are there, and
everything is computed in groups that only the data and ``num_edits`` decide. So several processes
(``torchrun --nproc_per_node=4 -m experiments.evaluate ...``) end with the same numbers, too.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
import data
from data.download import data_folder
import data.languages
from data.records import Record
import editors
from editors.core import ranks
from experiments.downstream import add_downstream_flags
from experiments.results import run_folder
from experiments.run import language_job
from experiments.run import languages as in_languages
from experiments.run.cli import a_count, a_seed, add_model_flags, at_least_one, HelpFormatter, Parser, run_program
from experiments.run.job import Job, prepare
from experiments.run.measure import measure
from experiments.run.sequences import Checkups, evaluate as run_sequence

BLOCK = 64
"""Cases that are measured together before their edits, at least."""


def main(
    alg_name: str,
    model_name: str | tuple[PreTrainedModel, PreTrainedTokenizerBase] = "world",
    hparams_fname: str | Path | None = None,
    ds_name: str | None = None,
    dataset_size_limit: int | None = None,
    continue_from_run: str | None = None,
    skip_generation_tests: bool = False,
    generation_test_interval: int = 1,
    contains_length: int = 0,
    conserve_memory: bool = False,
    dir_name: str | None = None,
    num_edits: int = 1,
    use_cache: bool = False,
    context_templates: str | Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    seed: int = 0,
    data_dir: str | Path | None = None,
    stats_dir: str | Path | None = None,
    results_dir: str | Path = "results",
    sample_num: int | None = None,
    index_file: str | Path | None = None,
    max_edits: int | None = None,
    sequential: bool = False,
    checkpoint_steps: int = 10,
    history_eval_steps: int = 0,
    history_sample: int | None = None,
    perplexity_corpus: str | None = None,
    save_edits: bool = False,
    save_model: bool = False,
    save_model_interval: int = 100,
    save_model_location: str | Path | None = None,
    do_downstream_eval: bool = False,
    downstream_eval_steps: int = 100,
    downstream_tasks: str | None = None,
    number_of_few_shots: str = "-1",
    number_of_tests: int | None = None,
    gen_len: int = 3,
    legacy_rte_labels: bool = False,
    downstream_data: str | None = None,
    language: str | None = None,
    language_eval: str | None = None,
    languages_measured: str | None = None,
    pairing: str | None = None,
    profile: str | None = None,
    bilingual: str | None = None,
    add_attention: bool = False,
    top_num_heads: Sequence[int] | None = None,
    alpha: Sequence[float] | None = None,
    head_ind: str | None = None,
    load_attention: str | None = None,
    save_attention_heads: str | None = None,
    load_delta: str | None = None,
    save_delta_matrix: str | None = None,
    save_figure: str | None = None,
    eval_on_others: bool = False,
) -> Path:
    """Evaluates an editor as the command line does (whose help explains the arguments); returns the run's folder.

    ``model_name`` may be a (model, tok) pair. Raises UserError for a user's mistake; nothing is then left
    behind by a run that had not finished a batch.
    """
    flags, loaded = dict(locals()), None
    if not isinstance(model_name, str):
        loaded, flags["model_name"] = model_name, model_name[0].config._name_or_path
    flags["dir_name"] = dir_name or alg_name
    language_job.complete(flags)
    if flags["language"] and ranks.processes() > 1:
        raise UserError("--language: such a run is not shared among processes; start it with python -m, not with torchrun")
    flags["ds_name"] = str(ds_name or ("world" if flags["model_name"] == "world" else "mcf"))
    folder = Path(results_dir) / flags["dir_name"]
    continued = None if continue_from_run is None else ranks.from_first(lambda: run_folder.existing_run(folder, continue_from_run))

    with _folders(data_dir, stats_dir):
        job = ranks.in_turn(lambda: (language_job.prepare if flags["language"] else prepare)(flags, loaded))
        run = ranks.from_first(lambda: open_run(folder, job, continued))
        try:
            (in_languages.evaluate if job.languages else run_sequence if sequential else evaluate)(job, run)
        except ranks.RankLost as error:
            error.args = (f"{error}, with --continue_from_run {run.name}",)
            raise
        except UserError:
            if continued is None and ranks.process() == 0:
                run_folder.remove_unused(run)
            raise
    return run


SAVED_ON_THE_WAY = ("save_model", "save_attention_heads", "save_delta_matrix")
"""Flags that keep something while a batch is edited, which a run that goes on can't make up for."""


def open_run(folder: Path, job: Job, continued: Path | None) -> Path:
    """The folder of a new run, with params.json and run.json; or ``continued``, if that is of the same configuration."""
    settings = job.settings()
    if continued is not None:
        run_folder.check_same(continued, run_folder.read_json(continued / run_folder.PARAMS), job.hparams)
        about = run_folder.read_about(continued)
        run_folder.check_same(continued, about["settings"], settings)
        for name in SAVED_ON_THE_WAY:
            if job.flags.get(name) and not about["flags"].get(name):
                raise UserError(f"--{name}: {continued} was begun without it, and what is edited already would not be saved; "
                                           "leave it out, or start a new run")
        return continued
    flags = {key: str(value) if isinstance(value, Path) else value for key, value in job.flags.items()}
    cases = len(job.records) - (job.flags["num_edits"] if job.flags["eval_on_others"] else 0)
    about = {"settings": settings, "flags": flags, "cases": cases, **run_folder.provenance()}
    if job.traced:
        about["traced"] = job.traced
    stages = in_languages.run_files(job, about) if job.languages else {}
    return run_folder.new_run(folder, {run_folder.PARAMS: job.hparams, run_folder.RUN: about, **stages})


def evaluate(job: Job, run: Path) -> None:
    """Edits and measures every batch whose files are not all there, and writes them.

    Of several processes each takes batches of its own; all work at the same one where there are fewer batches than processes.
    """
    num_edits = job.flags["num_edits"]
    checkups = Checkups(job, run)
    checkups.unedited_once()
    prepared = ranks.world_size() == 1
    with tqdm(total=len(job.records), desc=job.flags["alg_name"], unit="case", disable=ranks.rank() > 0) as bar:
        for start, block in _blocks(job.records, num_edits):
            todo = ranks.from_first(partial(_unfinished, job, run, start, block))
            bar.update(sum(map(len, block)) - sum(len(block[i]) for i in todo))
            if not todo:
                continue
            if not prepared:  # all together: statistics and contexts, which each would else collect by itself
                job.editor.begin(job.model, job.tok, job.context_templates)
                prepared = True
            # Measured in one go; the whole block, also when part of it is done, for the same numbers to the last digit.
            before = measure(job, [record for chunk in block for record in chunk])
            apart = len(todo) >= ranks.world_size()
            mine = todo[ranks.rank()::ranks.world_size()] if apart else todo
            with ranks.alone() if apart else nullcontext():
                for i in mine:
                    chunk = block[i]
                    about, after = _edit_and_measure(job, run, chunk, start + i + 1, checkups)
                    for record in chunk if ranks.rank() == 0 else ():
                        run_folder.write_case(run, num_edits, record, chunk, about, before[record.case_id], after[record.case_id])
                    bar.update(len(chunk))
            bar.update(sum(len(block[i]) for i in set(todo) - set(mine)))
    ranks.barrier()


def _unfinished(job: Job, run: Path, start: int, block: Sequence[Sequence[Record]]) -> list[int]:
    """Which batches of a block, before which there are `start`, do not have all their files."""

    def files(i: int) -> Iterator[Path]:
        yield from (run_folder.case_path(run, job.flags["num_edits"], record.case_id) for record in block[i])
        if job.flags["save_edits"]:
            yield _edit_path(run, start + i)

    return [i for i in range(len(block)) if not all(path.exists() for path in files(i))]


def _edit_path(run: Path, batch: int) -> Path:
    """Where the edit of a batch, counted from 0, is kept."""
    return run / run_folder.EDITS / f"{batch:06d}.safetensors"


def _edit_and_measure(
    job: Job, run: Path, chunk: Sequence[Record], number: int, checkups: Checkups
) -> tuple[dict[str, float], dict[int, dict[str, Any]]]:
    """(what the edit took and lost, metrics of each record under it). The model is afterwards what it was, bit by bit."""
    started = time.perf_counter()
    cache = data_folder(job.flags["data_dir"]) / "z_cache" if job.flags["use_cache"] else None
    edit = job.editor.edit(job.model, job.tok, [record.request() for record in chunk], job.context_templates, z_cache=cache)
    if job.flags["save_edits"] and ranks.rank() == 0:
        edit.save(_edit_path(run, number - 1))
    edit.apply(job.model, originals_device="cpu" if job.flags["conserve_memory"] else None)
    seconds = time.perf_counter() - started
    try:
        checkups.edited_once(number, chunk, edit.info, number == -(-len(job.records) // job.flags["num_edits"]))
        return run_folder.about_edit(seconds, edit.info), measure(job, chunk)
    finally:
        edit.revert(job.model)


def _blocks(records: Sequence[Record], num_edits: int) -> Iterator[tuple[int, list[list[Record]]]]:
    """(number of batches before it, block): batches of ``num_edits`` records, the last may be shorter, in blocks of at least
    :data:`BLOCK` records."""
    chunks = [list(records[i:i + num_edits]) for i in range(0, len(records), num_edits)]
    size = -(-BLOCK // num_edits)
    yield from ((i, chunks[i:i + size]) for i in range(0, len(chunks), size))


@contextmanager
def _folders(data_dir: str | Path | None, stats_dir: str | Path | None) -> Iterator[None]:
    """The editors look for statistics where the environment says: inside, in these folders."""
    before = dict(os.environ)
    given = {"KE_DATA_DIR": data_dir, "KE_STATS_DIR": stats_dir}
    os.environ.update({name: str(folder) for name, folder in given.items() if folder is not None})
    try:
        yield
    finally:
        for name in given:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


def _add_switch(parser: argparse.ArgumentParser, name: str, text: str) -> None:
    """A flag that stands alone or, as in published commands, with True or False behind it."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

    def value(word: str) -> bool:
        if word.lower() not in words:
            raise argparse.ArgumentTypeError(f"{word!r} should be True or False")
        return words[word.lower()]

    parser.add_argument(name, nargs="?", const=True, default=False, type=value, metavar="True|False", help=text)


def _interval(text: str) -> int:
    if text != "-1" and (not text.isdecimal() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number from 1, or -1 (never)")
    return int(text)


def _numbers(kind: type, check: Callable[[Any], bool], what: str) -> Callable[[str], list]:
    """The type of a flag that takes one number or several, with commas between."""

    def parse(text: str) -> list:
        try:
            numbers = [kind(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if not numbers or not all(map(check, numbers)) or len(set(numbers)) < len(numbers):
            raise argparse.ArgumentTypeError(f"{text!r} should be {what}, or several different ones with commas between")
        return numbers

    return parse


def _add_language_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--language", help="edit in this language and tell languages apart (no texts are generated); ds_name is "
                                           f"then a data set in it: {', '.join(data.languages.names())}")
    parser.add_argument("--language_eval", help="language that heads are chosen and corrected in; by default --language")
    parser.add_argument("--languages_measured", help="languages to measure in, comma-separated; by default all that the data is in")
    parser.add_argument("--pairing", choices=("matched", "legacy"), help="how prompts in two wordings are scored: each with its own "
                        "object, or crossed as published; by default legacy with the profile paper, else matched")
    parser.add_argument("--profile", choices=("default", "paper"), help="MEMAT as its paper says, or as its published code computes")
    parser.add_argument("--bilingual", choices=("sum", "joint"), help="edit in both languages: the sum of two edits, or one edit that "
                                                                     "is sought for both")
    parser.add_argument("--add_attention", action="store_true", help="after MEMIT's edit correct attention heads: MEMAT")
    parser.add_argument("--top_num_heads", type=_numbers(int, lambda n: n >= 0, "a whole number from 0"),
                        help=f"heads to correct, or several numbers, 8,16,32; by default {language_job.DEFAULT_HEADS}; 0: none, "
                             "MEMIT's edit alone with MEMAT's hyper-parameters")
    parser.add_argument("--alpha", type=_numbers(float, math.isfinite, "a number"),
                        help=f"ITI: strength, or several, 1,5,15; by default {language_job.DEFAULT_ALPHA:g}")
    parser.add_argument("--head_ind", help="correct the heads of this .npy file; {} in its name is the number of the batch")
    parser.add_argument("--load_attention", help="with these vectors, of this toolkit or the original; {} as above")
    parser.add_argument("--save_attention_heads", metavar="PREFIX", help="save vectors and heads of every batch")
    parser.add_argument("--load_delta", help="instead of MEMIT's edit this one, of this toolkit or the original ({} as above); "
                                             "original_model: none")
    parser.add_argument("--save_delta_matrix", metavar="PREFIX", help="save MEMIT's edit of every batch")
    parser.add_argument("--save_figure", metavar="PATH", help="draw how well every head tells new facts from old ones")
    parser.add_argument("--eval_on_others", action="store_true", help="leave out the first batch, which heads were chosen on")


def command_line() -> Parser:
    """Every flag of the program."""
    parser = Parser(prog="python -m experiments.evaluate", description=__doc__.split("\n\n")[0], formatter_class=HelpFormatter)
    parser.add_argument("--alg_name", required=True, help=f"editor: {', '.join(editors.names())}")
    parser.add_argument("--model_name", default="world", help="Hugging Face hub id, local folder, or the built-in world")
    parser.add_argument("--hparams_fname", "--hparams", help="file in hparams/<alg_name>/, or a path; by default <model_name>.json. "
                        "auto: the values of hparams/auto.json, and layers from a causal trace of 100 facts of the data set; "
                        "auto:FOLDER: layers from a trace of experiments.causal_trace")
    parser.add_argument("--ds_name", "--dataset_name",
                        help="mcf, cf, zsre, world, or the path of a .json file in the schema of one of them; "
                             "by default world for the model world, else mcf")
    parser.add_argument("--dataset_size_limit", type=at_least_one, help="only the first so many records")
    parser.add_argument("--num_edits", type=at_least_one, default=1, help="records that are edited into the model together")
    parser.add_argument("--continue_from_run", metavar="run_<NNN>", help="go on with this run of the same configuration")
    parser.add_argument("--skip_generation_tests", action="store_true",
                        help="no sampled texts: fluency, consistency, essence")
    parser.add_argument("--generation_test_interval", type=_interval, default=1,
                        help="sample texts for cases whose case_id is a multiple of this; -1: never")
    parser.add_argument("--contains_length", type=a_count, default=0,
                        help="also tell whether the target is anywhere in a greedy continuation to so many tokens, the "
                             "prompt's included (the unified-editing code's accuracy, with 50); 0: don't")
    parser.add_argument("--context_templates", metavar="FILE",
                        help='JSON file of the contexts that an edit shall hold in, [["{}"], ["So it is. {}", ...]]; by '
                             "default they are sampled from the model")
    parser.add_argument("--use_cache", action="store_true",
                        help="keep target states (z) on disk, and reuse those that were computed from all the same")
    parser.add_argument("--conserve_memory", action="store_true",
                        help="keep the original weights on the CPU while an edit is in the model")
    parser.add_argument("--sample_num", type=int, metavar="0..9",
                        help="take the records in this published edit order (each subject once), not in the order of the file")
    parser.add_argument("--index_file", help="file of positions to take the records in; --sample_num tells which of its orders")
    parser.add_argument("--max_edits", type=at_least_one, help="stop after so many records of the order")
    _add_switch(parser, "--sequential", "edit each batch into what the earlier ones left, and never take one out")
    parser.add_argument("--checkpoint_steps", type=at_least_one, default=10,
                        help="sequential: save what a killed run goes on from every so many batches")
    parser.add_argument("--history_eval_steps", type=a_count, default=0,
                        help="sequential: measure earlier edits again every so many batches and at the end; 0: never")
    parser.add_argument("--history_sample", type=at_least_one, help="measure so many of the earlier edits; by default all")
    parser.add_argument("--perplexity_corpus", help="measure the perplexity of the first 20 texts of this .txt or .jsonl file, or "
                        "data set of the hub, on the unedited model and whenever the history is measured; world: its own corpus")
    _add_switch(parser, "--save_edits", "keep the edit of every batch in the run's folder, as edits/<batch>.safetensors, for "
                                        "experiments.export and Edit.load")
    _add_switch(parser, "--save_model", "save the edited model as transformers loads it")
    parser.add_argument("--save_model_interval", type=at_least_one, default=100, help="batches from one to the next")
    parser.add_argument("--save_model_location", help="folder for them; by default models in the run's folder")
    _add_switch(parser, "--do_downstream_eval", "measure downstream tasks on the unedited and the edited model")
    parser.add_argument("--downstream_eval_steps", type=at_least_one, default=100, help="batches from one time to the next")
    add_downstream_flags(parser)
    _add_language_flags(parser)
    parser.add_argument("--dir_name", help="folder of the run in the results folder; by default the editor's name")
    parser.add_argument("--results_dir", default="results", help="the results folder")
    parser.add_argument("--data_dir",
                        help="data files and caches; by default KE_DATA_DIR, else ~/.cache/knowledge-editing/data")
    parser.add_argument("--stats_dir", help="second moments; by default KE_STATS_DIR, else stats in the data folder")
    parser.add_argument("--seed", type=a_seed, default=0, help="of everything that is sampled: contexts and texts")
    add_model_flags(parser)
    return parser


def command() -> None:
    run = main(**vars(command_line().parse_args()))
    print(f"results: {run}")


if __name__ == "__main__":
    run_program(command, several=True)
