"""Edit data for the learned editors, as text: ``load("qa", "train")``.

Of files in the published formats, or of the built-in world. Rows become items (one edit with its equivalents) and unrelated
examples; ``batches`` puts them together as the published samplers do. Nothing here knows tokens or tensors.
"""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import nearest_name, UserError
from data.download import data_folder
from data.episodes import claims, continuations, locality, neighbours, opinions, published, qa, world
from data.episodes.base import check_recipe, DataSpec, EditRows
from data.episodes.lines import file_of_split
from data.episodes.options import DataOptions
from data.episodes.splits import by_subject
from data.episodes.types import EditBatch, Example, EXPERIMENTS, Item, MAX_LENGTH, Neighbours, SPLITS

__all__ = ["EXPERIMENTS", "MAX_LENGTH", "SPLITS", "EditBatch", "Example", "Item", "DataOptions",
           "experiment_name", "load"]

_DEV = {"train": "train", "validation": "dev", "test": "test"}


def experiment_name(name: str) -> str:
    """The usual name of an experiment, aliases resolved. Raises UserError."""
    if name not in EXPERIMENTS:
        raise UserError(f"unknown experiment {name!r}; {nearest_name(name, EXPERIMENTS)}known are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def load(experiment: str, split: str, source: str = "files", options: Mapping[str, Any] | DataOptions | None = None,
         seed: int = 0, data_dir: str | Path | None = None, recipe: str = "mend") -> EditRows:
    """The edit data of one split.

    experiment: gen, fc, qa, fnli or sent, or an alias. split: train, validation or test. source: "files", or "world" for the
    built-in one, whose splits share no subject. options: the keys ``data.*``. seed: of everything that is drawn.
    recipe: "mend" or "serac", whose equivalents, unrelated inputs and sampler are used.
    Raises UserError: unknown names, files that are missing or not of their schema, too few rows.
    """
    experiment = experiment_name(experiment)
    check_recipe(recipe)
    if split not in SPLITS:
        raise UserError(f"the splits are {', '.join(SPLITS)}, not {split!r}")
    if source not in ("files", "world"):
        raise UserError(f'the source of edit data is "files" or "world", not {source!r}')
    options = options if isinstance(options, DataOptions) else DataOptions.of(options or {})
    for name in ("same_relation", "preceded", "asked"):
        if getattr(options, name) and (experiment, source) != ("gen", "world"):
            raise UserError(f"data.{name} is for gen in the built-in world, whose facts are known; "
                            f"not for {experiment} of {source}")
    spec = DataSpec(experiment, split, source, options, recipe, seed)
    if source == "world":
        return _world(spec)
    return {"gen": _gen, "fc": _fc, "qa": _qa, "fnli": _fnli, "sent": _sent}[experiment](spec, data_dir)


def _gen(spec: DataSpec, data_dir: str | Path | None) -> EditRows:
    # The published suffix is the first five letters of the split's name.
    prefix = spec.options.path
    if prefix is not None and Path(prefix).is_dir():
        prefix = f"{prefix.rstrip('/')}/"
    path = file_of_split(None if prefix is None else f"{prefix}{spec.split[:5]}.json",
                      f"10token/data/self_sample/{spec.split[:5]}.json", data_dir, spec.split,
                      f"{continuations.SCHEMA}; python -m experiments.make_episodes gen makes it")
    rows = continuations.read(path)
    return continuations.Completions(spec, rows, locality.passages(spec.split, spec.options), name=str(path))


def _fc(spec: DataSpec, data_dir: str | Path | None) -> EditRows:
    path = file_of_split(spec.options.fever_path, "fever/fever-{}-kilt.jsonl", data_dir, _DEV[spec.split], claims.FEVER_SCHEMA)
    return claims.Claims(spec, claims.read_fever(path), name=str(path))


def _qa(spec: DataSpec, data_dir: str | Path | None) -> EditRows:
    options, split = spec.options, _DEV[spec.split]
    path = file_of_split(options.zsre_path, "zsre/structured_zeroshot-{}-new_annotated_final.jsonl", data_dir, split, qa.SCHEMA)
    rows = qa.read(path, options.zsre_eval_idxs)
    if spec.recipe == "serac":
        if options.zsre_impl:
            rows = qa.with_implied(rows, file_of_split(options.zsre_impl_path, "zsre/impl_{}.json", data_dir, split,
                                                    "a JSON list of lists of [question, answer, ...], one a question"))
        if options.zsre_yn:
            rows = qa.with_yes_no(rows, file_of_split(options.zsre_yn_path, "zsre/zsre_yn_{}.txt", data_dir, split,
                                                   "one true-or-false question a line, aligned with the questions"))
    if options.zsre_path and "{}" not in options.zsre_path:
        rows = by_subject(rows, lambda row: row.subject or row.question, spec.split)
    return _questions(spec, rows, str(path), data_dir)


