"""How every model of the world is trained: by Muon and AdamW, in runs that go on after they were killed."""
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn, Tensor
from tqdm import tqdm

from common.errors import UserError
from common.tensor_files import read_tensors, write_tensors


def check_flags(flags: Mapping[str, float], at_least_one: Sequence[str]) -> None:
    """Raises UserError for sizes below 1, a width that the heads do not divide, and rates that are no rates."""
    for name in at_least_one:
        if flags[name] < 1:
            raise UserError(f"--{name} must be at least 1, not {flags[name]}")
    for name in ("muon_lr", "adam_lr", "weight_decay"):
        if not 0 <= flags[name] < math.inf:
            raise UserError(f"--{name} must be a finite number, not below 0, not {flags[name]}")
    if flags["width"] % flags["heads"]:
        raise UserError(f"--width {flags['width']} can't be divided by --heads {flags['heads']}")


def optimizers_of(model: nn.Module, is_matrix: Callable[[str, Tensor], bool], settings: Any) -> list[torch.optim.Optimizer]:
    """Muon for the parameters that ``is_matrix`` chooses, those inside the blocks, and AdamW for all others.

    settings: has ``muon_lr``, ``adam_lr`` and ``weight_decay`` (of the matrices).
    """
    matrices = [parameter for name, parameter in model.named_parameters() if is_matrix(name, parameter)]
    others = [parameter for name, parameter in model.named_parameters() if not is_matrix(name, parameter)]
    return [torch.optim.Muon(matrices, lr=settings.muon_lr, momentum=0.95, weight_decay=settings.weight_decay,
                             adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=settings.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)]


def rate(step: int, steps: int, decay: float, warmup_steps: int = 100) -> float:
    """The learning rate's factor: ``warmup_steps`` up, flat, then linearly to 0 over the last ``decay`` of the steps."""
    return min((step + 1) / warmup_steps, 1.0, (steps - step) / max(1.0, decay * steps))


class Training:
    """A run in a folder, from the beginning or from the state that a killed one left there.

    ``progress`` is the place in the data (``epoch``, ``batch``, ``step``), ``seconds``, ``loss`` of the last step, ``loss_sum``
    of the epoch, and ``epochs``, the log of the past ones. It is saved with the weights and the optimisers.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], model: nn.Module, optimizers: list[torch.optim.Optimizer],
                 steps: int, save_seconds: float, stop_after: int | None):
        """settings: what two runs must have in common for one to go on with the other. steps: of the whole run. save_seconds:
        between two saves. stop_after: steps to do now (None: all). Raises UserError where the folder has another run."""
        self.state_path = folder / "state.safetensors"
        self._model, self._optimizers, self._save_seconds, self._stop_after = model, optimizers, save_seconds, stop_after
        self._peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        settings = json.loads(json.dumps(settings))
        self.progress: dict[str, Any] = {"run": settings, "epoch": 0, "batch": 0, "step": 0, "seconds": 0.0, "loss": 0.0,
                                         "loss_sum": 0.0, "epochs": []}
        if self.state_path.exists():
            self.progress |= self._load()
            saved = self.progress["run"]
            if saved != settings:
                changed = sorted(name for name in settings if saved.get(name) != settings[name])
                raise UserError(f"{folder} holds a run with other settings ({', '.join(changed)}); "
                                "choose another --out or give the same flags")
        self.bar = tqdm(total=steps, initial=self.progress["step"], unit="step", smoothing=0.05)
        self._first_step = self.progress["step"]
        self._saved_at = self._last_at = time.monotonic()

    def step(self, loss_of: Callable[[], Tensor], factor: float) -> bool:
        """One step of all optimizers down the loss, gradients no longer than 1, at ``factor`` times their peak rates.

        Saves the state when it is time. Returns whether the run is to stop here.
        """
        for optimizer, peak in zip(self._optimizers, self._peaks):
            optimizer.param_groups[0]["lr"] = peak * factor
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        finished_at, progress = time.monotonic(), self.progress
        progress["loss"] = loss.item()
        progress["loss_sum"] += progress["loss"]
        progress["batch"] += 1
        progress["step"] += 1
        progress["seconds"] += finished_at - self._last_at
        self._last_at = finished_at
        self.bar.update()
        self.bar.set_postfix(epoch=progress["epoch"], loss=f"{progress['loss']:.3f}", refresh=False)
        stops = bool(self._stop_after) and progress["step"] - self._first_step >= self._stop_after
        if stops or finished_at - self._saved_at > self._save_seconds:
            self.save()
        return stops

    def end_epoch(self, **measured: Any) -> None:
        """Logs what was measured in the epoch that ends, and goes on with the next."""
        progress = self.progress
        progress["epochs"].append({"epoch": progress["epoch"], "step": progress["step"],
                                   "seconds": round(progress["seconds"], 1), **measured})
        tqdm.write(json.dumps(progress["epochs"][-1]))
        progress.update(epoch=progress["epoch"] + 1, batch=0, loss_sum=0.0)

    def save(self) -> None:
        """Writes weights, optimiser tensors and progress as one safetensors file, which is replaced at once."""
        tensors = {f"model/{name}": parameter.detach().clone() for name, parameter in self._model.named_parameters()}
        for i, optimizer in enumerate(self._optimizers):
            for j, entry in optimizer.state_dict()["state"].items():
                for key, value in entry.items():
                    tensors[f"optim/{i}/{j}/{key}"] = torch.as_tensor(value).clone()
        write_tensors(self.state_path, tensors, self.progress, key="progress")
        self._saved_at = time.monotonic()

    def _load(self) -> dict[str, Any]:
        """Puts the saved tensors back into model and optimizers; returns the saved progress."""
        weights: dict[str, Tensor] = {}
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self._optimizers]
        progress, tensors = read_tensors(self.state_path, "state of a training")
        for name, tensor in tensors.items():
            if name.startswith("model/"):
                weights[name.removeprefix("model/")] = tensor
            else:
                _, i, j, key = name.split("/")
                states[int(i)].setdefault(int(j), {})[key] = tensor
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(weights[name])
        for optimizer, state in zip(self._optimizers, states):
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return progress
