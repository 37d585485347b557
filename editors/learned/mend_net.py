"""MEND's editor networks: what a weight's gradient factors go through before they become an update (Mitchell et al. 2022a)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.errors import UserError

EPSILON = 1e-7
"""Added to a standard deviation before it divides."""


class IDLayer(nn.Module):
    """x + max(scale * (U V x + b) + shift, 0), the identity as long as U is 0; scale and shift belong to the weight ("mode").

    "xavier" initialisation has no residual connection. Clamping rather than ReLU: at exactly 0 its gradient is 1, so that U = 0
    can begin to learn.
    """

    def __init__(self, width: int, rank: int, init: str, n_modes: int | None):
        super().__init__()
        rank = min(rank, width)
        self.u, self.v = nn.Parameter(torch.empty(width, rank)), nn.Parameter(torch.empty(rank, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.residual = init == "id"
        if self.residual:
            nn.init.zeros_(self.u)
            nn.init.normal_(self.v)
        else:
            nn.init.xavier_uniform_(self.u, gain=math.sqrt(2))
            nn.init.xavier_uniform_(self.v)
        if n_modes is not None:
            self.mode_shift, self.mode_scale = nn.Embedding(n_modes, width), nn.Embedding(n_modes, width)
            nn.init.zeros_(self.mode_shift.weight)
            nn.init.ones_(self.mode_scale.weight)

    def forward(self, x: Float[Tensor, "rows width"], mode: int | None) -> Float[Tensor, "rows width"]:
        hidden = x @ self.v.T @ self.u.T + self.bias
        if mode is not None:
            hidden = self.mode_scale.weight[mode] * hidden + self.mode_shift.weight[mode]
        hidden = hidden.clamp(min=0)
        return x + hidden if self.residual else hidden


class IDMLP(nn.Module):
    """`n_hidden` + 1 such layers."""

    def __init__(self, width: int, n_hidden: int, rank: int, init: str, n_modes: int | None):
        super().__init__()
        self.layers = nn.ModuleList(IDLayer(width, rank, init, n_modes) for _ in range(n_hidden + 1))

    def forward(self, x: Float[Tensor, "rows width"], mode: int | None = None) -> Float[Tensor, "rows width"]:
        for layer in self.layers:
            x = layer(x, mode)
        return x


class FactorEditor(nn.Module):
    """Normalises factors (u, delta) by running moments and sends them through a network.

    The moments are of every row ever seen in training, a row at a time in effect; in evaluation they stay as they are.
    """

    def __init__(self, d_in: int, d_out: int, options, n_modes: int | None):
        super().__init__()
        self.norm, self.d_in = options.norm, d_in
        for side, width in (("u", d_in), ("v", d_out)):
            for moment in ("mean", "s", "std"):
                self.register_buffer(f"{side}_{moment}", torch.full((width,), math.nan))
        self.register_buffer("k", torch.full((1,), math.nan))

        def net(width: int) -> IDMLP:
            return IDMLP(width, options.n_hidden, options.rank, options.init, n_modes)

        self.mlp = self.mlp1 = self.mlp2 = None
        if options.combine:
            self.mlp = net(d_in + d_out)
        else:
            smaller_is_u = d_in <= d_out
            if not options.delta_only and (not options.one_sided or smaller_is_u):
                self.mlp1 = net(d_in)
            if not options.x_only and (not options.one_sided or not smaller_is_u):
                self.mlp2 = net(d_out)

    def normalised(
        self, u: Float[Tensor, "rows d_in"], delta: Float[Tensor, "rows d_out"]
    ) -> tuple[Float[Tensor, "rows d_in"], Float[Tensor, "rows d_out"]]:
        """By the moments, to which in training these rows are added before.

        Raises UserError if there are no statistics yet and none are gathered.
        """
        if self.training:
            self.count(u, delta)
        if not self.norm:
            return u, delta
        if not torch.isfinite(self.k).item():
            raise UserError(
                "the editor has never been trained: it has no statistics of gradient factors; train it with experiments.train"
            )
        return (u - self.u_mean) / (self.u_std + EPSILON), (delta - self.v_mean) / (self.v_std + EPSILON)

    def forward(
        self, u: Float[Tensor, "rows d_in"], delta: Float[Tensor, "rows d_out"], mode: int | None
    ) -> tuple[Float[Tensor, "rows d_in"], Float[Tensor, "rows d_out"]]:
        """What factors become."""
        return self.edited(*self.normalised(u, delta), mode)

    def edited(
        self, u: Float[Tensor, "rows d_in"], delta: Float[Tensor, "rows d_out"], mode: int | None
    ) -> tuple[Float[Tensor, "rows d_in"], Float[Tensor, "rows d_out"]]:
        """What normalised factors become."""
        if self.mlp is not None:
            factors = self.mlp(torch.cat([u, delta], -1), mode)
            return factors[:, : self.d_in], factors[:, self.d_in :]
        return u if self.mlp1 is None else self.mlp1(u, mode), delta if self.mlp2 is None else self.mlp2(delta, mode)

    @torch.no_grad()
    def count(self, u: Float[Tensor, "rows d_in"], delta: Float[Tensor, "rows d_out"]) -> None:
        """Adds rows to the moments: Welford's, in one block (Chan et al. 1979). Until there are two rows, std is 1."""
        n = len(u)
        if not n:
            return
        rows_before = 0.0 if math.isnan(self.k.item()) else self.k.item()
        rows_in_all = rows_before + n
        for side, rows in (("u", u.double()), ("v", delta.double())):
            mean, s, std = (getattr(self, f"{side}_{moment}") for moment in ("mean", "s", "std"))
            block_mean = rows.mean(0)
            block_s = (rows - block_mean).square().sum(0)
            if rows_before:
                away = block_mean - mean.double()
                block_s = s.double() + block_s + away.square() * (rows_before * n / rows_in_all)
                block_mean = mean.double() + away * (n / rows_in_all)
            mean.copy_(block_mean)
            s.copy_(block_s)
            std.copy_((block_s / (rows_in_all - 1)).sqrt() if rows_in_all > 1 else torch.ones_like(block_s))
        self.k.fill_(rows_in_all)
