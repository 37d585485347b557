"""What a training of a learned editor needs, made from its configuration and checked before anything is written."""

import dataclasses
import pkgutil
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import UserError
from data import episodes
from editors.core.checks import check_editable
from editors.learned import algorithms
from editors.learned.editable import Editable
from editors.learned.episode import Collator
from editors.learned.run_log import LOG
from editors.learned.trainer import BEST, DEBUG_STEPS, LAST, TrainConfig, Trainer
from experiments.training.episodes import Episodes
from experiments.training.models import inner_params_of, load_editable, set_dropout

UNREAD = ("ref", "log_errors", "dataset", "model_save_pt", "edit_bs", "base_loss", "oracle", "train", "tokenizer")
"""Keys of published configurations without effect."""
AGREED = ("seed", "batch_size", "single_batch", "dropout", "no_grad_layers", "half")
"""Keys that a run which goes on must have as before, beside the trainer's and the data's."""
_SERAC_DATA = ("zsre_impl", "zsre_yn", "flip_inner_outer", "hard_neg")


@dataclass(frozen=True)
class Setup:
    """What a run needs; all of it checked."""

    trainer: Trainer
    final: Episodes
    """Where the final evaluation is made."""
    split: str
    config: Mapping[str, Any]
    about: Mapping[str, Any]
    """Identity of model and data, for the results."""


def prepare(config: Mapping[str, Any], folder: Path) -> Setup:
    """config: the composed configuration, as plain values. folder: of a new run.

    Raises UserError for whatever does not fit.
    """
    _warn_of_unread(config)
    if config["archive"] is None:
        check_unused(folder)
    experiment = episodes.experiment_name(config["task"])
    algorithm = algorithms.algorithm(config["alg"])
    config = {**config, "task": experiment, "recipe": recipe_of(config, experiment)}
    is_serac = config["recipe"] == "serac"
    if not algorithm.trained and not config["eval_only"]:
        print(f"{algorithm.config_key()} has nothing to learn before an edit: evaluation only")
        config["eval_only"] = True
    if config["export"] and config["eval_only"] and config["archive"]:
        print(f"export={config['export']}: nothing is exported, eval_only trains nothing")
        config["export"] = None
    if config["export"] and (config["eval_only"] or config["debug"] and not config["save"]):
        why = "eval_only trains nothing" if config["eval_only"] else "debug keeps no networks without save=True"
        raise UserError(f"export={config['export']}: there will be no trained editor, because {why}")
    for module in (random, np.random):
        module.seed(config["seed"])
    torch.manual_seed(config["seed"])

    model_settings = config["model"]
    if "name" not in model_settings:
        raise UserError("choose a model: +model=world, +model=gpt2xl, ... (hparams/train/model)")
    tree = config.get(algorithm.config_key()) or {}
    dtype = torch.bfloat16 if config["half"] else torch.float32
    model, tok = load_editable(
        model_settings, experiment, config["device"], dtype, config["data_dir"], algorithm.needs_eager(tree)
    )
    check_editable(model)
    set_dropout(model, config["dropout"])
    inner = inner_params_of(model_settings, model)
    alg = algorithm.build(model, inner, _options(config, algorithm, tree), tok=tok, small_name=model_settings.get("small_name"))
    set_dropout(alg.net, config["dropout"])

    collate = Collator(tok, alg.kind, episodes.MAX_LENGTH[experiment] if experiment != "gen" else _positions(model),
                       config["data"]["n_outer_max"], ended=algorithm.ended,
                       unshifted_decoder=config["data"]["sent_unshifted_decoder"] or config["legacy"]["sent_unshifted_decoder"])
    sources = _Sources(config, experiment, collate, is_serac)
    train = None if config["eval_only"] and not algorithm.draws_local else sources.episodes("train", config["batch_size"])
    if algorithm.draws_local:
        _attach_local(alg, tree, sources)
    config_split = config["eval"]["split"]
    split = config_split or ("test" if sources.source == "world" or is_serac else "validation")
    val_batch = config["val_batch_size"] or (2 if is_serac else 5)
    train_config = _train_config(config, is_serac)
    validation = sources.episodes("validation", val_batch, train_config.val_steps)
    final = sources.episodes(split, val_batch)
    about = {"model": {"name": model_settings["name"], **alg.about()}, "data": dict(sorted(sources.about.items()))}
    archive = find_archive(config["archive"], config["eval_only"]) if config["archive"] else None
    trainer = pkgutil.resolve_name(algorithm.trainer)(
        alg, train_config, train, validation, folder if archive is None or config["eval_only"] else archive.parent,
        original=model if train_config.train_base else None,
        identity={"val_batch_size": val_batch, "data": about["data"], **{key: config[key] for key in AGREED},
                  **{f"{algorithm.config_key()}.{option}": tree[option] for option in algorithm.agreed if tree.get(option)}},
        progress=not config["silent"],
    )
    if archive is not None:
        _take_over(trainer, archive, config["eval_only"])
    elif config["eval_only"] and algorithm.trained:
        raise UserError(f"eval_only of {algorithm.config_key()} needs a trained editor: archive=PATH")
    else:
        trainer.rehearse()
    return Setup(trainer, final, split, config, about)


