"""What every editor has in common."""

from __future__ import annotations

import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from common.errors import UserError
from .changes import Change, check_finite
from .core import ranks
from .core.batching import check_continues
from .core.checks import check_editable, check_finite_weights
from .core.covariance import pin
from .core.fingerprint import model_fingerprint
from .core.key_memory import KeyMemory
from .core.prompts import check_lengths, parse_requests, Request
from .core.recall import not_said, Recall, recall, TargetNotReached
from .core.modules import evaluating, longest_context
from .core.wrappers import plain_parameters, unwrapped
from .edit import Edit
from .hparams import HParams

FAR = 0.2
"""Share of the way to a target state that may be left without a word."""


@dataclass(frozen=True)
class Task:
    """What an editor is asked to do."""

    model: nn.Module
    tok: Any
    requests: list[Request]
    """Checked, at least one."""
    context_templates: Sequence | None = None
    z_cache: str | os.PathLike | None = None
    progress: bool = True
    memory: KeyMemory | None = None
    started: float = field(default_factory=time.perf_counter)
    """When the work on it began, by `time.perf_counter`."""

    @classmethod
    def of(cls, model: nn.Module, tok, requests: Sequence[Mapping | Request], *options, **more) -> Task:
        """From requests as a user gives them, parsed and checked; for the rest see the fields.

        Raises UserError for none, a malformed one, and one that is longer than the model's positions, and for a model whose
        weights are not finite.
        """
        model, started, parsed = unwrapped(model), time.perf_counter(), parse_requests(requests, tok)
        if not parsed:
            raise UserError("no requests: give at least one")
        check_lengths(tok, parsed, ["{}"], longest_context(model))
        _warn_of_contradictions(parsed)
        check_finite_weights(model, type(model).__name__)
        return cls(model, tok, parsed, *options, **more, started=started)


class Editor(ABC):
    """Turns requests into an Edit. A subclass gives `name`, `hparams_class` and `_edit`."""

    name: ClassVar[str]
    hparams_class: ClassVar[type]
    hparams_folder: ClassVar[str | None] = None
    """Folder in hparams/ if not `name`: variants share the files of their editor."""
    needs_cache: ClassVar[bool] = True
    """Whether it continues rows from a cache of keys and values, which recurrent and hybrid decoders don't keep."""

    def __init__(self, hparams: HParams):
        self.hparams = hparams

    def edit(
        self, model: nn.Module, tok, requests: Sequence[Mapping | Request], context_templates: Sequence | None = None,
        z_cache: str | os.PathLike | None = None, progress: bool = True, memory: KeyMemory | None = None,
    ) -> Edit:
        """The edit that makes `model` state every request's new target; the model itself is bit-identical afterwards.

        context_templates: texts with one "{}" each, the bare "{}" first, as a list or as groups (MEMIT averages within a group,
        then over groups); default: sampled from the model with the seed of the hparams. z_cache: folder of target hidden
        states, read and written. Both mean nothing to editors that use neither.
        memory: in a sequence of edits, the same one for all (see sequence.py); call its `commit()` once the edit is applied.
        Raises UserError for requests, hparams or statistics that do not fit; the model is then unchanged too.
        """
        return self._edit(Task.of(model, tok, requests, context_templates, z_cache, progress, memory))

    @abstractmethod
    def _edit(self, task: Task) -> Edit:
        """The edit. Leaves the model as it was."""

    def begin(self, model: nn.Module, tok, context_templates: Sequence | None = None, progress: bool = True) -> dict[str, Any]:
        """Before many edits: take from the unedited model whatever all of them need (contexts, statistics), kept by model.

        Returns what was taken, by name, JSON-ready: with other things the same edits would come out otherwise.
        """
        return {}

    def seek(
        self, model: nn.Module, tok, requests: Sequence[Mapping | Request], z_cache: str | os.PathLike,
        context_templates: Sequence | None = None, progress: bool = True,
    ) -> None:
        """Before edits of some of the requests each, in the model as it is: seek the target states of all together, which
        is faster, and keep them in the folder z_cache, where `edit` finds them. Nothing for editors that seek none."""


