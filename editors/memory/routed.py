"""An edit that changes no weight: a memory of edits, and who answers the prompts in their scope."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from common.errors import UserError
from editors.core.modules import text_config
from editors.edit import Edit
from editors.registry import editor_class
from . import routing
from .store import EditStore


class RoutedEdit(Edit):
    """What SERAC and LU return: an edit without changes of weights, so its `deltas` are none.

    The memory can be changed afterwards: what is applied next answers by it.
    """

    def __init__(self, memory: EditStore, info: Mapping[str, Any],
                 answerer: Callable[[nn.Module, EditStore], routing.Answerer]):
        """answerer: makes who answers for a model by a memory."""
        super().__init__({}, MappingProxyType(dict(info)))
        for name, value in (("memory", memory), ("_answerer", answerer), ("_applied", {})):
            object.__setattr__(self, name, value)

    def apply(self, model: nn.Module, originals_device: torch.device | str | None = None) -> None:
        """Prompts in the scope of an edit are answered by it from now on. Nothing of the model is changed or copied.

        Raises UserError for an empty memory, a model of another vocabulary, or if the edit is in the model already.
        """
        if not len(self.memory):
            raise UserError("the memory is empty: there is no edit to apply")
        if id(model) in self._applied:
            raise UserError("this edit is already applied to the model: revert it first")
        vocabulary = text_config(model).vocab_size
        if self.info.get("vocabulary", vocabulary) != vocabulary:
            raise UserError(f"the edit was made for a model of {self.info['vocabulary']:,} tokens, this one has {vocabulary:,}")
        answerer = self._answerer(model, self.memory)
        routing.push(model, answerer)
        self._applied[id(model)] = answerer

    def answering(self, model: nn.Module) -> routing.Answerer:
        """Who answers for a model that the edit is applied to."""
        return self._applied[id(model)]

    def revert(self, model: nn.Module) -> None:
        """The model answers by itself again, or by other edits that are applied to it."""
        if id(model) not in self._applied:
            raise UserError("this edit is not applied to the model: nothing to revert")
        routing.remove(model, self._applied.pop(id(model)))

    def keep(self, model: nn.Module) -> None:
        raise UserError(f"an edit of {self.info['editor']} is in no weight, so it can't be made permanent; save it instead")

    def save(self, path: str | os.PathLike) -> None:
        """The memory's file (see `EditStore.save`), which also tells the editor and where its networks are."""
        self.memory.save(Path(path), {"info": dict(self.info)})

    @staticmethod
    def load(path: str | os.PathLike) -> RoutedEdit:
        """Read what `save` wrote; networks are loaded when it is applied. Raises UserError for another file."""
        memory, about = EditStore.load(Path(path))
        info = about.get("info", {})
        if "editor" not in info:
            raise UserError(f"{path}: a memory that no editor wrote: it does not tell which networks go with it")
        kind = editor_class(info["editor"])
        editor = kind(kind.hparams_class.of(info["hparams"]))
        return RoutedEdit(memory, info, editor.answerer_of(info))
