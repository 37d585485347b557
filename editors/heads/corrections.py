"""Correction vectors of attention heads: on disk, and as biases of the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from common.errors import UserError
from common.files import whole_file
from common.tensor_files import read_tensors, write_tensors
from editors.changes import Dense
from editors.core import ranks
from editors.core.decoder import Decoder
from editors.edit import Edit
from .outputs import as_biases, Head, head_shape


@dataclass(frozen=True)
class Corrections:
    """Vectors for heads, in the order of the ranking."""

    heads: list[Head]
    vectors: Float[Tensor, "heads size"]
    info: Mapping[str, Any] = field(default_factory=dict)
    """JSON-ready: model, languages, count, facts, hyper-parameters."""

    def save(self, path: str | os.PathLike) -> None:
        """Write `path` (safetensors, self-describing), and beside it the (layer, head) pairs as .npy, as the published programs
        do."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        heads = torch.tensor(self.heads, dtype=torch.int64)
        write_tensors(path, {"heads": heads, "vectors": self.vectors}, self.info)
        with whole_file(path.with_suffix(".npy")) as part, open(part, "xb") as file:
            np.save(file, heads.numpy())

    @staticmethod
    def load(path: str | os.PathLike) -> Corrections:
        """Reads what `save` wrote. Raises UserError for a missing, damaged or foreign file."""
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file of correction vectors")
        info, tensors = read_tensors(Path(path), "file of correction vectors", "save them again",
                                     shapes={"heads": [None, 2], "vectors": [None, None]})
        heads, vectors = tensors["heads"], tensors["vectors"]
        if len(heads) != len(vectors) or heads.dtype != torch.int64 or not vectors.is_floating_point():
            raise UserError(f"{path}: heads of shape {list(heads.shape)} and vectors of shape {list(vectors.shape)}, expected "
                            "one (layer, head) and one vector for each")
        return Corrections([tuple(head) for head in heads.tolist()], vectors, info)

    def first(self, number: int) -> Corrections:
        """Of the best `number` heads only."""
        return Corrections(self.heads[:number], self.vectors[:number], self.info)


def one_for_all(heads: list[Head], vectors: Float[Tensor, "heads size"]) -> Corrections:
    """The first process's, in every process. Raises UserError for vectors that are not finite."""
    heads, vectors = ranks.same((heads, vectors))
    if not torch.isfinite(vectors).all():
        raise UserError("the correction vectors are not finite: load the model in a wider dtype, or lower the learning rate")
    return Corrections(heads, vectors)


def folded(
    decoder: Decoder, corrections: Corrections, overwrite: bool, info: Mapping[str, Any] | None = None
) -> Edit:
    """The edit that adds the vectors at every token: biases of the attention's output projections, made where there are none.

    overwrite: of the heads of one layer only the last counts (published). Raises UserError for vectors of another head size.
    """
    _, size = head_shape(decoder)
    if corrections.vectors.shape != (len(corrections.heads), size):
        raise UserError(
            f"correction vectors of shape {list(corrections.vectors.shape)} for {len(corrections.heads)} heads of size {size}: "
            "they are of another model or other heads"
        )
    biases = as_biases(decoder, corrections.heads, corrections.vectors, overwrite)
    return Edit({name: Dense(bias) for name, bias in biases.items()}, info or {})
