"""ITI after MEMIT: heads are shifted along the line between the class means (Li et al. 2023), MEMAT's baseline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.errors import UserError
from editors.base import Task
from editors.configuration import Finite
from editors.core.prompts import Request
from . import relevance
from .corrections import Corrections, one_for_all
from .head_editor import HeadEditor, HeadHParams, HeadOutputs
from .outputs import check_heads, Head


@dataclass(frozen=True, kw_only=True)
class ITIHParams(HeadHParams):
    """ITI's keys: those of both head editors, and the strength of the shift."""

    alpha: Finite = 15.0
    """Strength: standard deviations that a head is shifted by."""
    probe_seed: int | None = None

    ignored: ClassVar[Mapping[str, str]] = HeadHParams.ignored | dict.fromkeys(
        ("correction_lr", "train_position", "head_context_starts", "head_kl_prompt"), "MEMAT's: ITI trains no corrections"
    )


class ITI(HeadEditor):
    """MEMIT, then alpha * sigma * theta added to the chosen heads at every token: theta is the unit vector from the mean output
    at old facts to the mean at new ones, over the voters; sigma the standard deviation of all facts' outputs along it."""

    name = "ITI"
    hparams_class: ClassVar[type[ITIHParams]] = ITIHParams
    hparams: ITIHParams

    def check(self, model: nn.Module, tok, requests: Sequence[Request]) -> None:
        """Raises UserError for what does not fit the model."""
        super().check(model, tok, requests)
        if self.hparams.heads is not None:  # else done above
            relevance.sentence_rows(self.decoder(model, tok), requests, self.hparams.probe_token)

    def correct(
        self, model: nn.Module, tok, requests: Sequence[Request], heads: Sequence[Head], progress: bool = True,
        voters: Sequence[int] | None = None, alpha: float | None = None, outputs: HeadOutputs | None = None,
    ) -> Corrections:
        """The shifts of these heads, of the model as it is. voters, outputs: see `relevance`; alpha: by default the hparams';
        the vectors are linear in it.

        Raises UserError for heads that the model lacks, no voters, and vectors that are not finite.
        """
        pairs = check_heads(heads, self.decoder(model))
        voters = self.voters(model, tok, requests) if voters is None else list(voters)
        if not voters:
            raise UserError('no fact can vote on the direction: edit more facts together, or let all vote ("voters": "all")')
        if outputs is None:
            outputs = self.features(model, tok, requests, progress)
        of_heads = torch.stack([outputs[:, :, layer, head] for layer, head in pairs])
        return one_for_all(pairs, shifts(of_heads, voters, self.hparams.alpha if alpha is None else alpha))

    def _corrector(self, task: Task) -> Callable[[Sequence[Head]], Corrections]:
        return lambda heads: self.correct(task.model, task.tok, task.requests, heads, task.progress)


def shifts(
    outputs: Float[Tensor, "heads facts 2 size"], voters: Sequence[int], alpha: float
) -> Float[Tensor, "heads size"]:
    """alpha * sigma * theta of each head, from its outputs at the new ([:, :, 0]) and the old facts."""
    theta = (outputs[:, voters, 0] - outputs[:, voters, 1]).mean(1)
    theta = theta / theta.norm(dim=1, keepdim=True).clamp_min(torch.finfo(theta.dtype).tiny)
    along = torch.einsum("hfcs,hs->hfc", outputs, theta).flatten(1)
    return alpha * along.std(1, correction=0)[:, None] * theta
