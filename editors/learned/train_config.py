"""The trainer's part of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import UserError
from .optimisers import MUON, optimiser_class
from .options import Options


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """Keys and defaults are those published."""

    lr: float = 1e-5
    lr_lr: float = 1e-3
    """Learning rate of the learned step sizes."""
    lr_decay: float = 0.0
    """Last share of max_iters over which the rates fall to 0 in a straight line. Not published."""
    max_iters: int = 1_000_000
    log_interval: int = 100
    val_interval: int = 5000
    val_steps: int = 500
    """Edits of a validation."""
    accumulate_bs: int = 10
    """Episodes per optimiser step."""
    parallel: int = 1
    """Episodes that go through the model side by side, where the algorithm can: the same gradients in less time."""
    cedit: float = 0.1
    cloc: float = 1.0
    cbase: float = 1.0
    opt: str = "Adam"
    """Of torch.optim; Muon steps (and decays) the matrices, Adam the rest."""
    grad_clip: float = 100.0
    """Largest norm of all outer gradients together."""
    train_base: bool = True
    """Hold the trained model to the original one (ENN)."""
    early_stop_patience: int = 20_000
    """Iterations without a better validation."""
    early_stop_key: str = "loss/total_edit_val"
    save: bool = True
    """Keep checkpoints."""
    eval_only: bool = False
    final_steps: int | None = None
    """Edits of the final evaluation; None: all."""
    unlikelihood: bool = True
    """Edits of opinions: responses of the wrong sentiment shall become unlikely, too."""
    accumulate_first_step_plus_one: bool = False
    """As published: the first optimiser step is of one episode more, still divided by accumulate_bs."""
    lr_lr_without_effect: bool = False
    """As published by MEND: learned step sizes move at lr."""
    cbase_not_in_gradient: bool = False
    """As published: cbase scales what is reported only."""

    def __post_init__(self):
        for name in ("max_iters", "log_interval", "val_interval", "val_steps", "accumulate_bs", "early_stop_patience", "parallel"):
            if getattr(self, name) < (name != "max_iters"):
                raise UserError(f"{name}: {getattr(self, name)} is too small")
        for name in ("lr", "lr_lr", "cedit", "cloc", "cbase", "grad_clip"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name}: {getattr(self, name)} must be a finite number, not below 0")
        if not 0 <= self.lr_decay <= 1:
            raise UserError(f"lr_decay: {self.lr_decay} is no share")
        if self.opt != MUON:
            optimiser_class(self.opt, "opt", max(self.lr, self.lr_lr))
