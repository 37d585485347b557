"""KE (KnowledgeEditor, De Cao et al. 2021; `efk` in MEND): a text tells a hyper-network how to gate and shift the gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence

from common.errors import UserError
from editors.configuration import Count
from .episode import Batch
from .factors import Factors
from .learned_editor import LearnedEditor
from .low_rank import LowRankEditable
from .options import Options
from .published import ke_state


@dataclass(frozen=True, kw_only=True)
class KEOptions(Options):
    """KE's options: the widths of its networks and how several edits are joined."""

    hidden_dim: Count = 512
    """Width of the LSTM, in each direction, and of the conditioners."""
    condition_dim: Count = 768
    """Width of the vector that a condition becomes."""
    max_scale: float = 1.0
    """Largest gate."""
    several: Literal["loop", "average"] = "loop"
    """Several edits in a batch: "loop", one after the other, each on what the last one left; "average": one update, conditioned
    on the mean of the conditions. The published code takes one edit only."""


class Condition(nn.Module):
    """A text's vector: embedding, bidirectional LSTM, its two final states, and a tanh layer."""

    def __init__(self, embedding: Float[Tensor, "vocabulary width"], hidden_dim: int, condition_dim: int):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(embedding.detach().float().clone(), freeze=False)
        self.lstm = nn.LSTM(embedding.shape[1], hidden_dim, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * hidden_dim, condition_dim)

    def forward(self, batch: Batch) -> Float[Tensor, "batch condition"]:
        lengths = batch["attention_mask"].sum(1).cpu()
        packed = pack_padded_sequence(self.embedding(batch["input_ids"]), lengths, batch_first=True, enforce_sorted=False)
        _, (final, _) = self.lstm(packed)
        return self.linear(torch.cat([final[0], final[1]], -1)).tanh()


class Conditioner(nn.Module):
    """From a condition's vector to what one weight's gradient is gated and shifted by."""

    def __init__(self, rows: int, columns: int, options: KEOptions):
        super().__init__()
        self.sizes = [columns, rows, columns, rows, 1]
        self.layers = nn.Sequential(
            weight_norm(nn.Linear(options.condition_dim, options.hidden_dim)),
            nn.Tanh(),
            weight_norm(nn.Linear(options.hidden_dim, sum(self.sizes))),
        )

    def forward(self, condition: Float[Tensor, "batch condition"]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(alpha of the rows, of the columns, beta of the rows, of the columns, gate in (0, 1))."""
        alpha_column, alpha_row, beta_column, beta_row, gate = self.layers(condition).split(self.sizes, -1)
        return alpha_row.softmax(-1), alpha_column, beta_row.softmax(-1), beta_column, gate.sigmoid()


class KE(LowRankEditable):
    """W' = W + max_scale * sigmoid(eta) * (gradient * A + B), with A and B of rank one; all from the condition.

    The gradient has few factors and A is an outer product, so the update has one factor more than the gradient.
    """

    name, title, published = "ke", "KE", "efk"
    options_class = KEOptions
    read_published = staticmethod(ke_state)

    def __init__(self, model: nn.Module, inner_params: Sequence[str], options: KEOptions | Mapping[str, Any] | None = None):
        super().__init__(model, inner_params, options)
        embedding = model.get_input_embeddings().weight
        self.net.condition = Condition(embedding, self.options.hidden_dim, self.options.condition_dim)
        self.net.conditioners = nn.ModuleDict(
            {name.replace(".", "_"): Conditioner(*model.get_parameter(name).shape, self.options) for name in self.inner}
        )
        self.net.to(embedding.device)

    def parts(self, batch: Batch, condition: Batch | None, segments: int) -> list[tuple[Batch, Batch]]:
        if condition is None:
            raise UserError("KE needs the text of the edit as its condition")
        rows = len(batch["input_ids"])
        if len(condition["input_ids"]) != rows:
            raise UserError(f"KE needs one condition an edit: {len(condition['input_ids'])} for {rows} edits")
        if self.options.several == "average":
            return [(batch, condition)]
        n = rows // segments
        return [
            ({name: t[i::n] for name, t in batch.items()}, {name: t[i::n] for name, t in condition.items()}) for i in range(n)
        ]

    def context(self, condition: Batch, factors: Mapping[str, Factors], segments: int) -> Float[Tensor, "segments condition"]:
        return self.net.condition(condition).unflatten(0, (segments, -1)).mean(1)

    def transformed(self, number: int, factors: Factors, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        name, segment = self.inner[number], factors.segment
        alpha_row, alpha_column, beta_row, beta_column, gate = self.net.conditioners[name.replace(".", "_")](context)
        scale = self.options.max_scale * gate
        row, column = (factors.u, factors.delta) if self.in_first[name] else (factors.delta, factors.u)
        row = torch.cat([(scale * alpha_row)[segment] * row.to(scale.dtype), scale * beta_row])
        column = torch.cat([alpha_column[segment] * column.to(scale.dtype), beta_column])
        u, delta = (row, column) if self.in_first[name] else (column, row)
        return u, delta, torch.cat([segment, torch.arange(len(context), device=segment.device)])


class KEEditor(LearnedEditor):
    """De Cao et al. 2021, one request after the other, each conditioned on its own sentence."""

    name, algorithm = KE.title, KE
