"""AlphaEdit: null-space constrained knowledge editing (Fang et al., ICLR 2025)."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from common.errors import UserError
from common.tensor_files import DamagedFile, read_tensors, write_tensors
from editors.base import Task
from editors.configuration import Positive
from editors.core import covariance, moment_store, solve
from editors.core.corpus import find_corpus
from editors.core.decoder import Decoder
from editors.core.files import check_writable
from editors.core.moment import Moment
from .spread import Solver, SpreadEditor, SpreadHParams
from .statistics import described, second_moments


@dataclass(frozen=True, kw_only=True)
class AlphaEditHParams(SpreadHParams):
    """AlphaEdit's keys: which directions the preserved keys leave free, and how the earlier edits' keys count."""

    L2: Positive
    """Weight of |Delta|^2; higher keeps the weight change smaller."""
    nullspace_threshold: Positive = 0.02
    """Directions in which the second moment is below this are free to edit; higher edits more fully and preserves less."""
    nullspace_relative: bool = False
    """Measure the threshold in mean eigenvalues of the second moment, so that it means the same for every model."""
    solve: Literal["symmetric", "published"] = "symmetric"
    """symmetric: a positive definite system in float64. published: the equal, not symmetric one in float32, much slower."""

    ignored: ClassVar[Mapping[str, str]] = SpreadHParams.ignored | {"mom2_update_weight": "AlphaEdit's update has no lambda"}

    def __post_init__(self):
        super().__post_init__()
        if self.relative_ridge:
            raise UserError("relative_ridge: AlphaEdit inverts no second moment, so it has no use for one")


class AlphaEdit(SpreadEditor):
    """Updates only directions in which the preserved keys are small, and keeps off the keys of earlier edits.

    With P the projection onto those directions, A = (P (K K^T + K_p K_p^T) P + L2 I)^{-1} P K (eq. 14): MEMIT's least-squares
    solution for projected keys, with L2 I and the sum over earlier keys K_p in place of the second moment. The published code
    solves the equal, but not symmetric, system (P (K K^T + K_p K_p^T) + L2 I) X = P K R^T in float32 (`solve` "published").
    """

    name = "AlphaEdit"
    hparams_class = AlphaEditHParams

    def solver(self, task: Task, decoder: Decoder) -> Solver:
        hp = self.hparams
        if hp.dynamic and task.memory is not None and hp.solve != "published":
            raise UserError('dynamic: in a sequence AlphaEdit remembers keys as projected with the first statistics; set it '
                            'false, or solve to "published", which projects anew')
        moments = second_moments(decoder, hp, task.progress)
        projectors, statistics = {}, described(moments)
        for layer, moment in moments.items():
            projectors[layer] = _projector(task, hp, moment)
            statistics[str(layer)]["null_space"] = projectors[layer].rank
            if moment.count < moment.d_in:
                warnings.warn(
                    f"block {layer}: {moment.count} keys cannot span {moment.d_in} dimensions, so much of the null space is an "
                    "artefact: raise dynamic_multiplier or mom2_n_samples", stacklevel=2,
                )
            if not projectors[layer].rank:
                warnings.warn(
                    f"block {layer}: no direction is below nullspace_threshold {hp.nullspace_threshold}, so nothing is written "
                    "there", stacklevel=2,
                )
        if not any(projector.rank for projector in projectors.values()):
            raise UserError(
                f"nullspace_threshold {hp.nullspace_threshold}: no direction of any layer is below it, so nothing could be "
                "edited; raise it, or set nullspace_relative"
            )

        published = hp.solve == "published"

        def adjust(layer, keys):
            def start():
                if published:
                    return solve.Gram(torch.zeros(len(keys), len(keys)))
                return solve.Factor(torch.eye(len(keys), dtype=torch.float64) * hp.L2**0.5)

            earlier = start() if task.memory is None else task.memory.at(layer, start)
            if published:
                return solve.alphaedit_as_published(projectors[layer], earlier, hp.L2, keys)
            return solve.memit(earlier, 1.0, projectors[layer](keys))

        return Solver(moments, adjust, remember=lambda layer, keys: keys if published else projectors[layer](keys),
                      statistics=statistics)


def _projector(task: Task, hp: AlphaEditHParams, moment: Moment) -> solve.Projector:
    """The projector of one layer: kept with the moment, and in a file beside the statistics."""
    threshold = hp.nullspace_threshold * (float(moment.matrix.diagonal().double().mean()) if hp.nullspace_relative else 1.0)
    if hp.dynamic:  # of an edited model: no later run may find it
        return moment.null_space(threshold)
    return moment.null_space(threshold, lambda: _kept_on_disk(task, hp, moment, threshold))


def _kept_on_disk(task: Task, hp: AlphaEditHParams, moment: Moment, threshold: float) -> solve.Projector:
    folder = covariance.folder_of(task.model, find_corpus(hp.mom2_dataset))
    path = moment_store.file_of(folder, moment.identity)
    path = path.with_name(f"{path.stem}_nullspace_{threshold:.6g}{path.suffix}")
    identity = moment.summary() | {"threshold": threshold}
    if path.exists():
        try:
            header, tensors = read_tensors(path, "projector", "it is computed anew", header={"complement": bool},
                                           shapes={"basis": [moment.d_in, None]})
            if header.get("identity") == identity:
                return solve.Projector(tensors["basis"].clone(), header["complement"])
        except DamagedFile as error:
            warnings.warn(str(error), stacklevel=2)
    check_writable(folder, "projectors")
    projector = solve.null_space(moment.matrix, threshold)
    write_tensors(path, {"basis": projector.basis}, {"identity": identity, "complement": projector.complement})
    return projector
