"""``python -m experiments.train +alg=A +experiment=E +model=M [key=value ...]``: trains and evaluates a learned editor.

    python -m experiments.train +alg=mend +experiment=gen +model=world              # the built-in world, minutes on a CPU
    python -m experiments.train +alg=mend +experiment=gen +model=distilgpt2 data.wiki_webtext=False
    python -m experiments.train --multirun hydra/launcher=joblib +alg=mend,efk,enn +experiment=gen +model=world

Configurations are in hparams/train (Hydra); every key with its default and meaning is in config.yaml there. The run's folder,
outputs/<time>_<id>, gets config.json, run.json, log.jsonl, checkpoints and results.json. A killed run goes on with the same
command and ``archive=<its folder>``, and ends with the same numbers.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from common.errors import UserError
from common.files import held, whole_file
from common.programs import goes_on
from data.download import data_folder
from data.files import read_json
from experiments.results import run_folder
from experiments.run.cli import run_program

if TYPE_CHECKING:
    from editors.learned.model_kind import ModelKind
    from editors.learned.trainer import Trainer

CONFIGS = Path(__file__).resolve().parent.parent / "hparams" / "train"
CONFIG, RESULTS = "config.json", "results.json"
ALIASES = {path.stem: defaults[0] for path in (CONFIGS / "alg").glob("*.yaml")
           if (defaults := OmegaConf.load(path).get("defaults"))}
"""Names of algorithms whose file only names another one: that of the file where the options are."""

OmegaConf.register_new_resolver("run_id", lambda: secrets.token_hex(2), replace=True, use_cache=True)


def run(cfg: DictConfig, folder: Path) -> dict[str, float]:
    """One run; returns its results. Raises UserError for a user's mistake."""
    from experiments.training.setup import check_unused, prepare  # torch is slow to import, and --help needs none of it

    config = _plain(cfg)
    _check_kinds(config, OmegaConf.to_container(OmegaConf.load(CONFIGS / "config.yaml")))
    _check_keys(config)
    if config["eval_only"] and config["archive"] is not None:
        check_unused(folder)
    _check_places(config)
    setup = prepare(config, folder)
    trainer = setup.trainer
    folder = trainer.folder
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, "training there"), goes_on(lambda: _how_to_go_on(folder)):
        run_folder.write_json(folder / CONFIG, setup.config)
        run_folder.write_json(folder / run_folder.RUN, {**run_folder.provenance(), **setup.about, "command": sys.argv[1:]})
        trainer.run()
    source, split = (setup.final, setup.split) if config["eval"]["final_eval"] else (trainer.validation, "validation")
    suffix = "_val" if split == "validation" else f"_{split}"
    means = trainer.validate(source, trainer.config.final_steps, suffix)
    summary = means | derived(means, suffix) | {"iterations": trainer.iteration, "best_iteration": trainer.early.best_iteration,
                                                "train/skipped": trainer.skipped, "time/training": trainer.elapsed}
    content = {"results": summary, "split": split, "config": setup.config}
    run_folder.write_json(folder / RESULTS, content)
    if config["results_dir"]:
        _share(Path(config["results_dir"]), setup.config, content, setup.about)
    if setup.config["export"]:
        _export(setup.config, trainer)
    print(f"{table(summary, suffix)}\nresults: {folder / RESULTS}")
    return summary


def _how_to_go_on(folder: Path) -> str:
    from editors.learned.trainer import LAST

    if (folder / LAST).is_file():
        return f"the last validation's state is in {folder}; go on with the same command and archive={folder}"
    return f"{folder} holds nothing to go on from yet: start again"


def derived(stats: Mapping[str, float], suffix: str) -> dict[str, float]:
    """The figures that papers report, from a run's means: success of the edits, and what they cost elsewhere.

    drawdown_acc: accuracy on unrelated inputs before minus after; drawdown_perplexity: after minus before;
    drawdown_retain: share of unrelated answers that changed. Before is the original model, also where ENN trains it.
    """
    def get(*names: str) -> float | None:
        return next((stats[name + suffix] for name in names if name + suffix in stats), None)

    pairs = {
        "edit_success": (get("edit/acc_sent", "edit/acc"), 0.0),
        "drawdown_acc": (get("acc/original", "acc/pre"), get("acc/post")),
        "drawdown_perplexity": (get("perplexity/post"), get("perplexity/original", "perplexity/pre")),
        "drawdown_retain": (1.0, get("retain/orig_post", "retain/edit")),
    }
    return {name: a - b for name, (a, b) in pairs.items() if a is not None and b is not None}


