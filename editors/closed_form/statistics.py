"""The second moments that closed forms preserve, as their hyper-parameters ask for them."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.errors import UserError
from editors.core import covariance
from editors.core.covariance import keys_for, MomentSpec
from editors.core.decoder import Decoder
from editors.core.moment import Moment
from editors.core.solve import Factor
from editors.hparams import ValueHParams

INFO_NAMES = {"count": "keys", "texts": "documents", "rank": "rank", "condition": "condition", "seconds": "seconds"}
"""Of a moment's identity -> names in an Edit's info."""


def second_moments(decoder: Decoder, hparams: ValueHParams, progress: bool = True) -> dict[int, Moment]:
    """{layer: second moment of the keys}, to be asked for before the first weight changes.

    With dynamic_multiplier m of exactly ceil(m * d_in) keys (FastMEMIT); with dynamic of the model as it is now.
    """
    multiplier = hparams.dynamic_multiplier
    max_keys = None if multiplier is None else keys_for(multiplier, decoder.weight(hparams.layers[0]).d_in)
    tokens = None if hparams.dynamic else hparams.mom2_tokens
    spec = MomentSpec(hparams.mom2_dataset, hparams.mom2_n_samples, hparams.mom2_dtype, tokens, max_keys)
    collect = covariance.collect_now if hparams.dynamic else covariance.collect
    return collect(decoder, hparams.layers, spec, progress=progress)


@dataclass(frozen=True)
class Factors:
    """Cholesky factors of C + ridge I by layer."""

    by_layer: dict[int, Factor]
    added: dict[int, float] = field(default_factory=dict)
    """{layer: what relative_ridge added to the diagonal of a C without full rank}."""

    def __getitem__(self, layer: int) -> Factor:
        return self.by_layer[layer]


def factorised(moments: Mapping[int, Moment], hparams: ValueHParams, ridge: float = 0.0) -> Factors:
    """The factors of C + ridge I. relative_ridge, if the hparams set it, makes a C without full rank regular.

    Raises UserError for one that neither helps.
    """
    factors, added = {}, {}
    for layer, moment in moments.items():
        rank = moment.rank if hparams.relative_ridge else moment.noted_rank
        deficiency = f"block {layer}: the second moment of {moment.count} keys has rank {rank} of {moment.d_in}"
        if rank < moment.d_in and hparams.relative_ridge:
            added[layer] = hparams.relative_ridge * float(moment.matrix.diagonal().mean())
            warnings.warn(f"{deficiency}; relative_ridge adds {added[layer]:.3g} to its diagonal", stacklevel=2)
        elif rank < moment.d_in and not ridge:
            raise UserError(f"{deficiency}: raise dynamic_multiplier (10 is usual) or mom2_n_samples, or set "
                            "relative_ridge (1e-3, say)")
        elif rank < moment.d_in:
            warnings.warn(
                f"{deficiency}; {ridge:.3g} on its diagonal (update_norm_lambda / mom2_update_weight) makes it regular",
                stacklevel=2,
            )
        factors[layer] = moment.factor(ridge + added.get(layer, 0.0))
    return Factors(factors, added)


def described(moments: Mapping[int, Moment], added: Mapping[int, float] | None = None) -> dict[str, dict[str, Any]]:
    """What an Edit's info tells of its statistics, by layer. added: see `Factors`."""
    summaries = {
        str(layer): {name: moment.identity[field] for field, name in INFO_NAMES.items() if field in moment.identity}
        for layer, moment in moments.items()
    }
    for layer, ridge in (added or {}).items():
        summaries[str(layer)]["ridge"] = ridge
    return summaries
