"""Learned editors of the tiny golden GPT-2, trained for a second: enough to make them lower the loss of an edit."""

from pathlib import Path

import torch

from editors.learned import checkpoint
from editors.learned.algorithms import algorithm
from editors.learned.episode import Collator, Episode
from editors.learned.learned_editor import _Text
from editors.learned.model_kind import ModelKind
from editors.learned.trainer import TrainConfig, Trainer

INNER = [f"transformer.h.{i}.mlp.{name}.weight" for i in (1, 2) for name in ("c_proj", "c_fc")]
OPTIONS = {
    "mend": {"rank": 8, "descent": True, "edit_lr": 1e-3},
    "efk": {"hidden_dim": 16, "condition_dim": 16},
    "enn": {"first_order": True, "edit_lr": 3e-2},
}
TEXTS = [
    ("Orla Venn lives in the city of", " Castavel"),
    ("The native language of Mira O'Dalvey is", " Nyvian"),
    ("Orla Venn plays the", " flute"),
    ("The capital of Nyv is", " Castavel"),
]


def texts_episode(tok, i: int = 0) -> Episode:
    collate = Collator(tok, ModelKind.DECODER)
    one = _Text(*TEXTS[i % len(TEXTS)])
    local = _Text(*TEXTS[(i + 1) % len(TEXTS)])
    batch = collate.batch([one])
    return Episode(batch, batch, collate.batch([local]), collate.texts([one.input + one.target]), torch.tensor([[0, 0]]))


class Texts:
    def __init__(self, tok):
        self.tok = tok

    def __len__(self):
        return len(TEXTS)

    def episode(self, number):
        return texts_episode(self.tok, number)


def trained(name: str, model, tok, folder: Path, iterations: int = 60):
    """(the trained editor, its checkpoint)."""
    flags = {p: p.requires_grad for p in model.parameters()}
    torch.manual_seed(0)
    alg = algorithm(name).build(model.requires_grad_(False), INNER, OPTIONS[name])
    config = TrainConfig(
        lr=3e-3 if name == "efk" else 1e-4,
        lr_lr=1e-4,
        accumulate_bs=2,
        parallel=2,
        max_iters=iterations,
        val_interval=iterations,
        log_interval=iterations,
        cedit=1.0,
        train_base=False,
    )
    trainer = Trainer(alg, config, Texts(tok), Texts(tok), folder / name, progress=False)
    state = torch.get_rng_state()
    trainer.run()
    torch.set_rng_state(state)
    for p, flag in flags.items():
        p.requires_grad_(flag)
    path = folder / f"{name}.safetensors"
    checkpoint.save(path, alg, {})
    return alg, path
