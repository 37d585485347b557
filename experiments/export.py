"""``python -m experiments.export``: an edit in a form that others load, a LoRA adapter or a whole edited model.

    python -m experiments.export drum.safetensors --model_name world --out drum_adapter
    python -m experiments.export drum.safetensors --model_name gpt2-xl --out gpt2-xl-drum --format checkpoint
    python -m experiments.export drum.safetensors --model_name smollm2 --out drum.gguf --format gguf-lora

The adapter (peft, vLLM) stands beside the unedited model and is exact up to the rank limit; above it the program says how far
the nearest adapter of that rank is from the edit. The checkpoint is a folder of safetensors that transformers loads. Both come
with ``edit.json``: where the edit came from, and what the form has lost of it. ``gguf-lora`` is the adapter as one file for
llama.cpp and Ollama. All are written whole or not at all.
"""

import argparse
import math
import sys
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from common.json_text import to_json
from editors import gguf_adapter
from editors.adapter import ABOUT, RANKS
from editors.changes import check_finite
from editors.core.files import new_folder
from editors.core.fingerprint import model_fingerprint
from editors.edit import Edit
from experiments.run.cli import HelpFormatter, Parser, run_program
from experiments.run.config import add_flags, ModelFlags
from experiments.run.models import load_model, source_of


def main(
    edit: str | Path, out: str | Path, model_name: str = "world", form: str = "adapter", max_rank: int | None = RANKS[-1],
    dtype: str = "auto", device: str = "auto",
) -> Path:
    """Exports as the command line does (whose help explains the arguments); returns the folder.

    Raises UserError for an edit that does not fit the model or the form, and for a folder that is there already.
    """
    change, out = Edit.load(edit), Path(out)
    if out.exists():
        raise UserError(f"--out {out}: is there already; choose another name, or delete it")
    model, tok = load_model(model_name, dtype, device)
    made_for = change.info.get("model")
    if made_for not in (None, model_fingerprint(model)):
        print(f"warning: {edit} was made on other weights than those of {model_name} in {model.dtype} "
              "(their fingerprints differ)", file=sys.stderr)
    if form == "checkpoint":
        save_checkpoint(out, change, model, tok)
    else:
        if form == "gguf-lora":
            loras = gguf_adapter.save(out, change.changes, change.info, model, max_rank)
        else:
            loras = change.save_adapter(out, model, max_rank, source_of(model_name)[0])
        for module, lora in loras.items():
            bias = "" if lora.bias is None else ", and a bias"
            print(f"{module}: rank {lora.exact_rank}, stored as {lora.rank}{bias}; relative error {lora.error:.2g}")
    return out


def save_checkpoint(folder: Path, change: Edit, model: PreTrainedModel, tok: PreTrainedTokenizerBase) -> None:
    """Write the edited model and its tokenizer as transformers loads them; the model is afterwards what it was, bit by bit."""
    if not change.changes:
        raise UserError("the edit changes no weight, so a checkpoint would be of the unedited model")
    check_finite(change.changes)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in change.changes:
        if name not in parameters and name.endswith(".bias"):
            raise UserError(f"{name} is no parameter of the unedited model, so transformers would not load it from a "
                            "checkpoint; export an adapter")
        if name not in parameters:
            raise UserError(f"the model has no parameter {name!r}: the edit was made for another model")
    change.check(model)
    rounding_errors = change.rounding(model)
    for name, error in rounding_errors.items():
        if not math.isfinite(error):
            raise UserError(f"{name}: the edit does not fit into {parameters[name].dtype}; choose a wider --dtype")
    with new_folder(folder) as part:
        with change.applied(model):
            model.save_pretrained(part)
        tok.save_pretrained(part)
        (part / ABOUT).write_text(to_json({"info": dict(change.info), "rounding": rounding_errors}, indent=1) + "\n")
    for name, error in rounding_errors.items():
        print(f"{name}: relative error {error:.2g} from rounding to {parameters[name].dtype}")


def _rank(text: str) -> int | None:
    if text != "any" and text not in map(str, RANKS):
        raise argparse.ArgumentTypeError(f"{text!r} should be one of {', '.join(map(str, RANKS))}, or any")
    return None if text == "any" else int(text)


def command_line() -> Parser:
    """Every flag of the program."""
    parser = Parser(prog="python -m experiments.export", description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n")[-1],
                    formatter_class=HelpFormatter)
    parser.add_argument("edit", help="file of an edit (Edit.save)")
    parser.add_argument("--out", required=True, help="folder to make; of gguf-lora the file")
    parser.add_argument("--format", dest="form", choices=("adapter", "checkpoint", "gguf-lora"), default="adapter",
                        help="what to write")
    parser.add_argument("--max_rank", type=_rank, default=RANKS[-1],
                        help=f"of an adapter: {', '.join(map(str, RANKS))} (vLLM's), or any: exact whatever the rank")
    add_flags(parser.add_argument_group("the unedited model"), ModelFlags)
    return parser


def command() -> None:
    print(f"written: {main(**vars(command_line().parse_args()))}")


if __name__ == "__main__":
    run_program(command)
