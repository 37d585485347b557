"""What MEMAT's published code computes otherwise than its paper says."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Profile:
    """The fields' defaults are the method as the paper says it."""

    residual: Literal["refresh", "stale"] = "refresh"
    """What is left to write after a layer: measured on the model edited so far, or on the unedited one, as the published code
    does on a GPU. Of n layers stale writes 1/n + ... + 1/1 of the distance: 137/60 of it with five."""
    lookup: Literal["offsets", "separate"] = "offsets"
    """How the subject's last token is found: by character offsets, or by tokenising what stands before it and it by
    themselves."""
    target_tokens: Literal["ids", "text"] = "ids"
    """How a target of several tokens is put behind a prompt: as tokens, or as text that is tokenised anew."""
    mom2_dtype: str = "float32"
    mom2_tokens: int | None = None
    same_layer: Literal["sum", "last"] = "sum"
    """Corrections of one layer's heads add up, or only the last counts."""
    head_contexts: Literal["own", "edits"] = "own"
    """Contexts for training corrections: in their own language, or those of MEMIT's edits (with "{} is a" as KL prompt)."""
    train_position: Literal["last_real", "all", "legacy"] = "last_real"
    """Where corrections stand while they are trained, see training.py."""
    head_norm: Literal["per_head", "shared"] = "per_head"
    """What clamp and weight decay are relative to: the size of each head's output, or of one head's for all."""
    full_batch: bool = False
    """A last, shorter batch is divided by the size of a full one, not by its own."""
    correction_kl: bool = True
    """Corrections are held in place by the KL term with the edit's weight, or not at all."""


PROFILES = {
    "default": Profile(),
    "paper": Profile(
        residual="stale", lookup="separate", target_tokens="text", mom2_dtype="float16", mom2_tokens=1000, same_layer="last",
        head_contexts="edits", train_position="legacy", head_norm="shared", full_batch=True, correction_kl=False,
    ),
}
"""What the hyper-parameter `profile` stands for: the method as the paper says it, and ("paper") as the paper's program computes
it."""
