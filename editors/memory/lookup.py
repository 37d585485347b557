"""LU, a lookup cache: inputs whose hidden state is near an edit's get the edit's label (baseline of Mitchell et al. 2022b)."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import Self

from editors.configuration import Bound
from editors.learned.editable import Editable, forward
from editors.learned.episode import Batch
from editors.learned.losses import first_scored, IGNORED, wide
from editors.learned.model_kind import ModelKind
from editors.learned.options import Options
from .scope import nearest

Distance = Annotated[float, Bound(lambda distance: distance >= 0, "must not be below 0")]


@dataclass(frozen=True, kw_only=True)
class LookupOptions(Options):
    """The look-up's options: how near an edit must be, and how its label becomes logits."""

    threshold: Distance = 1.0
    """Distance below which an input gets the nearest edit's label."""
    onehot_logit: float = 1.0
    """The label's logit; all others are 0."""
    mean_over_padding: bool = False
    """As published, padding counts in the mean of hidden states."""


class Lookup(Editable):
    """Keys are means of the encoder's last hidden states (a decoder's over the prompt), values the labels of all edits."""

    name, title, published = "lookup", "LU", "lu"
    recipe = "serac"
    options_class = LookupOptions
    trained = False
    geometric = True

    def __init__(self, model: nn.Module, inner_params: Sequence[str] = (),
                 options: LookupOptions | Mapping[str, Any] | None = None):
        """inner_params play no part."""
        super().__init__(model, inner_params or [_any_matrix(model)], options)
        self.keys: Float[Tensor, "edits width"] | None = None
        self.values: list[Tensor] = []

    def edit(self, batch: Batch, condition: Batch | None = None, detach_history: bool = False) -> tuple[Self, dict[str, Any]]:
        edited, keys = copy.copy(self), self.key(batch)
        edited.keys = keys if self.keys is None else torch.cat([self.keys, keys])
        edited.values = self.values + [row[row != IGNORED] for row in batch["labels"]]
        return edited, {}

    def new_weights(self, batch: Batch, condition: Batch | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    @torch.no_grad()
    def key(self, batch: Batch) -> Float[Tensor, "rows width"]:
        """The mean of each row's last hidden states: of the encoder, of a decoder over the prompt."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if self.kind.is_seq2seq:
            body = self.model.get_encoder()
        else:
            body = self.model.model if self.kind is ModelKind.CLASSIFIER else self.model.base_model
        hidden = wide(body(input_ids=ids, attention_mask=mask).last_hidden_state)
        if self.kind is ModelKind.DECODER:
            ends = torch.tensor([first_scored(labels) for labels in batch["labels"]], device=ids.device)
            mask = mask * (torch.arange(ids.shape[1], device=ids.device) < ends[:, None])
        if self.options.mean_over_padding:
            return hidden.mean(1)
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def find(self, keys: Float[Tensor, "rows width"]) -> tuple[Float[Tensor, " rows"], Int[Tensor, " rows"]]:
        """(distance to the nearest edit, which one) of each row."""
        log_p, place = nearest(keys, self.keys, square=False)
        return -log_p, place

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        logits = wide(forward(self.model, {}, batch))
        if self.keys is None:
            return logits
        distance, place = self.find(self.key(batch))
        logits = logits.clone()
        for row in (distance < self.options.threshold).nonzero()[:, 0].tolist():
            logits[row] = self.answer(logits[row], self.values[place[row]], batch["labels"][row])
        return logits

    def answer(self, logits: Tensor, label: Int[Tensor, " tokens"], where: Tensor) -> Tensor:
        """The logits of one row that gets this label; where: the row's own labels, which tell a decoder where the answer is."""
        high = self.options.onehot_logit
        if logits.shape[-1] == 1:
            return high * (2 * label.to(logits.dtype) - 1)
        answered = torch.zeros_like(logits)
        start = first_scored(where) - 1 if self.kind is ModelKind.DECODER else 0
        if self.kind is ModelKind.BART:
            label = label[1:]  # its first label is never scored
        label = label[: len(answered) - start]
        answered[torch.arange(start, start + len(label)), label] = high
        return answered


def _any_matrix(model: nn.Module) -> str:
    return next(name for name, p in model.named_parameters() if p.dim() == 2)
