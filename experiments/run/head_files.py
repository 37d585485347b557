"""Heads, correction vectors and weight changes that one run saves and another loads; those of MEMAT's original program, too.

The original keeps vectors and changes as torch files. They are read with ``weights_only``, which builds tensors and plain
containers and runs no code.
"""

import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from common.errors import UserError
from editors.changes import LowRank
from editors.edit import Edit
from editors.heads.corrections import Corrections
from editors.heads.outputs import Head


def corrections_name(prefix: str, language: str, language_eval: str, heads: int, chunk: int, num_edits: int) -> Path:
    """Where the vectors of a chunk are saved: <prefix>_english-catalan_16heads_chunk0_100edits.safetensors."""
    return Path(f"{prefix}_{language}-{language_eval}_{heads}heads_chunk{chunk}_{num_edits}edits.safetensors")


def delta_name(prefix: str, language: str, chunk: int, num_edits: int) -> Path:
    """Where MEMIT's edit of a chunk is saved."""
    return Path(f"{prefix}_{language}_chunk{chunk}_{num_edits}edits.safetensors")


def of_chunk(path: str, chunk: int) -> Path:
    """``path`` with the chunk's number in the place of a ``{}``."""
    return Path(path.replace("{}", str(chunk)))


def read_heads(path: Path) -> list[Head]:
    """(layer, head) pairs of a .npy file. Raises UserError for a missing or damaged one, or other numbers in it."""
    try:
        pairs = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"--head_ind {path}: no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"--head_ind {path}: not readable as .npy ({error})") from None
    if not isinstance(pairs, np.ndarray):
        raise UserError(f"--head_ind {path}: several arrays (.npz), expected one of integers [heads, 2] as .npy")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer) or not len(pairs):
        raise UserError(f"--head_ind {path}: holds {pairs.dtype} of shape {list(pairs.shape)}, expected integers [heads, 2]: "
                        "(layer, head)")
    return [(int(layer), int(head)) for layer, head in pairs]


def check_model(flag: str, path: Path, shape: tuple[int, int, int], model: str) -> None:
    """Raises UserError if a saved file (of a .npy the one that was saved with it) says that its heads are of a model of another
    shape; warns if they are of another model of this shape.

    shape: layers, heads a layer and head size of the model. model: what :func:`experiments.run.models.identity` says of it.
    """
    beside = path.with_suffix(".safetensors")
    if not beside.is_file() or path.suffix not in (".npy", ".safetensors"):
        return
    info = Corrections.load(beside).info
    saved_shape, saved_model = info.get("shape"), info.get("model")
    if saved_shape is not None and tuple(saved_shape) != shape:
        raise UserError(f"{flag} {path}: heads of another model, with {_words(saved_shape)}; this one has {_words(shape)}")
    if saved_model is not None and not saved_model.endswith(model):
        warnings.warn(f"{flag} {path}: heads of another model, {saved_model}; this one is {model}", stacklevel=2)


def read_corrections(path: Path, heads: list[Head]) -> Corrections:
    """The vectors of these heads: a file of this toolkit, which must name the same heads, or the original's list of tensors.

    Raises UserError for a missing, damaged or foreign file, and for vectors of other heads.
    """
    if path.suffix == ".safetensors":
        corrections = Corrections.load(path)
        if corrections.heads[: len(heads)] != heads:
            raise UserError(f"--load_attention {path}: its vectors are of the heads {corrections.heads[:4]}..., --head_ind has "
                            f"{heads[:4]}...")
        return corrections.first(len(heads))
    vectors = _tensors(path, "--load_attention")
    fits = isinstance(vectors, (list, tuple)) and all(isinstance(v, torch.Tensor) and v.ndim == 1 for v in vectors)
    if not fits or len({len(v) for v in vectors}) != 1:
        raise UserError(f"--load_attention {path}: not a list of correction vectors of one size")
    if len(vectors) < len(heads):
        raise UserError(f"--load_attention {path}: holds {len(vectors)} vectors, --head_ind names {len(heads)} heads")
    return Corrections(heads, torch.stack([v.detach().float() for v in vectors[: len(heads)]]), {"file": str(path)})


def read_delta(path: Path) -> Edit:
    """A saved edit, or the original's {parameter: (A [d_in, n], M [d_out, n])}, the weight's change being M A^T."""
    if path.suffix == ".safetensors":
        edit = Edit.load(path)
        if not edit.changes:
            raise UserError(f"--load_delta {path}: holds no changes of weights")
        return edit
    factors = _tensors(path, "--load_delta")
    fits = isinstance(factors, dict) and all(
        isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(t, torch.Tensor) and t.ndim == 2 for t in pair)
        for pair in factors.values()
    )
    if not fits:
        raise UserError(f"--load_delta {path}: neither an edit of this toolkit nor a dictionary of weight changes")
    for name, (a, m) in factors.items():
        if a.shape[1] != m.shape[1]:
            raise UserError(f"--load_delta {path}: the factors of {name} have {a.shape[1]} and {m.shape[1]} columns, not one "
                            "for each fact")
    changes = {name: LowRank(m.detach(), a.detach()) for name, (a, m) in factors.items()}
    return Edit(changes, {"file": str(path), "seconds": {}})


def _tensors(path: Path, flag: str):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{flag} {path}: no such file") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{flag} {path}: not a torch file of tensors ({str(error).splitlines()[0][:100]})") from None


def _words(shape) -> str:
    layers, heads, size = shape
    return f"{layers} layers of {heads} heads of size {size}"
