"""Editing one model again and again: each batch goes into what earlier batches left."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.tensor_files import DamagedFile, read_tensors, write_tensors
from .base import Editor, WeightEditor
from .core.key_memory import KeyMemory
from .core.prompts import Request
from .core.solve import double
from .core.wrappers import plain_parameters
from .edit import Edit


class EditSequence:
    """A model under one editor, batch after batch.

        sequence = EditSequence(editor, model, tok)
        for batch in batches:
            sequence.edit(batch)                     # stays in the model
        sequence.close()                             # what the editor does at the end (PRUNE)
        sequence.revert()                            # the exact bits of the beginning

    Of the original weights only the edited ones are kept. `save` and `restore` carry everything over to another process: after
    them the same batches give the same bits.
    """

    def __init__(
        self, editor: Editor, model: nn.Module, tok, context_templates: Sequence | None = None,
        z_cache: str | os.PathLike | None = None, progress: bool = True, originals_device: torch.device | str | None = None,
    ):
        """originals_device: where the original weights are kept, by default beside the weights; for the rest see
        `Editor.edit`."""
        if not isinstance(editor, WeightEditor):
            raise UserError(f"{editor.name} keeps all edits in one memory and has no sequences: leave --sequential out, and "
                            "edit all at once with --num_edits")
        self.editor, self.model, self.tok = editor, model, tok
        self.batches = 0
        """Edited so far."""
        self._memory = KeyMemory()
        self._originals: dict[str, Tensor] = {}
        self._originals_device = originals_device
        self._options = {"context_templates": context_templates, "z_cache": z_cache, "progress": progress}
        self._begun = json.loads(json.dumps(editor.begin(model, tok, context_templates, progress)))

    def edit(self, requests: Sequence[Mapping | Request]) -> Edit:
        """Edit a batch into the model for good. After an error the model is as it was before."""
        edit = self.editor.edit(self.model, self.tok, requests, memory=self._memory, **self._options)
        parameters = plain_parameters(self.model)
        new_biases = [name for name in edit.changes if name not in parameters]
        if new_biases:
            raise UserError(f"{new_biases[0]}: the model has no such bias, and a sequence can't make one: edit batches one by "
                            "one, or give the model biases of zeros first")
        for name in edit.changes:
            if name not in self._originals:
                weight = parameters[name].detach()
                self._originals[name] = weight.to(self._originals_device or weight.device, copy=True)
        edit.apply(self.model, self._originals_device)
        edit.keep(self.model)
        self._memory.commit()
        self.batches += 1
        return edit

    def close(self) -> None:
        """The editor's last step, after the last batch."""
        for name, weight in self.editor.at_the_end(self._originals, self._current()).items():
            plain_parameters(self.model)[name].detach().copy_(weight)

    def revert(self) -> None:
        """The model is as it was before the first batch, to the last bit; the sequence begins anew."""
        for name, weight in self._originals.items():
            plain_parameters(self.model)[name].detach().copy_(weight)
        self._originals, self._memory, self.batches = {}, KeyMemory(), 0

    def distances(self) -> dict[str, dict[str, float]]:
        """How far each edited weight W is from its original W_0, by its name: `distance_from_original`, |W - W_0| / number of
        elements (as published), `relative_distance`, |W - W_0| / |W_0|, and `norm`, |W|; Frobenius norms."""
        distances = {}
        for name, current in self._current().items():
            current, original = double(current), double(self._originals[name])
            distance, size = float((current - original).norm()), float(original.norm())
            distances[name] = {"distance_from_original": distance / current.numel(),
                               "relative_distance": distance / max(size, 1e-30), "norm": float(current.norm())}
        return distances

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Edited weights, memory and the number of batches in one file, whole or not at all; identity: what `restore`
        checks."""
        tensors = {f"now/{name}": weight for name, weight in self._current().items()}
        tensors |= {f"original/{name}": weight for name, weight in self._originals.items()}
        tensors |= {f"memory/{name}": tensor for name, tensor in self._memory.tensors().items()}
        header = {"batches": self.batches, "identity": dict(identity), "begun": self._begun}
        write_tensors(path, tensors, header)

    def restore(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Continue from what `save` wrote. The model is the unedited one.

        Raises UserError for a damaged file, one of another identity, one whose editor had other statistics or contexts, or one
        whose original weights are not this model's.
        """
        remedy = "delete the run's folder and begin anew"
        header, tensors = read_tensors(path, "checkpoint of a sequence", remedy, header={"batches": int, "identity": dict,
                                                                                        "begun": dict})
        if header.get("identity") != json.loads(json.dumps(dict(identity))):
            raise UserError(f"{path}: a checkpoint of another sequence (model, hyper-parameters or order differ)")
        begun = header["begun"]
        for name in sorted(begun.keys() | self._begun.keys()):
            if begun.get(name) != self._begun.get(name):
                raise UserError(f"{path}: the sequence began with other {name}; put back what it had, or start a new run")
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "original": {}, "memory": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            if part not in parts:
                raise DamagedFile(f"{path}: damaged checkpoint of a sequence ({key!r} is not of one): {remedy}")
            parts[part][name] = tensor
        forms = {part: {name: (tensor.shape, tensor.dtype) for name, tensor in parts[part].items()} for part in parts}
        if header["batches"] < 1 or forms["now"] != forms["original"]:
            raise DamagedFile(f"{path}: damaged checkpoint of a sequence (after {header['batches']} batches, with "
                              f"{len(parts['now'])} of {len(parts['original'])} edited weights): {remedy}")
        parameters = plain_parameters(self.model)
        for name, original in parts["original"].items():
            if name not in parameters or not torch.equal(parameters[name].detach().cpu(), original):
                raise UserError(f"{path}: {name} of this model is not what the sequence began with")
        try:
            self._memory.restore(parts["memory"])
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedFile(f"{path}: damaged checkpoint of a sequence (its memory of keys: {error}): {remedy}") from None
        for name in parts["original"]:
            parameter = parameters[name].detach()
            self._originals[name] = parameter.to(self._originals_device or parameter.device, copy=True)
            parameter.copy_(parts["now"][name])
        self.batches = header["batches"]

    def _current(self) -> dict[str, Tensor]:
        """The edited weights as they are now, beside the originals."""
        weights = plain_parameters(self.model)
        return {name: weights[name].detach().to(old.device) for name, old in self._originals.items()}