def table(stats: Mapping[str, float], suffix: str) -> str:
    """The most telling numbers, a line each."""
    names = ("edit_success", "drawdown_acc", "drawdown_retain", "drawdown_perplexity")
    shown = {name: stats[name] for name in names if name in stats}
    names = ("edit/acc_flip", "edit/acc_hard", "kl/edit", "acc/pre", "acc/post", "time/edit")
    shown |= {name: stats[name + suffix] for name in names if name + suffix in stats}
    return "\n".join(f"{name:22s} {value:.4f}" for name, value in shown.items() if math.isfinite(value))


def _plain(cfg: DictConfig) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = str(error).split(":")[-1].strip().splitlines()[0]
        if key == "model.name":
            raise UserError("+model=auto needs model.name=NAME: a folder, a GGUF file, smollm2 or a model of the hub") from None
        group = "alg" if key == "alg" else "experiment"
        choices = ", ".join(sorted(p.stem for p in (CONFIGS / group).glob("*.yaml")))
        raise UserError(f"choose +{group}=NAME (there is {choices})") from None


def _check_keys(config: Mapping[str, Any]) -> None:
    """Raises UserError for keys that neither config.yaml nor the algorithm's file has, which nothing would read."""
    alg = config["alg"]
    file = CONFIGS / "alg" / f"{ALIASES.get(alg, alg)}.yaml"
    keys = OmegaConf.to_container(OmegaConf.load(CONFIGS / "config.yaml"))
    keys |= OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    keys["model"] = dict.fromkeys(key for path in (CONFIGS / "model").glob("*.yaml") for key in OmegaConf.load(path))
    unknown = [key for key in config if key not in keys]
    unknown += [f"{part}.{key}" for part in ("eval", "legacy", "model") for key in config[part] if key not in keys[part]]
    if unknown:
        dotted = [*keys, *(f"{part}.{key}" for part in ("eval", "legacy", "model") for key in keys[part])]
        near = difflib.get_close_matches(unknown[0], dotted, n=1, cutoff=0.7)
        raise UserError(f"{unknown[0]}: no key of a training with alg={alg}; " + (
            f"did you mean {near[0]}?" if near else "a preset or option of another algorithm has no effect"))


def _check_kinds(config: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> None:
    """Raises UserError for a value of another kind than its default in config.yaml; where that is null, anything goes."""
    for key, default in defaults.items():
        value, name = config.get(key), prefix + key
        if isinstance(default, dict) and key not in ("hydra", "model"):
            if not isinstance(value, dict):
                raise UserError(f"{name}={value}: give its keys one by one, {name}.{next(iter(default))}=...")
            _check_kinds(value, default, f"{name}.")
        elif key == "model" and not isinstance(value, dict):
            raise UserError(f"model={value}: choose one with +model=NAME, or give model.name=NAME")
        elif key == "seed" and (type(value) is not int or not 0 <= value < 2**32):
            raise UserError(f"seed={value}: give a whole number from 0 to 2^32 - 1")
        elif key == "dropout" and value is not None and (type(value) not in (int, float) or not 0 <= value < 1):
            raise UserError(f"dropout={value}: give a number from 0, below 1, or null")
        elif isinstance(default, bool):
            if not isinstance(value, bool):
                raise UserError(f"{name}={value}: give true or false")
        elif isinstance(default, (int, float)):
            kinds, words = (int, "a whole number") if isinstance(default, int) else ((int, float), "a number")
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value)):
                raise UserError(f"{name}={value}: give {words}")
            if value is None and not prefix:
                raise UserError(f"{name}=null: give {words}")
    for key in ("val_batch_size", "early_stop_patience"):
        value = config.get(key)
        if not prefix and value is not None and (type(value) is not int or value < 1):
            raise UserError(f"{key}={value}: give a whole number from 1, or null")