class WeightEditor(Editor):
    """An editor whose edits change weights, and which can edit the same model again and again. A subclass gives `changes`."""

    def _edit(self, task: Task) -> Edit:
        check_editable(task.model)
        if self.needs_cache:
            check_continues(task.model, f"an edit by {self.name}")
        with evaluating(task.model), torch.inference_mode(False), torch.enable_grad():
            changes, info = self.changes(task)
        # One process's, where several work: theirs may differ in the last bits, and the models must not.
        changes, info = ranks.same(({name: change.smaller() for name, change in changes.items()}, info))
        check_finite(changes)
        about = {"editor": self.name, "hparams": asdict(self.hparams), "requests": len(task.requests),
                 "model": model_fingerprint(task.model), **info}
        edit = Edit(changes, about | {"seconds": {**info.get("seconds", {}), "total": time.perf_counter() - task.started}})
        if self.tells_what_is_said(task.model):
            edit = Edit(changes, edit.info | what_is_said(edit, task))
        weights = plain_parameters(task.model)
        rounded = {name: change for name, change in changes.items() if name in weights and weights[name].element_size() < 4}
        return Edit(changes, edit.info | {"rounding": Edit(rounded).rounding(task.model)}) if rounded else edit

    def tells_what_is_said(self, model: nn.Module) -> bool:
        """Whether the Edit's info holds, for each request, the edited model's probability of the target ("target_probability")
        and whether it says it ("reached"). A warning (TargetNotReached) names those that it does not."""
        return True

    @abstractmethod
    def changes(self, task: Task) -> tuple[dict[str, Change], dict[str, Any]]:
        """({parameter name: change}, what else the Edit's info should tell). Leaves the model as it was."""

    def begin(self, model: nn.Module, tok, context_templates: Sequence | None = None, progress: bool = True) -> dict[str, Any]:
        """What the editor takes from the unedited model before a sequence's first edit, for the sequence to keep."""
        model = unwrapped(model)
        check_editable(model)
        if self.needs_cache:
            check_continues(model, f"an edit by {self.name}")
        pin(model)
        with evaluating(model):
            return self.prepare(Task(model, tok, [], context_templates, progress=progress))

    def prepare(self, task: Task) -> dict[str, Any]:
        """What `begin` takes, if anything."""
        return {}

    def seek(
        self, model: nn.Module, tok, requests: Sequence[Mapping | Request], z_cache: str | os.PathLike,
        context_templates: Sequence | None = None, progress: bool = True,
    ) -> None:
        model = unwrapped(model)
        check_editable(model)
        task = Task(model, tok, parse_requests(requests, tok), context_templates, z_cache, progress)
        with evaluating(model), torch.inference_mode(False), torch.enable_grad():
            self.targets(task)

    def targets(self, task: Task) -> Any:
        """The target states of all requests, read from the task's z_cache or kept there; None where the editor has none."""

    def at_the_end(self, originals: Mapping[str, Tensor], current: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{parameter name: what its weight shall be} at the end of a sequence, where the editor has something to do there.

        originals, current: the edited weights before the sequence and now.
        """
        return {}


def what_is_said(edit: Edit, task: Task) -> dict[str, list]:
    """For the Edit's info, what of the targets the edited model says. Warns of those that it does not say, and of states that
    were left far from their targets."""
    def measured() -> Recall:
        with edit.applied(task.model):
            return recall(task.model, task.tok, task.requests)

    recalled = ranks.from_first(measured)
    lines = [not_said(task.requests, recalled)]
    far = [i for i, share in enumerate(edit.info.get("share_left", [])) if share > FAR]
    if far:
        named = ", ".join(f"{task.requests[i].text!r} ({edit.info['share_left'][i]:.2f})" for i in far[:3])
        more = ", ..." if len(far) > 3 else ""
        lines.append(f"{len(far)} of {len(task.requests)} states stayed further than {FAR} of the way from their targets: "
                     f"{named}{more}")
    for line in filter(None, lines):
        warnings.warn(line, TargetNotReached, stacklevel=4)
    return {"target_probability": recalled.probability, "reached": recalled.said}


def _warn_of_contradictions(requests: Sequence[Request]) -> None:
    """Of requests that continue the same text by different targets, of which an edit can hold one at the most."""
    first_of: dict[str, int] = {}
    pairs = [(first_of.setdefault(request.text, i), i) for i, request in enumerate(requests)]
    pairs = [(first, i) for first, i in pairs if requests[first].target_new != requests[i].target_new]
    if pairs:
        first, i = pairs[0]
        more = f" ({len(pairs)} such requests in all)" if len(pairs) > 1 else ""
        warnings.warn(f"requests {first} and {i} continue {requests[i].text!r} by {requests[first].target_new!r} and by "
                      f"{requests[i].target_new!r}: the model can say one at the most{more}", stacklevel=4)
