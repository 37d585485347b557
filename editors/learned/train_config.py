"""The trainer's part of the configuration."""

from dataclasses import dataclass
from typing import Annotated

from editors.configuration import Bound, Count, Natural, NotNegative
from .optimisers import MUON, optimiser_class
from .options import Options

Decay = Annotated[float, Bound(lambda share: 0 <= share <= 1, "is no share")]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """Keys and defaults are those published."""

    lr: NotNegative = 1e-5
    lr_lr: NotNegative = 1e-3
    """Learning rate of the learned step sizes."""
    lr_decay: Decay = 0.0
    """Last share of max_iters over which the rates fall to 0 in a straight line. Not published."""
    max_iters: Natural = 1_000_000
    log_interval: Count = 100
    val_interval: Count = 5000
    val_steps: Count = 500
    """Edits of a validation."""
    accumulate_bs: Count = 10
    """Episodes per optimiser step."""
    parallel: Count = 1
    """Episodes that go through the model side by side, where the algorithm can: the same gradients in less time."""
    cedit: NotNegative = 0.1
    cloc: NotNegative = 1.0
    cbase: NotNegative = 1.0
    opt: str = "Adam"
    """Of torch.optim; Muon steps (and decays) the matrices, Adam the rest."""
    grad_clip: NotNegative = 100.0
    """Largest norm of all outer gradients together."""
    train_base: bool = True
    """Hold the trained model to the original one (ENN)."""
    early_stop_patience: Count = 20_000
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
        super().__post_init__()
        if self.opt != MUON:
            optimiser_class(self.opt, "opt", max(self.lr, self.lr_lr))
