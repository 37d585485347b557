"""``python -m experiments.download_models EXPERIMENT MODEL``: puts in place what a training needs, before it goes where
there is no network.

    python -m experiments.download_models qa t5large              # SERAC's models, and the data, or what of them is lacking
    python -m experiments.download_models sent blender-small --alg gtn data.hard_neg=true
    python -m experiments.download_models fnli world              # trains the built-in world's models

Models go into the Hugging Face cache (HF_HOME), where experiments.train finds them with HF_HUB_OFFLINE=1. Nothing that is
there is deleted or fetched again. Further words are keys of the configuration, as for experiments.train.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.errors import UserError
from data import episodes
from data.episodes.neighbours import MINILM
from editors.learned.algorithms import algorithm
from experiments.run.cli import Parser, run_program
from experiments.train import CONFIGS

FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
"""What transformers reads of a repository; no weights in other formats."""


def main(experiment: str, model: str, alg: str = "rep", words: Sequence[str] = ()) -> list[str]:
    """Fetches, prints a line for each thing, and returns what is lacking."""
    config = compose_config(experiment, model, alg, words)
    if config["model"]["name"] == "world":
        return _world(config)
    missing = []
    for name in repositories(config):
        try:
            print(f"model {name}: {_fetched(name)}", flush=True)
        except UserError as error:
            missing.append(str(error))
    return missing + _data(config)


def compose_config(experiment: str, model: str, alg: str, words: Sequence[str]) -> dict[str, Any]:
    """The configuration of the training. Raises UserError for names that there are not."""
    groups = [f"+{group}={name}" for group, name in (("alg", alg), ("experiment", experiment), ("model", model))]
    try:
        with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
            return OmegaConf.to_container(compose("config", [*groups, *words]), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(" ".join(str(error).split())) from None


def repositories(config: Mapping[str, Any]) -> list[str]:
    """Models of the hub that the training loads, each once; folders are left out."""
    settings = config["model"]
    names = [settings["name"], settings.get("tokenizer_name")]
    kind = algorithm(config["alg"])
    if kind.encoder_option:
        names += [settings.get("small_name"), config[kind.config_key()][kind.encoder_option]]
    if config["data"]["hard_neg"] and config["data"]["hard_neg_encoder"] != "words":
        names.append(config["data"]["hard_neg_encoder"] or MINILM)
    return [name for name in dict.fromkeys(names) if name and not Path(name).is_dir()]


def _fetched(name: str) -> str:
    """Where the model is. Raises UserError if it can't be had."""
    try:
        folder = Path(snapshot_download(name, allow_patterns=FILES))
    except RepositoryNotFoundError:
        raise UserError(f"model {name}: the hub has none of this name that you may read") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(f"model {name}: {' '.join(str(error).split())[:160]}") from None
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"model {name}: its repository has no weights in safetensors; take another model, or the folder of a "
                        "converted copy (model.name=FOLDER, rep.cls_name=FOLDER)")
    return str(folder)


def _data(config: Mapping[str, Any]) -> list[str]:
    """Loads each split, which fetches what can be fetched; returns what is lacking."""
    options = {key: value for key, value in config["data"].items() if key not in ("source", "hard_neg") and value is not None}
    from experiments.training.setup import recipe_of  # torch is slow to import, and --help needs none of it

    recipe = recipe_of(config, episodes.experiment_name(config["task"]))
    missing = []
    for split in episodes.SPLITS:
        try:
            rows = episodes.load(config["task"], split, "files", options, config["seed"], config["data_dir"], recipe)
            print(f"data {config['task']}, {split}: {len(rows)} rows of {rows.about['source']}", flush=True)
        except UserError as error:
            missing.append(str(error))
    return missing


def _world(config: Mapping[str, Any]) -> list[str]:
    """The built-in world has its data with it; its models are trained where they are not there yet."""
    from data.world import models

    kinds = [config["model"].get("kind") or models.KIND_OF[episodes.experiment_name(config["task"])]]
    if algorithm(config["alg"]).encoder_option:
        kinds.append("distilbert")
    for kind in kinds:
        print(f"model world ({kind}): {models.path(kind, config['data_dir'])}", flush=True)
    return []


def command(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m experiments.download_models", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="gen, fc, qa (zsre), fnli or sent")
    parser.add_argument("model", help="a file of hparams/train/model")
    parser.add_argument("--alg", default="rep", help="of hparams/train/alg (default: %(default)s)")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="of the configuration")
    args = parser.parse_intermixed_args(argv)
    missing = main(args.experiment, args.model, args.alg, args.words)
    if missing:
        raise UserError(f"{len(missing)} things are lacking: " + "; ".join(missing))


if __name__ == "__main__":
    run_program(command)
