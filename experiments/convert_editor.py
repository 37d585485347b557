"""``python -m experiments.convert_editor``: published networks of MEND and KE, which are pickled, as a trained editor.

    python -m experiments.convert_editor mend-10tok-gpt2-xl.pt --alg MEND --model_name gpt2-xl --out default
    python -m experiments.evaluate --alg_name MEND --model_name gpt2-xl

Of the pickle only tensors and plain values are read, nothing in it is run. The model is loaded to tell later for which one
the networks are. What their shapes don't tell is an option: ``--option descent=true`` (SERAC's gtn), norm, init, max_scale.
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from common.errors import UserError
from editors.core.files import check_writable
from editors.learned import checkpoint
from editors.learned.algorithms import algorithm
from experiments.run.cli import HelpFormatter, Parser, run_program
from experiments.train import CONFIGS, default_export
from experiments.training.models import inner_params_of, KINDS, load_editable


def main(file: str, alg: str, model_name: str, out: str = "default", option: Sequence[str] = (),
         inner_params: Sequence[str] = (), experiment: str = "gen", data_dir: str | None = None) -> Path:
    """Writes the checkpoint; returns its path. Raises UserError for a file, a model or options that don't fit."""
    kind = algorithm(alg)
    if out != "default" and Path(out).is_dir():
        raise UserError(f"--out {out}: is a folder; name a file")
    option_values = _options(option)
    tensors = read(Path(file))
    settings = {**_settings(model_name), "name": model_name}
    if inner_params:
        settings["inner_params"] = list(inner_params)
    if not settings.get("inner_params"):
        raise UserError(f"--inner_params: name the edited weights of {model_name!r}, in the order of the step sizes")
    if out != "default":
        check_writable(Path(out).absolute().parent, "the editor")
    model, _ = load_editable(settings, experiment, "cpu")
    try:
        options, state = kind.read_published(tensors, model.get_input_embeddings().weight.shape[0])
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    editor = kind.build(model, inner_params_of(settings, model), options | option_values)
    editor.load_state(state)
    target = default_export({"alg": alg.lower(), "data_dir": data_dir, "model": {"name": model_name}}, editor.kind)
    target = target if out == "default" else Path(out)
    checkpoint.save(target, editor, {"converted": Path(file).name})
    return target


class _Config:
    """What stands for a pickled configuration of transformers: its values, none of its code."""


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a published checkpoint's networks, without the base model's. Raises UserError for other files."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        configs = [name for name in classes if re.fullmatch(r"transformers\.(\w+\.)*configuration_\w+\.\w+Config", name)]
        with torch.serialization.safe_globals([(_Config, name) for name in configs]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, AttributeError) as error:
        reason = str(error).split("\n")[0][:160]
        raise UserError(f"{path}: no checkpoint of tensors and plain values ({reason})") from None
    for key in ("model", "state_dict"):
        content = content[key] if isinstance(content, Mapping) and isinstance(content.get(key), Mapping) else content
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: no checkpoint of networks")
    return {name: t for name, t in content.items() if isinstance(t, torch.Tensor) and not str(name).startswith("model.")}


def _settings(model_name: str) -> dict[str, Any]:
    """The file in hparams/train/model of a model of that name, or of a folder called so."""
    short = Path(model_name).name
    for path in sorted((CONFIGS / "model").glob("*.yaml")):
        settings = yaml.safe_load(path.read_text())
        if short in (Path(settings["name"]).name, settings.get("tokenizer_name")):
            return settings
    return {}


def _options(words: Sequence[str]) -> dict[str, Any]:
    wrong = [word for word in words if "=" not in word]
    if wrong:
        raise UserError(f"--option {wrong[0]}: should be KEY=VALUE")
    try:
        return {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)}
    except yaml.YAMLError as error:
        raise UserError(f"--option: {' '.join(str(error).split())[:160]}") from None


def command() -> None:
    parser = Parser(prog="python -m experiments.convert_editor", description=__doc__.split("\n\n")[0],
                    epilog=__doc__.split("\n\n")[-1], formatter_class=HelpFormatter)
    parser.add_argument("file", help="published checkpoint (.pt)")
    parser.add_argument("--alg", required=True, help="MEND (gtn) or KE (efk)")
    parser.add_argument("--model_name", required=True, help="hub id or folder of the model that the networks are for")
    parser.add_argument("--out", default="default", help="file to write; default: where experiments.evaluate looks")
    parser.add_argument("--option", nargs="+", default=[], metavar="KEY=VALUE", help="what the shapes don't tell")
    parser.add_argument("--inner_params", nargs="+", default=[], help="edited weights (default: those of hparams/train/model)")
    parser.add_argument("--experiment", choices=sorted(KINDS), default="gen", help="what the networks were trained on")
    parser.add_argument("--data_dir", help="data folder (default: KE_DATA_DIR, else ~/.cache/knowledge-editing/data)")
    print(f"editor: {main(**vars(parser.parse_args()))}")


if __name__ == "__main__":
    run_program(command)
