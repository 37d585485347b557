"""In-context editing: an edit is a sentence in front of the prompt, and no weight changes.

ICE (Cohen et al. 2024; as IKE, Zheng et al. 2023, without demonstrations) puts all edits there. SCR (selective contextual
reasoning) keeps them in a memory and puts there the nearest ones, if they are near enough by SERAC's scope classifier.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import nn

from common.errors import UserError
from editors.base import Task
from editors.configuration import Bound, Configuration, Count, Natural
from editors.core.modules import input_device, text_config
from editors.core.prompts import fill
from editors.learned.model_kind import ModelKind
from .answerers import MemoryAnswerer, Reading, SeracAnswerer
from .form import Form
from .memory_editors import AnswererOf, MemoryEditor, SERACEditor, SERACHParams
from .routed import RoutedEdit
from .routing import Answerer
from .scope import ScopeClassifier
from .store import EditStore, Entry
from .tokens import window

Sentence = Annotated[str, Bound(lambda text: text.count("{}") == 1, "needs exactly one '{}', where prompt and target stand")]


@dataclass(frozen=True, kw_only=True)
class ICEHParams(Configuration):
    """What stands in front of a prompt, and how much of the window is for edits."""

    sentence: Sentence = "Imagine that {}."
    """An edit's sentence; "{}" is its prompt with its target."""
    room: Natural = 32
    """Tokens of the window that are kept for a prompt and what follows it."""
    beyond_window: Literal["error", "newest"] = "error"
    """What happens to more edits than fit: an error that says how many do, or only the newest that do are read."""


class ICE(MemoryEditor):
    """Every prompt is read behind all edits."""

    name = "ICE"
    hparams_class = ICEHParams

    def _edit(self, task: Task) -> RoutedEdit:
        edit = super()._edit(task)
        fitting = self._fitting(task.model, task.tok, list(edit.memory))
        return RoutedEdit(edit.memory, edit.info | {"in_window": len(fitting)}, self.answerer(task.tok))

    def answerer(self, tok: Any) -> AnswererOf:
        def make(model: nn.Module, memory: EditStore) -> Answerer:
            read = self._fitting(model, tok, list(memory))
            if len(read) < len(memory):
                warnings.warn(f"ICE: only the newest {len(read)} of {len(memory)} edits fit into the model's window, and are "
                              "read", stacklevel=4)
            return _AllAnswerer(memory.copy(), tok, model, "".join(self._texts(read)))

        return make

    def _texts(self, entries: Sequence[Entry]) -> list[str]:
        return [fill(self.hparams.sentence, entry.text) + " " for entry in entries]

    def _fitting(self, model: nn.Module, tok: Any, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Those that are read: all, or the newest. Raises UserError for more than fit, unless the newest shall do."""
        left = longest = window(model, tok) - self.hparams.room
        texts = self._texts(entries)
        fitting = 0
        for row in reversed(tok(texts, verbose=False, add_special_tokens=False).input_ids):
            left -= len(row)
            if left < 0:
                break
            fitting += 1
        if not fitting or fitting < len(entries) and self.hparams.beyond_window == "error":
            raise UserError(f"{self.name}: {fitting} of {len(entries)} edits fit into the {max(longest, 0)} tokens that the "
                            'model reads in front of a prompt: edit fewer at once, set beyond_window to "newest", or use SCR')
        return entries[len(entries) - fitting:]


class _AllAnswerer(Reading, MemoryAnswerer):
    """The model itself, behind the same text for all prompts."""

    measure = "always"

    def __init__(self, memory: EditStore, tok: Any, model: nn.Module, prefix: str):
        MemoryAnswerer.__init__(self, memory, tok)
        self.reads_with(model, tok, text_config(model).vocab_size)
        self._prefix = prefix

    def find(self, prompts: Sequence[Sequence[int]]) -> list[tuple[float, int]]:
        return [(1.0, len(self.memory) - 1)] * len(prompts)

    def is_inside(self, value: float) -> bool:
        return True

    def prefix(self, edit: int) -> str:
        return self._prefix


@dataclass(frozen=True, kw_only=True)
class SCRHParams(SERACHParams):
    """SERAC's keys for its scope classifier, and what stands in front of a prompt in scope."""

    sentence: Sentence = "Imagine that {}."
    """An edit's sentence; "{}" is its prompt with its target."""
    nearest: Count = 1
    """So many edits are read, at most: the nearest, as far as they are near enough."""

    def __post_init__(self):
        super().__post_init__()
        if self.counterfactual is not None:
            raise UserError("counterfactual: SCR asks the model itself, leave it out")


class SCR(SERACEditor):
    """A prompt that the scope classifier puts under edits is read behind the nearest of them, by the model itself."""

    name = "SCR"
    hparams_class = SCRHParams

    def answerer(self, tok: Any) -> AnswererOf:
        (options, _, encoder_tok), form = self._classifier, Form(ModelKind.DECODER)

        def make(model: nn.Module, memory: EditStore) -> Answerer:
            scope = options.scope_classifier(self._beside(model)[0], encoder_tok, form)
            return _NearestAnswerer(memory.to(input_device(model)), scope, options.threshold, model, tok, self.hparams)

        return make


class _NearestAnswerer(SeracAnswerer):
    """Asks the scope classifier which edits a prompt falls under, and the model itself behind them."""

    def __init__(self, memory: EditStore, scope: ScopeClassifier, threshold: float, model: nn.Module, tok: Any,
                 hparams: SCRHParams):
        super().__init__(memory, scope, threshold, model, tok, tok, Form(ModelKind.DECODER), text_config(model).vocab_size)
        self.hparams = hparams
        self._groups: list[tuple[int, ...]] = []
        """Edits that were read together, nearest last, under the numbers that routes go by."""
        self._numbers: dict[tuple[int, ...], int] = {}

    def decide(self, prompts: Sequence[Sequence[int]]) -> list[int | None]:
        if self.hparams.nearest == 1:
            return [None if edit is None else self._number((edit,)) for edit in super().decide(prompts)]
        decisions: list[int | None] = [None] * len(prompts)
        with_text = [number for number, prompt in enumerate(prompts) if self.text(prompt).strip()]
        texts = [self.text(prompts[number]) for number in with_text]
        for number, values in zip(with_text, self.scope.log_similarities(texts, self._entries) if texts else ()):
            log_p, edits = values.topk(min(self.hparams.nearest, len(self._entries)))
            inside = [edit for p, edit in zip(log_p.exp().tolist(), edits.tolist()) if self.is_inside(p)]
            decisions[number] = self._number(tuple(reversed(inside))) if inside else None
        return decisions

    def _number(self, edits: tuple[int, ...]) -> int:
        if edits not in self._numbers:
            self._numbers[edits] = len(self._groups)
            self._groups.append(edits)
        return self._numbers[edits]

    def prefix(self, edit: int) -> str:
        return "".join(fill(self.hparams.sentence, self._entries[place].text) + " " for place in self._groups[edit])