def _questions(spec: DataSpec, rows: Sequence[qa.Question], name: str, data_dir: str | Path | None) -> EditRows:
    options = spec.options
    if spec.recipe == "mend":
        use_nq = options.zsre_nq in (None, True) and (spec.split != "train" or options.zsre_nq_train)
        if not use_nq or spec.source == "world":
            return qa.MendQuestions(spec, rows, name=name)
        return qa.MendQuestions(spec, rows, _unrelated_questions(spec, rows, data_dir), name=name)
    rows = qa.without_left_out(rows)
    owners: Sequence[int | None] | None = None
    if options.zsre_nq and spec.source != "world":
        local = _unrelated_questions(spec, rows, data_dir)
    else:
        local, owners = qa.mixture(rows, spec)
    neighbours = _neighbours(spec, [row.question for row in rows], [example.input for example in local], owners)
    return qa.SeracQuestions(spec, rows, local, owners, name, neighbours)


def _unrelated_questions(spec: DataSpec, rows: Sequence[qa.Question], data_dir: str | Path | None) -> list[Example]:
    """The questions of Natural Questions that the rows bring along, else those of its file."""
    local = [Example(*row.local) for row in rows if row.local]
    return local or locality.natural_questions(spec.split, spec.options, data_dir)


def _fnli(spec: DataSpec, data_dir: str | Path | None) -> EditRows:
    split = _DEV[spec.split]
    usual = data_folder(data_dir) / "vitaminc" / f"{split}.jsonl"
    if spec.options.vitaminc_path is None and not usual.exists():
        published.vitaminc(split, usual)
    path = file_of_split(spec.options.vitaminc_path, "vitaminc/{}.jsonl", data_dir, split, claims.VITAMINC_SCHEMA)
    rows = claims.read_vitaminc(path, spec.seed)
    if spec.options.vitaminc_path and "{}" not in spec.options.vitaminc_path:
        rows = by_subject(rows, lambda row: row.page, spec.split)
    return claims.EvidencedClaims(spec, rows, name=str(path))


def _sent(spec: DataSpec, data_dir: str | Path | None) -> EditRows:
    names = {"train": "train", "validation": "val", "test": "test"}
    path = file_of_split(spec.options.sentiment_path, "sentiment/blender_{}.json", data_dir, names[spec.split], opinions.SCHEMA)
    return _opinions(spec, opinions.read(path), str(path))


def _opinions(spec: DataSpec, rows: Sequence[opinions.Opinions], name: str) -> EditRows:
    entities = [row.entity for row in rows]
    return opinions.OpinionEdits(spec, rows, name=name,
                                 neighbours=_neighbours(spec, entities, entities, range(len(rows))))


def _neighbours(spec: DataSpec, edits: Sequence[str], candidates: Sequence[str],
                owners: Sequence[int | None] | None) -> Neighbours | None:
    """The hard negatives of the edits, if the options ask for them."""
    options = spec.options
    if spec.recipe != "serac" or not options.hard_neg:
        return None
    is_world = spec.source == "world"
    encode = neighbours.encoder(options.hard_neg_encoder or ("words" if is_world else neighbours.MINILM))
    exclude = options.hard_neg_exclude if options.hard_neg_exclude is not None else (0 if is_world else 25)
    return neighbours.nearest(edits, candidates, encode, options, exclude, owners)


def _world(spec: DataSpec) -> EditRows:
    rows = world.rows(spec.experiment, spec.split, spec.options)
    name = f"world:{spec.options.facts or 'usual'}:{spec.options.language}"
    if spec.experiment == "qa":
        return _questions(spec, rows, name, None)
    if spec.experiment == "sent":
        return _opinions(spec, rows, name)
    kinds = {"gen": continuations.Continuations, "fc": claims.Claims, "fnli": claims.EvidencedClaims}
    return kinds[spec.experiment](spec, rows, name=name)
