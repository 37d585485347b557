"""Edit data for the learned editors, as text: ``load("qa", "train")``.

Of files in the published formats, or of the built-in world. Rows become items (one edit with its equivalents) and unrelated
examples; ``batches`` puts them together as the published samplers do. Nothing here knows tokens or tensors.
"""
from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.download import data_folder
from data.episodes import claims, continuations, locality, neighbours, opinions, published, qa, world
from data.episodes.base import check_recipe, Place, Rows
from data.episodes.lines import place as file_place
from data.episodes.options import Options
from data.episodes.splits import by_subject
from data.episodes.types import Batch, EpisodeData, Example, EXPERIMENTS, Item, MAX_LENGTH, SPLITS

__all__ = ["EXPERIMENTS", "MAX_LENGTH", "SPLITS", "Batch", "EpisodeData", "Example", "Item", "Options",
           "experiment_name", "load"]

_DEV = {"train": "train", "validation": "dev", "test": "test"}


def experiment_name(name: str) -> str:
    """The usual name of an experiment, aliases resolved. Raises UserError."""
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS, n=1)
        raise UserError(f"unknown experiment {name!r}; " + (f"did you mean {near[0]!r}? " if near else "")
                        + f"known are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def load(experiment: str, split: str, source: str = "files", options: Mapping[str, Any] | Options | None = None, seed: int = 0,
         data_dir: str | Path | None = None, recipe: str = "mend") -> Rows:
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
    options = options if isinstance(options, Options) else Options.of(options or {})
    for name in ("same_relation", "preceded", "asked"):
        if getattr(options, name) and (experiment, source) != ("gen", "world"):
            raise UserError(f"data.{name} is for gen in the built-in world, whose facts are known; not for {experiment} of {source}")
    where = Place(experiment, split, source, options, recipe, seed)
    if source == "world":
        return _world(where)
    return {"gen": _gen, "fc": _fc, "qa": _qa, "fnli": _fnli, "sent": _sent}[experiment](where, data_dir)


def _gen(where: Place, data_dir: str | Path | None) -> Rows:
    # The published suffix is the first five letters of the split's name.
    prefix = where.options.path
    if prefix is not None and Path(prefix).is_dir():
        prefix = f"{prefix.rstrip('/')}/"
    path = file_place(None if prefix is None else f"{prefix}{where.split[:5]}.json",
                      f"10token/data/self_sample/{where.split[:5]}.json", data_dir, where.split,
                      f"{continuations.SCHEMA}; python -m experiments.make_episodes gen makes it")
    rows = continuations.read(path)
    return continuations.Completions(where, rows, locality.passages(where.split, where.options), name=str(path))


def _fc(where: Place, data_dir: str | Path | None) -> Rows:
    path = file_place(where.options.fever_path, "fever/fever-{}-kilt.jsonl", data_dir, _DEV[where.split], claims.FEVER_SCHEMA)
    return claims.Claims(where, claims.read_fever(path), name=str(path))


def _qa(where: Place, data_dir: str | Path | None) -> Rows:
    options, split = where.options, _DEV[where.split]
    path = file_place(options.zsre_path, "zsre/structured_zeroshot-{}-new_annotated_final.jsonl", data_dir, split, qa.SCHEMA)
    rows = qa.read(path, options.zsre_eval_idxs)
    if where.recipe == "serac":
        if options.zsre_impl:
            rows = qa.with_implied(rows, file_place(options.zsre_impl_path, "zsre/impl_{}.json", data_dir, split,
                                                    "a JSON list of lists of [question, answer, ...], one a question"))
        if options.zsre_yn:
            rows = qa.with_yes_no(rows, file_place(options.zsre_yn_path, "zsre/zsre_yn_{}.txt", data_dir, split,
                                                   "one true-or-false question a line, aligned with the questions"))
    if options.zsre_path and "{}" not in options.zsre_path:
        rows = by_subject(rows, lambda row: row.subject or row.question, where.split)
    return _questions(where, rows, str(path), data_dir)


def _questions(where: Place, rows: Sequence[qa.Question], name: str, data_dir: str | Path | None) -> Rows:
    options = where.options
    if where.recipe == "mend":
        wanted = options.zsre_nq in (None, True) and (where.split != "train" or options.zsre_nq_train)
        if not wanted or where.source == "world":
            return qa.MendQuestions(where, rows, name=name)
        brought = [Example(*row.local) for row in rows if row.local]
        return qa.MendQuestions(where, rows, brought or locality.natural_questions(where.split, options, data_dir), name=name)
    rows = qa.without_left_out(rows)
    owners: Sequence[int | None] | None = None
    if options.zsre_nq and where.source != "world":
        local = [Example(*row.local) for row in rows if row.local] or locality.natural_questions(where.split, options, data_dir)
    else:
        local, owners = qa.mixture(rows, where)
    found = _neighbours(where, [row.question for row in rows], [example.input for example in local], owners)
    return qa.SeracQuestions(where, rows, local, owners, name, found)


def _fnli(where: Place, data_dir: str | Path | None) -> Rows:
    split = _DEV[where.split]
    usual = data_folder(data_dir) / "vitaminc" / f"{split}.jsonl"
    if where.options.vitaminc_path is None and not usual.exists():
        published.vitaminc(split, usual)
    path = file_place(where.options.vitaminc_path, "vitaminc/{}.jsonl", data_dir, split, claims.VITAMINC_SCHEMA)
    rows = claims.read_vitaminc(path, where.seed)
    if where.options.vitaminc_path and "{}" not in where.options.vitaminc_path:
        rows = by_subject(rows, lambda row: row.page, where.split)
    return claims.EvidencedClaims(where, rows, name=str(path))


def _sent(where: Place, data_dir: str | Path | None) -> Rows:
    names = {"train": "train", "validation": "val", "test": "test"}
    path = file_place(where.options.sentiment_path, "sentiment/blender_{}.json", data_dir, names[where.split], opinions.SCHEMA)
    return _opinions(where, opinions.read(path), str(path))


def _opinions(where: Place, rows: Sequence[opinions.Opinions], name: str) -> Rows:
    entities = [row.entity for row in rows]
    return opinions.OpinionEdits(where, rows, name=name,
                                 neighbours=_neighbours(where, entities, entities, range(len(rows))))


def _neighbours(where: Place, edits: Sequence[str], candidates: Sequence[str], owners: Sequence[int | None] | None):
    options = where.options
    if where.recipe != "serac" or not options.hard_neg:
        return None
    invented = where.source == "world"
    encode = neighbours.encoder(options.hard_neg_encoder or ("words" if invented else neighbours.MINILM))
    exclude = options.hard_neg_exclude if options.hard_neg_exclude is not None else (0 if invented else 25)
    return neighbours.nearest(edits, candidates, encode, options, exclude, owners)


def _world(where: Place) -> Rows:
    rows = world.rows(where.experiment, where.split, where.options)
    name = f"world:{where.options.facts or 'usual'}:{where.options.language}"
    if where.experiment == "qa":
        return _questions(where, rows, name, None)
    if where.experiment == "sent":
        return _opinions(where, rows, name)
    kinds = {"gen": continuations.Continuations, "fc": claims.Claims, "fnli": claims.EvidencedClaims}
    return kinds[where.experiment](where, rows, name=name)
