"""What MEND, KE and ENN share as editors of requests: a trained network turns them into an Edit of the model's weights."""

import hashlib
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from common.errors import UserError
from editors.base import Task, WeightEditor
from editors.changes import Dense, LowRank
from editors.configuration import Count, Positive
from editors.core.batching import check_padding
from editors.core.modules import input_device, longest_context
from editors.core.prompts import fill, Request
from . import checkpoint
from .algorithms import algorithm, algorithms
from .editable import Editable
from .episode import Batch, Collator
from .factors import CHUNK
from .model_kind import ModelKind
from .options import Options


@dataclass(frozen=True, kw_only=True)
class LearnedHParams(Options):
    """Keys of MEND, KE and ENN as editors of requests: which trained network, and how its update is applied."""

    checkpoint: str | None = None
    """What experiments.train kept (best.safetensors): a path with a separator, or a name in the folder of trained editors.
    None: the published name that the keys below make, or else the model's, in that folder."""
    lr_scale: Positive = 1.0
    """The update is multiplied by this."""
    n_toks: int = 1
    """Published: like the four below, it is part of the trained editor's name."""
    model_name: str | None = None
    counterfact: bool = False
    zsre: bool = False
    mini: bool = False
    chunk: Count = CHUNK
    """Requests that go through the model together; changes no number."""
    legacy_last_chunk_only: bool = False
    """As MEMIT's baseline: of more requests than a chunk holds, only those of the last one are edited."""
    legacy_train_mode_stats: bool = False
    """MEND, as ROME's and MEMIT's baselines: statistics of the factors begin anew with the first edit, and change with each."""

    def __post_init__(self):
        super().__post_init__()
        if self.checkpoint is None and self.model_name is None:
            raise UserError("give checkpoint, the file of a trained editor, or the published keys n_toks and model_name")

    def file(self, editor: str, trained: Path | None = None, shipped: Sequence[Path] = ()) -> Path:
        """The checkpoint of an editor of that name. Raises UserError if there is none.

        trained: where trained editors are kept (default: `trained_folder`), one folder an editor. shipped: folders in
        which a name is looked for if it is not there.
        """
        folder = (trained or trained_folder()) / editor
        names = [self.checkpoint] if self.checkpoint else [self._published(editor), checkpoint_name(self.model_name)]
        if os.sep in names[0]:
            places = [Path(names[0]).expanduser()]
        else:
            places = [place / name for place in (folder, *shipped) for name in names]
        for path in places:
            if path.is_file():
                return path
        raise UserError(
            f"{editor} needs a trained editor, but there is no {' nor '.join(map(str, places[: len(names)]))}: train one with "
            f"experiments.train ... export={places[0]}, or name its file as checkpoint (a bare name is looked for in {folder})"
        )

    def _published(self, editor: str) -> str:
        data = "counterfact-" if self.counterfact else "zsre-" if self.zsre else ""
        model = self.model_name.rpartition("/")[2].lower()
        return f"{algorithm(editor).config_key()}-{'mini-' if self.mini else ''}{self.n_toks}tok-{data}{model}.safetensors"


def checkpoint_name(model_name: str, kind: ModelKind = ModelKind.DECODER) -> str:
    """What experiments.train calls a trained editor of this model by default. Only decoders are edited by their name alone."""
    return f"{model_name.replace('/', '_')}{'' if kind is ModelKind.DECODER else f'-{kind.value}'}.safetensors"


def trained_folder() -> Path:
    """Where trained editors are kept: `learned` in KE_DATA_DIR, or in ~/.cache/knowledge-editing/data."""
    return Path(os.environ.get("KE_DATA_DIR") or "~/.cache/knowledge-editing/data").expanduser() / "learned"


@dataclass(frozen=True)
class _Text:
    input: str
    target: str
    label: None = None
    scored: None = None


class LearnedEditor(WeightEditor):
    """Edits all requests at once, with the trained networks in evaluation mode."""

    hparams_class = LearnedHParams
    needs_cache = False
    hparams: LearnedHParams
    algorithm: ClassVar[type[Editable]]
    any_model: ClassVar[bool] = False
    """Whether the model may differ from that of the checkpoint."""
    applied: ClassVar[Mapping[str, Any]] = {}
    """Options of the algorithm that matter in training alone, as they are best for an edit."""

    def __init__(self, hparams: LearnedHParams):
        super().__init__(hparams)
        self._loaded: tuple[weakref.ref, Editable, dict[str, Any]] | None = None

    @property
    def identity(self) -> str:
        """16 hex digits of the trained editor's file."""
        return hashlib.sha256(self.hparams.file(self.name).read_bytes()).hexdigest()[:16]

    def tells_what_is_said(self, model: nn.Module) -> bool:
        return self.editable(model)[0].kind is ModelKind.DECODER

    def changes(self, task: Task) -> tuple[dict[str, LowRank | Dense], dict[str, Any]]:
        alg, info = self.editable(task.model)
        if alg.kind is ModelKind.DECODER:
            check_padding(task.model, f"an edit by {self.name}")
        batch, condition = self._batches(task.model, task.tok, alg, task.requests)
        with torch.no_grad():
            edited, _ = alg.edit(batch, condition, detach_history=True, chunk=self.hparams.chunk)
            changes = {name: self._scaled(edited.change(name)) for name in alg.inner}
        return changes, info

    def editable(self, model: nn.Module) -> tuple[Editable, dict[str, Any]]:
        """(the trained editor of this model, what it was trained as). Raises UserError for one of another model."""
        if self._loaded is None or self._loaded[0]() is not model:
            path = self.hparams.file(self.name)
            about = checkpoint.read(path)[0]["about"]
            if about["algorithm"] != self.algorithm.config_key():
                trained = algorithms().get(about["algorithm"])
                raise UserError(f"{path}: a trained {trained.title if trained else about['algorithm']}, not a {self.name}")
            with torch.random.fork_rng(devices=[]):
                alg = self.algorithm.build(model, about["inner_params"], about["options"] | self.applied)
            checkpoint.load(path, alg, self.any_model)
            alg.net.requires_grad_(False)
            trained = {key: about[key] for key in ("algorithm", "options", "inner_params")}
            info = {"checkpoint": path.name, "trained": trained}
            if self.any_model:
                info["identity"] = about
            self._prepare(alg)
            self._loaded = weakref.ref(model), alg, info
        return self._loaded[1], self._loaded[2]

    def _prepare(self, alg: Editable) -> None:
        """What happens to a trained editor when it has been loaded."""
        alg.net.eval()

    def _batches(self, model: nn.Module, tok, alg: Editable, requests: Sequence[Request]) -> tuple[Batch, Batch]:
        if self.hparams.legacy_last_chunk_only:
            requests = requests[(len(requests) - 1) // self.hparams.chunk * self.hparams.chunk :]
        texts = [_Text(fill(request.prompt, request.subject), request.target_new) for request in requests]
        collate = Collator(tok, alg.kind)
        batches = collate.batch(texts), collate.texts([text.input + text.target for text in texts])
        positions = longest_context(model)
        if positions is not None:  # a target's last token is never fed
            batches[0].update({name: batches[0][name][:, :positions] for name in ("input_ids", "attention_mask")})
        return tuple({name: tensor.to(input_device(model)) for name, tensor in batch.items()} for batch in batches)

    def _scaled(self, change: LowRank | Dense) -> LowRank | Dense:
        scale = self.hparams.lr_scale
        if isinstance(change, Dense):
            return Dense((scale * change.delta).cpu())
        return LowRank((scale * change.left).cpu(), change.right.cpu())
