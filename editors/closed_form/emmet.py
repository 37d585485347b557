"""EMMET: equality-constrained mass model editing (Gupta, Sajnani and Anumanchipalli, 2024)."""

from dataclasses import dataclass

from editors.base import Task
from editors.configuration import NotNegative, Positive
from editors.core import solve
from editors.core.decoder import Decoder
from .spread import Solver, SpreadEditor, SpreadHParams
from .statistics import described, factorised, second_moments


@dataclass(frozen=True, kw_only=True)
class EMMETHParams(SpreadHParams):
    """EMMET's keys: the matrix S, and how far its equality constraints may give way."""

    mom2_update_weight: Positive
    """lambda; cancels for a single request, and in a batch acts only through lambda * emmet_lambda."""
    emmet_lambda: NotNegative = 0.1
    """epsilon, added to the diagonal of K^T S^{-1} K when a batch has more than one request; 0: the constraint holds
    exactly."""
    update_norm_lambda: NotNegative = 0.0
    """mu: S = lambda C + mu I."""


class EMMET(SpreadEditor):
    """The equality-constrained update A = S^{-1} K (K^T S^{-1} K + epsilon I)^{-1}.

    As published, epsilon is added only when there are several requests. Then EMMET is MEMIT with S replaced by epsilon S,
    to the last digit; a single request is written exactly, like ROME's. So the last, shorter batch of a run may differ in
    kind from the others.
    """

    name = "EMMET"
    hparams_class = EMMETHParams

    def solver(self, task: Task, decoder: Decoder) -> Solver:
        hp = self.hparams
        moments = second_moments(decoder, hp, task.progress)
        factors = factorised(moments, hp, ridge=hp.update_norm_lambda / hp.mom2_update_weight)
        return Solver(moments, lambda layer, keys: solve.emmet(factors[layer], hp.mom2_update_weight, keys, hp.emmet_lambda),
                      statistics=described(moments, factors.added))
