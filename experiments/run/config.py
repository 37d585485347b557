"""What ``python -m experiments.evaluate`` is told: every flag once, in groups, with its help, the words it accepts, and what
it means for a run that goes on.

From :class:`RunConfig` follow the command line, the keywords of ``experiments.evaluate.main``, the keys of a sweep, the
"flags" of run.json and the checks of ``--continue_from_run``. Other programs take its groups for the flags they share.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from data import downstream as tasks
from data import languages
import editors
from experiments.run.cli import a_count, a_seed, at_least_one, HelpFormatter, Parser

ATTENTION = ("ITI", "MEMAT")
"""Editors that correct attention heads after MEMIT's edit."""
DEFAULT_HEADS, DEFAULT_ALPHA = 16, 15.0

ALWAYS, OR_NULL, IF_SET, WITH_TASKS = "always", "or null", "if set", "with tasks"
"""How "settings" of run.json, in which a run that goes on must agree, hold a flag: its value; null where it is not set; not at
all where it is not set; among those of the downstream tasks."""


@dataclass(frozen=True)
class Flag:
    """What is known of a field of a configuration beside its name and default."""

    help: str
    parse: Callable[[str], Any] = str
    """The value of a word; raises ArgumentTypeError for one that is out of bounds."""
    choices: Sequence[str] | None = None
    metavar: str | None = None
    alias: str | None = None
    """Another name on the command line."""
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """{flag without which this one has no effect: how to say so}"""
    settles: str | None = None
    """Whether only a run with the same value can be continued, and how run.json says so (:data:`ALWAYS` and others)."""
    repeated: bool = False
    """Whether the command line may have it several times; its value is a list."""
    saves: bool = False
    """Whether it keeps something while a batch is edited, which a run that goes on can't make up for."""


def flag(default: Any, text: str, **about: Any) -> Any:
    """A field with this default (``...``: it must be given) and help, and what else :class:`Flag` says."""
    default = dataclasses.MISSING if default is ... else default
    return dataclasses.field(default=default, metadata={"flag": Flag(text, **about)})


def flags_of(config: type | RunConfig) -> Iterator[tuple[dataclasses.Field, Flag]]:
    """Each field of a configuration, or of a part of one, with what is known of it."""
    return ((field, field.metadata["flag"]) for field in dataclasses.fields(config))


def add_flags(parser: argparse._ActionsContainer, part: type, *names: str) -> None:
    """Adds the flags of a part of a configuration, or only those of these names, to a parser or a group of one."""
    for field, about in flags_of(part):
        if names and field.name not in names:
            continue
        options: dict[str, Any] = {"help": about.help}
        if field.default is False and about.parse is str:
            options["action"] = "store_true"
        else:
            options |= {"default": field.default, "type": about.parse, "choices": about.choices, "metavar": about.metavar}
        if about.repeated:
            options |= {"action": "append"}
        if about.parse is true_or_false:
            options |= {"nargs": "?", "const": True, "metavar": "True|False"}
        if field.default is dataclasses.MISSING:
            options |= {"default": None, "required": True}
        parser.add_argument(f"--{field.name}", *([f"--{about.alias}"] if about.alias else []), **options)
        if field.name == "device":
            parser.add_argument("--device_map", dest="device", type=_device_map, default=argparse.SUPPRESS, metavar="auto",
                                help="auto: the same as --device map")


def true_or_false(word: str) -> bool:
    """The type of a flag that stands alone or, as in published commands, with True or False behind it."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if word.lower() not in words:
        raise argparse.ArgumentTypeError(f"{word!r} should be True or False")
    return words[word.lower()]


def an_interval(word: str) -> int:
    """The type of a flag that takes a whole number from 1, or -1 for never."""
    if word != "-1" and (not word.isdecimal() or int(word) < 1):
        raise argparse.ArgumentTypeError(f"{word!r} should be a whole number from 1, or -1 (never)")
    return int(word)


def numbers(kind: type, check: Callable[[Any], bool], what: str) -> Callable[[str], list]:
    """The type of a flag that takes one number or several, with commas between."""

    def parse(text: str) -> list:
        try:
            values = [kind(part) for part in text.split(",")]
        except ValueError:
            values = []
        if not values or not all(map(check, values)) or len(set(values)) < len(values):
            raise argparse.ArgumentTypeError(f"{text!r} should be {what}, or several different ones with commas between")
        return values

    return parse


def _device_map(word: str) -> str:
    if word != "auto":
        raise argparse.ArgumentTypeError(f"{word!r} should be auto")
    return "map"


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """What :func:`experiments.run.models.load_model` takes."""

    model_name: str = flag("world", "Hugging Face hub id, local folder, .gguf file, the built-in world, or smollm2")
    dtype: str = flag(
        "auto", "of the model; auto: the checkpoint's own, but float32 where a CPU would compute in 16 bits",
        choices=("auto", "float32", "float16", "bfloat16", "float64"))
    device: str = flag(
        "auto", "auto (cuda, mps or cpu, the first there is), cpu, cuda, cuda:1, mps, or map: spread a model over all devices "
        "(accelerate's device_map)")


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Which records, in which order."""

    ds_name: str | None = flag(
        None, "mcf, cf, zsre, world, or the path of a file in the schema of one of them, or of your own facts (docs/facts.md); "
        "by default world for the model world, else mcf", alias="dataset_name")
    dataset_size_limit: int | None = flag(None, "only the first so many records", parse=at_least_one)
    sample_num: int | None = flag(
        None, "take the records in this published edit order (each subject once), not in the order of the file", parse=int,
        metavar="0..9")
    index_file: str | Path | None = flag(
        None, "file of positions to take the records in; --sample_num tells which of its orders")
    max_edits: int | None = flag(None, "stop after so many records of the order", parse=at_least_one)


