"""Second moments on disk: one safetensors file a layer, with what it was collected from in its header.

Also reads the .npz statistics that the ROME and MEMIT authors published, and keeps the snapshots that a killed collection
continues from.
"""

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from common.errors import UserError
from common.files import may_live, owner
from common.tensor_files import DamagedFile, read_header, read_tensors, write_tensors
from .moment import IDENTITY, Moment

FORMAT = 1
STATE = {"window", "index", "tokens_before", "count", "texts", "pack_tokens"}
"""Of a collection: where the next batch stands, what was counted, and how texts are packed."""
# What published programs collect in one file besides the second moment; the names are sorted and joined.
_PUBLISHED_KINDS = ("mom2", "mean-mom2", "mom2-norm_mean", "mean-mom2-norm_mean")


def file_of(folder: Path, identity: Mapping[str, Any]) -> Path:
    """The file of one layer's statistics. Its name tells runs with different settings apart, as the published names do."""
    parts = [identity["module"], identity["dtype"], "mom2", identity["n_samples"]]
    if identity["cropped"]:
        parts.insert(3, f"t{identity['max_length']}")
    if identity["max_keys"] is not None:
        parts.insert(3, f"keys{identity['max_keys']}")
    if identity["model_dtype"] != "float32":
        parts.append(f"{identity['model_dtype']}-model")
    return folder / ("_".join(map(str, parts)) + ".safetensors")


def published_files(folder: Path, identity: Mapping[str, Any]) -> list[Path]:
    """Where the published programs would keep the same statistics, in the order of preference."""
    # They forgot to fill in the crop, so the file name holds these very characters.
    crop = "_t{batch_tokens}" if identity["cropped"] else ""
    start = f"{identity['module']}_{identity['dtype']}"
    return [folder / f"{start}_{kind}{crop}_{identity['n_samples']}.npz" for kind in _PUBLISHED_KINDS]


def load(path: Path, expected: Mapping[str, Any], d_in: int) -> Moment:
    """The statistics in `path`, a file that `save` wrote.

    expected: the identity they must have; the first field of `IDENTITY` that differs is named in the UserError.
    Raises DamagedFile for a truncated or foreign file.
    """
    header, tensors = read_tensors(path, "statistics", header={"identity": dict},
                                   shapes={"mom2": [None, None], "key_sum": [None], "norm_sum": []})
    stored = header["identity"]
    for field, kind in IDENTITY.items():
        if stored.get(field) != expected[field]:
            raise UserError(
                f"{path}: statistics of another {kind} ({field} is {stored.get(field)!r}, wanted {expected[field]!r}): "
                "move the file away, choose another statistics folder, or force a new collection"
            )
    if type(stored.get("count")) is not int or stored["count"] < 1 or tensors["key_sum"].shape != tensors["mom2"].shape[1:]:
        raise DamagedFile(f"{path}: damaged statistics (of {stored.get('count')!r} tokens): delete it and run again")
    return from_sums(tensors["mom2"], tensors["key_sum"], tensors["norm_sum"], stored, where=path, d_in=d_in)


def load_published(path: Path, expected: Mapping[str, Any], d_in: int) -> Moment:
    """Statistics from an .npz in the published format (arrays `mom2.mom2`, the sum of k k^T, and `mom2.count`).

    Such a file does not tell its model, corpus or tokenizer, so they can't be checked: a warning says so.
    Raises UserError for a damaged file, or one for another number of documents or another width.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            total, count = torch.from_numpy(file["mom2.mom2"]), int(file["mom2.count"])
            size = str(file["sample_size"].item()) if "sample_size" in file else str(expected["n_samples"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not readable as published statistics ({error}): delete it, or copy it again") from None
    if size != str(expected["n_samples"]):
        raise UserError(
            f"{path}: statistics of {size} documents, wanted {expected['n_samples']}: move the file away, or ask for {size}"
        )
    warnings.warn(f"{path}: published statistics; which model and corpus they are of can't be checked", stacklevel=2)
    unknown = {field: "unknown" for field in ("weights", "model_dtype", "tokenizer", "corpus", "max_length")}
    identity = {**expected, **unknown, "format": "published", "count": count, "file": str(path)}
    total = total.to(torch.promote_types(total.dtype, torch.float32))
    return from_sums(total, None, None, identity, where=path, d_in=d_in)


def from_sums(
    mom2: Float[Tensor, "d_in d_in"],
    key_sum: Float[Tensor, " d_in"] | None,
    norm_sum: Float[Tensor, ""] | None,
    identity: dict[str, Any],
    where: Path,
    d_in: int,
) -> Moment:
    """The moment from sums over `identity["count"]` tokens. Raises UserError for a wrong width or for NaN and infinity."""
    count = identity["count"]
    if mom2.shape != (d_in, d_in):
        raise UserError(
            f"{where}: statistics of keys of width {mom2.shape[-1]}, but the model's have {d_in}: they are of another model"
        )
    if count < 1 or not torch.isfinite(mom2.diagonal().sum()):
        raise UserError(
            f"{where}: statistics over {count} tokens hold NaN or infinity: delete the file if there is one, and "
            "collect again with the model in a wider precision"
        )
    mean = None if key_sum is None else key_sum / count
    norm_mean = None if norm_sum is None else norm_sum.item() / count
    return Moment(mom2 / count, count, identity["layer"], identity, mean, norm_mean)


def save(path: Path, sums: Mapping[str, Tensor], identity: Mapping[str, Any]) -> None:
    """Write the sums `mom2`, `key_sum` and `norm_sum` of one layer, at once or not at all."""
    write_tensors(path, sums, {"identity": dict(identity)})


def save_snapshot(
    path: Path, sums: Mapping[int, Mapping[str, Tensor]], state: Mapping[str, Any], identities: Sequence[Mapping[str, Any]]
) -> None:
    """Write the sums so far of all layers, and `state`, from which the collection continues. identities: what is collected."""
    flat = {f"{layer}.{name}": tensor for layer, part in sums.items() for name, tensor in part.items()}
    write_tensors(path, flat, {"state": dict(state), "identities": list(identities), "owner": owner()})


def sweep_snapshots(folder: Path) -> None:
    """Removes snapshots of collections that are finished, which a kill has left; none of a process that may live."""
    for path in folder.glob("unfinished-*.safetensors"):
        try:
            header = read_header(path)
            over = not may_live(header["owner"]) and all(file_of(folder, one).exists() for one in header["identities"])
        except (DamagedFile, OSError, KeyError, ValueError, TypeError):  # older, or of nobody knows what
            continue
        if over:
            path.unlink(missing_ok=True)


def load_snapshot(path: Path, widths: Mapping[int, int]) -> tuple[dict[int, dict[str, Tensor]], dict[str, Any]]:
    """(sums, state) of a snapshot; widths: {layer: d_in}. Raises DamagedFile for a damaged one."""
    shapes = {f"{layer}.{name}": shape for layer, width in widths.items()
              for name, shape in (("mom2", [width, width]), ("key_sum", [width]), ("norm_sum", []))}
    header, flat = read_tensors(path, "snapshot of a collection", "the collection begins anew", header={"state": dict},
                                shapes=shapes)
    state = header["state"]
    if flat.keys() != shapes.keys() or state.keys() != STATE or not all(type(n) is int and n >= 0 for n in state.values()):
        raise DamagedFile(f"{path}: damaged snapshot of a collection: the collection begins anew")
    sums: dict[int, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        layer, _, name = key.partition(".")
        sums.setdefault(int(layer), {})[name] = tensor
    return sums, state