def check_unused(folder: Path) -> None:
    """Raises UserError if another run has kept its networks or results in the folder."""
    names = [name for name in (BEST, LAST, "results.json") if (folder / name).is_file()]
    if names == [BEST] and (folder / LOG).is_file():  # killed at its first validation, between the two
        warnings.warn(f"{folder}: a run that was killed at its first validation; it begins anew", stacklevel=2)
    elif names:
        remedy = f"delete them, or go on with that run: archive={folder}" if LAST in names else "or delete them"
        raise UserError(f"{folder}: holds the {' and '.join(names)} of another run; choose another hydra.run.dir, {remedy}")


def recipe_of(config: Mapping[str, Any], experiment: str) -> str:
    """The recipe of the data: what is asked for, or what the algorithm and the data's options call for."""
    if config["recipe"] is not None:
        return config["recipe"]
    serac = experiment in ("fnli", "sent") or any(config["data"][key] for key in _SERAC_DATA)
    return "serac" if serac else algorithms.recipe(config["alg"])


def _options(config: Mapping[str, Any], algorithm: type[Editable], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The algorithm's options: its sub-tree of the configuration, and the shared keys that it reads."""
    options = algorithm.options_of(tree, config)
    unread = ("hidden_dim", "act", "verbose", "lora")
    options = {key: value for key, value in options.items() if value is not None or key not in unread}
    fields = {field.name for field in dataclasses.fields(algorithm.options_class)}
    for key in ("edit_lr", "no_grad_layers"):
        if key in fields:
            options[key] = config[key]
    encoder = algorithm.encoder_option
    if encoder and options[encoder] == "world":
        from data.world import models

        options[encoder] = str(models.path("distilbert", config["data_dir"]))
    if config["no_grad_layers"] is not None and "no_grad_layers" not in fields:
        warnings.warn(f"no_grad_layers: without effect, {algorithm.config_key()} trains nothing of the model", stacklevel=2)
    return options


def _positions(model) -> int | None:
    from editors.core.modules import longest_context

    positions = longest_context(model)
    return min(episodes.MAX_LENGTH["gen"], positions) if positions else episodes.MAX_LENGTH["gen"]


def _train_config(config: Mapping[str, Any], is_serac: bool) -> TrainConfig:
    legacy = config["legacy"]
    names = {field.name for field in dataclasses.fields(TrainConfig)} & config.keys()
    values = {name: config[name] for name in names} | {
        "early_stop_patience": config["early_stop_patience"] or (40_000 if is_serac else 20_000),
        "save": not config["debug"] or config["save"],
        "final_steps": DEBUG_STEPS if config["debug"] else None,
        **{key: legacy[key] for key in ("accumulate_first_step_plus_one", "lr_lr_without_effect", "cbase_not_in_gradient")},
    }
    return TrainConfig.of(values)


class _Sources:
    """The episodes of each split, as the batch sizes ask for."""

    def __init__(self, config: Mapping[str, Any], experiment: str, collate: Collator, is_serac: bool):
        self.config, self.experiment, self.collate, self.is_serac = config, experiment, collate, is_serac
        self.source = config["data"]["source"] or ("world" if config["model"]["name"] == "world" else "files")
        self.about: dict[str, Any] = {}
        self._rows: dict[str, Any] = {}

    def rows(self, split: str):
        """The records of a split, loaded and checked once."""
        if split not in self._rows:
            options = {key: value for key, value in self.config["data"].items() if key != "source" and value is not None}
            if self.config["legacy"]["sent_descriptor_loc"]:
                options["sent_loc"] = "descriptor"
            self._rows[split] = episodes.load(self.experiment, split, self.source, options, self.config["seed"],
                                              self.config["data_dir"], self.config["recipe"])
            self.about[split] = self._rows[split].about
            self._check_targets(self._rows[split])
        return self._rows[split]

    def _check_targets(self, rows) -> None:
        """Raises UserError for a text that is not longer than its target, which only tokens tell."""
        if self.experiment == "gen" and self.source == "files":
            for start in range(0, len(rows), 1000):
                self.collate.batch([rows.item(i, 0).edit for i in range(start, min(start + 1000, len(rows)))])

    def episodes(self, split: str, batch_size: int, limit: int | None = None) -> Episodes:
        """A split in batches of this size (edits and unrelated inputs together, but with SERAC's recipe so many of each)."""
        n_edits = batch_size if self.is_serac else self.config["data"]["n_edits"]
        n_local = batch_size if self.is_serac else batch_size - n_edits
        if n_local < 1 or n_edits < 1:
            key = "batch_size" if split == "train" else "val_batch_size"
            raise UserError(f"{key}={batch_size}: too small for data.n_edits={n_edits} and at least one unrelated input "
                            f"(they count together): at least {n_edits + 1}")
        rows = self.rows(split)
        single = self.config["single_batch"] and split == "train"
        batches = rows.batches(n_edits, n_local, limit=limit and max(limit, n_edits), single_batch=single)
        return Episodes(batches, self.collate)


def _attach_local(alg: Editable, tree: Mapping[str, Any], sources: _Sources) -> None:
    """Where FT's locality loss draws its unrelated inputs: from the training data, a new batch each time."""
    if not alg.options.locality:
        return
    n_local = tree["locality"]["batch_size"]
    if not isinstance(n_local, int) or n_local < 1:
        raise UserError(f"{alg.config_key()}.locality.batch_size: {n_local!r} is no whole number from 1")
    batches = sources.rows("train").batches(1, n_local)
    numbers = iter(range(10**9))

    def local():
        batch = sources.collate.batch(batches[next(numbers)].local)
        return {name: tensor.to(next(alg.model.parameters()).device) for name, tensor in batch.items()}

    alg.local = local


def find_archive(archive: str, eval_only: bool) -> Path:
    """The checkpoint that `archive` means: a file, that of a run's folder (the best for evaluation, the last to go on from),
    or of the one run in outputs or multirun whose path contains the text. Raises UserError if there is none, or several."""
    name = BEST if eval_only else LAST
    path = Path(archive)
    if path.is_file():
        return path
    if path.is_dir():
        if name == LAST and not (path / LAST).is_file() and (path / BEST).is_file() and (path / LOG).is_file():
            raise UserError(f"archive={archive}: was killed at its first validation, and holds nothing to go on from; it "
                            f"begins anew with hydra.run.dir={archive}")
        paths = [path / name] if (path / name).is_file() else sorted(path.glob(f"*/{name}"))
    else:
        paths = sorted(p for root in ("outputs", "multirun") for p in Path(root).glob(f"**/{name}") if archive in str(p.parent))
    if len(paths) != 1:
        matches = f"{len(paths)} runs: {', '.join(str(p.parent) for p in paths[:4])}" if paths else f"no run with a {name}"
        raise UserError(f"archive={archive}: {matches}")
    return paths[0]


def _take_over(trainer: Trainer, archive: Path, eval_only: bool) -> None:
    from editors.learned import checkpoint

    if eval_only:
        checkpoint.load(archive, trainer.alg)
    else:
        trainer.restore(archive)


def _warn_of_unread(config: Mapping[str, Any]) -> None:
    keys = [key for key in UNREAD if config.get(key) is not None]
    keys += [f"eval.{key}" for key in ("verbose", "log_interval") if config["eval"].get(key) is not None]
    if keys:
        warnings.warn(f"without effect, nothing reads {', '.join(keys)}", stacklevel=2)