@dataclass(frozen=True, kw_only=True)
class EditFlags:
    """The editor, its hyper-parameters, and what it edits together."""

    alg_name: str = flag(..., f"editor: {', '.join(editors.names())}", settles=ALWAYS)
    hparams_fname: str | Path | None = flag(
        None, "file in hparams/<alg_name>/, or a path; by default <model_name>.json. auto: the values of hparams/auto.json, "
        "and layers from a causal trace of 100 facts of the data set; auto:FOLDER: layers from a trace of "
        "experiments.causal_trace", alias="hparams")
    set: Sequence[str] | None = flag(
        None, "change a hyper-parameter of the file: mom2_update_weight=400, layers=[4,5]; may be repeated",
        metavar="KEY=VALUE", repeated=True)
    num_edits: int = flag(1, "records that are edited into the model together", parse=at_least_one, settles=ALWAYS)
    context_templates: str | Path | None = flag(
        None, 'JSON file of the contexts that an edit shall hold in, [["{}"], ["So it is. {}", ...]]; by default they are '
        'sampled from the model', metavar="FILE")
    use_cache: bool = flag(False, "keep target states (z) on disk and, without --sequential, metrics of the unedited model; "
                           "reuse those that were computed from all the same")
    conserve_memory: bool = flag(False, "keep the original weights on the CPU while an edit is in the model")
    seed: int = flag(0, "of everything that is sampled: contexts and texts", parse=a_seed, settles=ALWAYS)
    save_edits: bool = flag(
        False, "keep the edit of every batch in the run's folder, as edits/<batch>.safetensors, for experiments.export and "
        "Edit.load", parse=true_or_false)


@dataclass(frozen=True, kw_only=True)
class MeasureFlags:
    """What is measured of a case."""

    skip_generation_tests: bool = flag(False, "no sampled texts: fluency, consistency, essence", settles=ALWAYS)
    generation_test_interval: int = flag(
        1, "sample texts for cases whose case_id is a multiple of this; -1: never", parse=an_interval, settles=ALWAYS)
    contains_length: int = flag(
        0, "also tell whether the target is anywhere in a greedy continuation to so many tokens, the prompt's included (the "
        "unified-editing code's accuracy, with 50); 0: don't", parse=a_count, settles=IF_SET)


_SEQUENCE = {"sequential": "--sequential"}


@dataclass(frozen=True, kw_only=True)
class SequenceFlags:
    """Each batch edited into what the earlier ones left; models that are saved."""

    sequential: bool = flag(
        False, "edit each batch into what the earlier ones left, and never take one out", parse=true_or_false, settles=ALWAYS)
    checkpoint_steps: int = flag(
        10, "sequential: save what a killed run goes on from every so many batches", parse=at_least_one)
    history_eval_steps: int = flag(
        0, "sequential: measure earlier edits again every so many batches and at the end; 0: never", parse=a_count,
        needs=_SEQUENCE, settles=ALWAYS)
    history_sample: int | None = flag(
        None, "measure so many of the earlier edits; by default all", parse=at_least_one,
        needs={"history_eval_steps": "--history_eval_steps"}, settles=ALWAYS)
    perplexity_corpus: str | None = flag(
        None, "measure the perplexity of this .txt or .jsonl file, or data set of the hub, as one stream of tokens, on the "
        "unedited model, and whenever a sequence measures its history; of batches apart, under every one (of more than "
        "ten, ten of them). world: its own corpus", settles=ALWAYS)
    perplexity_tokens: int | None = flag(
        None, "read so many tokens of it; by default all of a file, 500,000 of a data set of the hub", parse=at_least_one,
        needs={"perplexity_corpus": "--perplexity_corpus"}, settles=OR_NULL)
    save_model: bool = flag(False, "save the edited model as transformers loads it", parse=true_or_false, saves=True)
    save_model_interval: int = flag(100, "batches from one to the next", parse=at_least_one)
    save_model_location: str | Path | None = flag(
        None, "folder for them; by default models in the run's folder", needs={"save_model": "--save_model"})


