"""Files of tensors that are read back: safetensors, with a header of JSON that holds a checksum of both.

The one writer and the one reader of them. A file is written whole or not at all, and read from one open file, so that another
process may put a new one in its place meanwhile. What is read is checked: the checksum (of files older than it: a word says
that there is none), the form that the reader expects, and that all numbers are finite.
"""

import hashlib
import json
import math
import mmap
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .errors import UserError
from .files import whole_file
from .json_text import to_json

CHECKSUM, METHOD = "checksum", "sha256:"
"""A header's entry, and how its value begins: a file without either is an older one."""
KEYS = ("header", "edit", "progress")
"""Under which of these names the metadata of a file hold its header."""
LARGEST_HEADER = 100 << 20
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}
Shape = Sequence[int | None]
"""None: any length."""


class DamagedFile(UserError):
    """A file that is not what was written: cut off, changed, foreign, or of another form. A cache may be made again."""


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None, key: str = "header"
) -> None:
    """Write a safetensors file at once or not at all (:func:`whole_file`), with the permissions of any new file.

    header: JSON-ready, kept as one JSON object under the metadata's `key`, with the checksum; NaN and infinity become null.
    Raises UserError when writing fails, OSError where the folder can't take a file.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = json.loads(to_json(dict(header or {})))
    stored = json.dumps(content | {CHECKSUM: checksum(json.dumps(content), tensors)})
    try:
        with whole_file(path) as part:
            part.touch()
            mode = part.stat().st_mode  # safetensors puts a file there that only its owner may read
            save_file(tensors, part, metadata={key: stored})
            part.chmod(mode)
    except SafetensorError as error:
        raise UserError(f"{path}: writing failed ({error}): make room there, or choose another folder") from None


def read_tensors(
    path: Path, what: str, remedy: str = "delete it and run again", *, header: Mapping[str, Any] | None = None,
    shapes: Mapping[str, Shape] | None = None, finite: bool = True, foreign: bool = False,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(header without the checksum, tensors on the CPU).

    what, remedy: of the message about a damaged file. header: {name: type or types} that it must have.
    shapes: those that tensors of these names must have. finite: no number may be NaN or infinite.
    foreign: a file that other programs write, too, without checksum.
    Raises DamagedFile for a file that is cut off, changed since it was written or of another form, OSError for one that can't
    be opened.
    """
    def damaged(reason: object) -> DamagedFile:
        return DamagedFile(f"{path}: truncated or damaged, or not a {what} ({reason}): {remedy}")

    try:
        metadata, tensors = _content(path)
        text = next((metadata[key] for key in KEYS if key in metadata), "{}")
        stored = json.loads(text)
        if not isinstance(stored, dict) or not foreign and not metadata.keys() <= set(KEYS):
            raise ValueError("its header is not one of this toolkit")
    except (ValueError, RecursionError) as error:
        raise damaged(error) from None
    if CHECKSUM in stored:
        expected = stored.pop(CHECKSUM)
        if checksum(json.dumps(stored), tensors) != expected:
            raise damaged("its content is not what was written")
    elif any(isinstance(value, str) and value.startswith(METHOD) for value in stored.values()):
        raise damaged("its header is not what was written")
    elif not foreign:
        warnings.warn(f"{path.parent}: files there are older than checksums and hold none, so damage in them may go unseen",
                      stacklevel=2)
    for name, kind in (header or {}).items():
        value = stored.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
            raise damaged(f"its header has no usable {name!r}")
    for name, shape in (shapes or {}).items():
        if name not in tensors:
            raise damaged(f"it has no {name!r}")
        lengths = tensors[name].shape
        if len(lengths) != len(shape) or any(wanted not in (None, length) for wanted, length in zip(shape, lengths)):
            raise damaged(f"{name!r} has shape {list(lengths)}, not {['any' if n is None else n for n in shape]}")
    for name, tensor in tensors.items() if finite else ():
        if not _is_finite(tensor):
            raise damaged(f"{name!r} holds NaN or infinity")
    return stored, tensors


def read_header(path: Path) -> dict[str, Any]:
    """The header alone, as it stands: nothing is verified. Raises DamagedFile where there is none, OSError for no file."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            metadata = json.loads(file.read(min(length, LARGEST_HEADER)))["__metadata__"]
        return dict(json.loads(next(metadata[key] for key in KEYS if key in metadata)))
    except (ValueError, KeyError, TypeError, StopIteration, RecursionError) as error:
        raise DamagedFile(f"{path}: has no header that can be read ({error})") from None


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a header's JSON and of names, dtypes, shapes and bytes of tensors on the CPU, whatever their order."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return METHOD + digest.hexdigest()


def _content(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, tensors) of a safetensors file. Raises ValueError for one that is none.

    Not with safetensors' `safe_open`, which opens a file twice by its name, once for the header and once for the tensors.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, LARGEST_HEADER):
            raise ValueError("no header of safetensors")
        entries = json.loads(file.read(length))
        if not isinstance(entries, dict):
            raise ValueError("its list of tensors is no object")
        # Copied only where it is changed: the file stays as it is.
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no texts")
    tensors, spans = {}, []
    for name, entry in entries.items():
        dtype, shape, span = _entry(name, entry)
        spans.append(span)
        start, stop = 8 + length + span[0], 8 + length + span[1]
        if stop > size:
            raise ValueError(f"it ends within {name!r}")
        if start == stop:
            tensors[name] = torch.empty(shape, dtype=dtype)
        else:
            data = torch.frombuffer(memory, dtype=torch.uint8, count=stop - start, offset=start)
            if start % dtype.itemsize:
                data = data.clone()
            if dtype is torch.bool and int(data.max()) > 1:
                raise ValueError(f"{name!r} holds what is neither true nor false")
            tensors[name] = data.view(dtype).reshape(shape)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise ValueError("its tensors overlap or leave gaps")
        end = stop
    if 8 + length + end != size:
        raise ValueError("its length is not that of its tensors")
    return metadata, tensors


def _entry(name: str, entry: Any) -> tuple[torch.dtype, list[int], tuple[int, int]]:
    """(dtype, shape, first and last byte + 1 among the tensors' bytes)"""
    try:
        dtype, shape, (start, stop) = DTYPES[entry["dtype"]], list(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name!r} is not described as a tensor") from None
    if any(type(number) is not int or number < 0 for number in (*shape, start, stop)):
        raise ValueError(f"{name!r} has no possible shape")
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name!r} has another length than its shape {shape}")
    return dtype, shape, (start, stop)


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)  # NaN passes through both
    return bool(torch.isfinite(low) and torch.isfinite(high))