def _check_places(config: Mapping[str, Any]) -> None:
    """Raises UserError for places that the end of the run could not be written to, before it begins."""
    from editors.core.files import check_writable

    if config["results_dir"]:
        check_writable(Path(config["results_dir"]) / str(config["alg"]).upper(), "results")
    if config["export"] and config["export"] != "default":
        target = Path(config["export"])
        if target.is_dir() or not target.name:
            raise UserError(f"export={config['export']}: is a folder; give the name of a file")
        check_writable(target.absolute().parent, "the trained editor")


def _share(folder: Path, config: Mapping[str, Any], content: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """The results in the shared folder, under the algorithm's name."""
    shared = run_folder.new_run(folder / config["alg"].upper(), {
        run_folder.PARAMS: config, run_folder.RUN: {**run_folder.provenance(), **about}, RESULTS: content})
    print(f"shared: {shared}")


def default_export(config: Mapping[str, Any], kind: ModelKind) -> Path:
    """Where experiments.evaluate looks for the editor of this algorithm and model."""
    from editors.learned.algorithms import algorithm
    from editors.learned.learned_editor import checkpoint_name

    folder = data_folder(config["data_dir"]) / "learned" / algorithm(config["alg"]).title
    return folder / checkpoint_name(config["model"]["name"], kind)


def _export(config: Mapping[str, Any], trainer: Trainer) -> None:
    from editors.learned.trainer import BEST

    target = default_export(config, trainer.alg.kind) if config["export"] == "default" else Path(config["export"])
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as part:
        shutil.copyfile(trainer.folder / BEST, part)
    print(f"editor: {target}")


def _arguments(words: list[str]) -> list[str]:
    """The groups may be named without their plus, an algorithm's options behind its alias."""
    words = [f"+{word}" if word.startswith(("alg=", "experiment=", "model=")) else word for word in words]
    return [re.sub(rf"^(\+*)({'|'.join(ALIASES)})(?=[.=])", lambda match: match[1] + ALIASES[match[2]], word) for word in words]


def check_finished(folder: Path, words: Sequence[str]) -> None:
    """Raises UserError unless the run in the folder was started with these words, in whatever order."""
    def run_words(command_line: Sequence[str]) -> set[str]:
        return {word for word in _arguments(list(command_line)) if not word.startswith(("archive=", "hydra.run.dir="))}

    first_words, words_now = run_words(read_json(folder / run_folder.RUN)["command"]), run_words(words)
    if first_words != words_now:
        raise UserError(f"{folder}: a finished run with other words ({', '.join(sorted(first_words ^ words_now))}); "
                        "choose another folder, or delete it")


def command() -> None:
    failures: list[Exception] = []
    leftovers: list[Path] = []
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach run_program as they are
    sys.argv[1:] = _arguments(sys.argv[1:])

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
    def main(cfg: DictConfig) -> float | None:
        settings = HydraConfig.get()
        leftovers.append(Path(settings.runtime.output_dir))
        try:
            summary = run(cfg, Path(settings.runtime.output_dir))
        except (OmegaConfBaseException, ValueError, OSError) as error:
            if settings.mode is RunMode.MULTIRUN:
                raise
            failures.append(error)
            return None
        return summary.get("edit_success")

    try:
        main()
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # Hydra tells the cause in the chained error, over several lines.
        cause = error.__cause__ or error
        raise UserError(" ".join(f"{error} {cause if cause is not error else ''}".split())) from None
    finally:
        _sweep_refused(leftovers)
    if failures and isinstance(failures[0], OmegaConfBaseException):
        raise UserError(" ".join(str(failures[0]).split()))
    if failures:
        raise failures[0]


def _sweep_refused(folders: Sequence[Path]) -> None:
    """Takes away what Hydra wrote of runs that were refused: folders in which there is nothing else."""
    for folder in folders:
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {".hydra"}:
            shutil.rmtree(folder / ".hydra", ignore_errors=True)
            for emptied in (folder, *([folder.parent] if folder.parent.name == "outputs" else [])):
                if not any(emptied.iterdir()):
                    emptied.rmdir()


if __name__ == "__main__":
    run_program(command)