_LANGUAGE = {"language": "--language"}
_HEADS = {"add_attention": "--add_attention, or --alg_name MEMAT"}


@dataclass(frozen=True, kw_only=True)
class LanguageFlags:
    """Editing in one language and measuring in several; correcting attention heads."""

    language: str | None = flag(
        None, "edit in this language and tell languages apart (no texts are generated); ds_name is then a data set in it: "
        f"{', '.join(languages.names())}", settles=OR_NULL)
    language_eval: str | None = flag(
        None, "language that heads are chosen and corrected in; by default --language", needs=_LANGUAGE, settles=OR_NULL)
    languages_measured: str | None = flag(
        None, "languages to measure in, comma-separated; by default all that the data is in", needs=_LANGUAGE, settles=OR_NULL)
    pairing: str | None = flag(
        None, "how prompts in two wordings are scored: each with its own object, or crossed as published; by default legacy "
        "with the profile paper, else matched", choices=("matched", "legacy"), needs=_LANGUAGE, settles=OR_NULL)
    profile: str | None = flag(
        None, "MEMAT as its paper says, or as its published code computes", choices=("default", "paper"), needs=_LANGUAGE,
        settles=OR_NULL)
    bilingual: str | None = flag(
        None, "edit in both languages: the sum of two edits, or one edit that is sought for both", choices=("sum", "joint"),
        needs=_LANGUAGE, settles=OR_NULL)
    add_attention: bool = flag(False, "after MEMIT's edit correct attention heads: MEMAT")
    top_num_heads: Sequence[int] | None = flag(
        None, f"heads to correct, or several numbers, 8,16,32; by default {DEFAULT_HEADS}; 0: none, MEMIT's edit alone with "
        "MEMAT's hyper-parameters", parse=numbers(int, lambda n: n >= 0, "a whole number from 0"), needs=_HEADS,
        settles=OR_NULL)
    alpha: Sequence[float] | None = flag(
        None, f"ITI: strength, or several, 1,5,15; by default {DEFAULT_ALPHA:g}",
        parse=numbers(float, math.isfinite, "a number"), needs=_HEADS, settles=OR_NULL)
    head_ind: str | None = flag(
        None, "correct the heads of this .npy file; {} in its name is the number of the batch", needs=_HEADS, settles=OR_NULL)
    load_attention: str | None = flag(
        None, "with these vectors, of this toolkit or the original; {} as above", settles=OR_NULL,
        needs=_HEADS | {"head_ind": "--head_ind, which says whose vectors they are"})
    save_attention_heads: str | None = flag(
        None, "save vectors and heads of every batch", metavar="PREFIX", needs=_HEADS, saves=True)
    load_delta: str | None = flag(
        None, "instead of MEMIT's edit this one, of this toolkit or the original ({} as above); original_model: none",
        needs=_LANGUAGE, settles=OR_NULL)
    save_delta_matrix: str | None = flag(
        None, "save MEMIT's edit of every batch", metavar="PREFIX", needs=_LANGUAGE, saves=True)
    save_figure: str | None = flag(None, "draw how well every head tells new facts from old ones", metavar="PATH", needs=_HEADS)
    eval_on_others: bool = flag(False, "leave out the first batch, which heads were chosen on", needs=_HEADS, settles=OR_NULL)


_TASKS = {"do_downstream_eval": "--do_downstream_eval"}


@dataclass(frozen=True, kw_only=True)
class TaskFlags:
    """What :func:`experiments.run.tasks.prepare` takes."""

    downstream_tasks: str | None = flag(None, f"comma-separated, of {', '.join(tasks.TASKS)}", needs=_TASKS)
    number_of_few_shots: str = flag(
        "-1", f"examples in front of a question, 0 to {tasks.POOL}: one number a task, comma-separated; -1: none")
    number_of_tests: int | None = flag(None, "the first so many examples of each task; by default all", parse=int, needs=_TASKS)
    gen_len: int = flag(3, "tokens that the model generates as an answer", parse=int, settles=WITH_TASKS)
    legacy_rte_labels: bool = flag(
        False, 'as published, "False" is right for rte pairs that are entailed', needs=_TASKS, settles=WITH_TASKS)
    downstream_data: str | Path | None = flag(
        None, "folder of the tasks' .jsonl, .json or .parquet files, or world; by default world for the model world, else "
        "downstream in the data folder, which is filled from the hub", needs=_TASKS)


@dataclass(frozen=True, kw_only=True)
class DownstreamFlags:
    """When downstream tasks are measured."""

    do_downstream_eval: bool = flag(False, "measure downstream tasks on the unedited and the edited model", parse=true_or_false)
    downstream_eval_steps: int = flag(100, "batches from one time to the next", parse=at_least_one, settles=WITH_TASKS)


@dataclass(frozen=True, kw_only=True)
class FolderFlags:
    """Where data is read and results are written."""

    results_dir: str | Path = flag("results", "the results folder")
    data_dir: str | Path | None = flag(
        None, "data files and caches; by default KE_DATA_DIR, else ~/.cache/knowledge-editing/data")


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Where a run and its statistics are."""

    dir_name: str | None = flag(None, "folder of the run in the results folder; by default the editor's name")
    continue_from_run: str | None = flag(None, "go on with this run of the same configuration", metavar="run_<NNN>")
    stats_dir: str | Path | None = flag(None, "second moments; by default KE_STATS_DIR, else stats in the data folder")


GROUPS: Mapping[str, tuple[type, ...]] = {
    "model": (ModelFlags,), "data": (DataFlags,), "edit": (EditFlags,), "measure": (MeasureFlags,),
    "sequence": (SequenceFlags,), "languages": (LanguageFlags,), "downstream": (DownstreamFlags, TaskFlags),
    "folders": (FolderFlags, RunFlags),
}
"""Of the command line's help."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(
    RunFlags, FolderFlags, TaskFlags, DownstreamFlags, LanguageFlags, SequenceFlags, MeasureFlags, EditFlags, DataFlags,
    ModelFlags,
):
    """Everything that a run of experiments.evaluate is told."""

    def flags(self) -> dict[str, Any]:
        """As run.json holds them."""
        values = ((field.name, getattr(self, field.name)) for field, _ in flags_of(self))
        return {name: str(value) if isinstance(value, Path) else value for name, value in values}

    def settled(self, *ways: str) -> dict[str, Any]:
        """The flags that settle, in one of these ways, whether a run can be continued: as run.json's "settings" hold them."""
        values = ((field.name, about.settles, getattr(self, field.name)) for field, about in flags_of(self))
        return {name: value or None if way == OR_NULL else value for name, way, value in values
                if way in ways and (way != IF_SET or value)}

    def check_continued(self, run: Path, earlier: Mapping[str, Any]) -> None:
        """Raises UserError for what the run, begun with the flags ``earlier``, did not save on its way."""
        for field, about in flags_of(self):
            if about.saves and getattr(self, field.name) and not earlier.get(field.name):
                raise UserError(f"--{field.name}: {run} was begun without it, and what is edited already would not be saved; "
                                "leave it out, or start a new run")

    def check_needs(self) -> None:
        """Raises UserError for a flag that has no effect without another."""
        for field, about in flags_of(self):
            for name, text in about.needs.items():
                if getattr(self, field.name) and not getattr(self, name):
                    raise UserError(f"--{field.name} has no effect without {text}")
        if self.perplexity_corpus and self.sequential and not self.history_eval_steps:
            raise UserError("--perplexity_corpus has no effect with --sequential and without --history_eval_steps")

    @contextmanager
    def folders(self) -> Iterator[None]:
        """The editors look for statistics where the environment says: inside, in these folders."""
        before = dict(os.environ)
        folders = {"KE_DATA_DIR": self.data_dir, "KE_STATS_DIR": self.stats_dir}
        os.environ.update({name: str(folder) for name, folder in folders.items() if folder is not None})
        try:
            yield
        finally:
            for name in folders:
                os.environ.pop(name, None)
                if name in before:
                    os.environ[name] = before[name]

    def complete(self) -> RunConfig:
        """The same with what flags say by what others do not.

        Raises UserError for heads that are corrected after another edit than MEMIT's.
        """
        alg_name = "MEMAT" if self.add_attention and self.alg_name == "MEMIT" else self.alg_name
        corrects = alg_name in ATTENTION
        if self.add_attention and not corrects:
            raise UserError(f"--add_attention goes with MEMIT, not with {alg_name}")
        language = self.language or ("english" if corrects or self.bilingual else None)
        return dataclasses.replace(
            self, alg_name=alg_name, add_attention=corrects, language=language, dir_name=self.dir_name or self.alg_name,
            language_eval=self.language_eval or language,
            top_num_heads=list(self.top_num_heads or [DEFAULT_HEADS]) if corrects else self.top_num_heads,
            alpha=list(self.alpha or [DEFAULT_ALPHA]) if alg_name == "ITI" else self.alpha,
            ds_name=str(self.ds_name or ("world" if self.model_name == "world" else "mcf")))


def command_line(description: str = "") -> Parser:
    """The command line of experiments.evaluate: every flag, in groups."""
    parser = Parser(prog="python -m experiments.evaluate", description=description, formatter_class=HelpFormatter)
    for title, parts in GROUPS.items():
        group = parser.add_argument_group(title)
        for part in parts:
            add_flags(group, part)
    return parser
