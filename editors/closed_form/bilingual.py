"""The same facts edited in several languages at once.

Two ways: the sum of an edit for each, made on the same unedited model (`Edit.plus`), or one edit that is sought for all (MEMAT):
one change of the hidden state per fact, added at each language's own subject, and MEMIT's closed form with the means of
the languages' keys and second moments.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.errors import UserError
from editors.base import checked_requests, Task
from editors.changes import check_finite
from editors.core import ranks, solve
from editors.core.covariance import pin
from editors.core.fingerprint import model_fingerprint
from editors.core.keys import compute_hidden, compute_keys
from editors.core.moment_store import Moment
from editors.core.prompts import Request
from editors.core.sites import evaluating, weight_of
from editors.core.values import optimise_jointly
from editors.edit import Edit
from .memit import MEMIT
from .spread import spread
from .statistics import covariance_factors, second_moments, trial


def joint_edit(
    languages: Sequence[tuple[MEMIT, Sequence[Mapping | Request]]], model: nn.Module, tok, progress: bool = False
) -> Edit:
    """One edit for all languages; the model is left as it was.

    languages: an editor (its hparams say the language's contexts, KL prompt, looked-up token and corpus; all have the same layers;
    lambda and step size are the first one's) and the facts, in the same order in each. With a fresh residual what is missing is
    measured as the mean over the languages; published is a stale one.
    Raises UserError for different numbers of facts or layers, settings that a joint edit has no use for, and what MEMIT finds wrong.
    """
    started = time.perf_counter()
    first = languages[0][0].hparams
    for name in ("rect_share", "edited_key_memory", "prune", "calculate_objective_value"):
        if any(getattr(editor.hparams, name) not in (None, False) for editor, _ in languages):
            raise UserError(f"{name}: a joint edit of several languages does not have it; leave it out, or take the sum of two edits")
    if len({tuple(editor.hparams.layers) for editor, _ in languages}) > 1:
        raise UserError(f"layers: {' and '.join(str(editor.hparams.layers) for editor, _ in languages)}; a joint edit needs the same")
    if len({len(facts) for _, facts in languages}) > 1:
        counts = ", ".join(str(len(facts)) for _, facts in languages)
        raise UserError(f"the languages have {counts} facts; give the same ones in each")
    tasks = [Task(model, tok, checked_requests(model, tok, facts), progress=progress) for _, facts in languages]
    pin(model)
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        prepared = [editor.contexts(task) for (editor, _), task in zip(languages, tasks)]
        sites, z_layer, weight = prepared[0].sites, first.layers[-1], first.mom2_update_weight
        told: list[dict[str, Any]] = [{} for _ in languages]
        moments = [second_moments(task, editor.hparams, sites, own) for (editor, _), task, own in zip(languages, tasks, told)]
        info: dict[str, Any] = {"statistics": {str(layer): {} for layer in first.layers}}
        means = {layer: _mean([of[layer] for of in moments]) for layer in first.layers}
        factors = covariance_factors(means, first, info, ridge=first.update_norm_lambda / weight)
        for layer, of_layer in info["statistics"].items():
            of_layer["languages"] = [own["statistics"][layer] for own in told]
        values = optimise_jointly(
            model, tok, [task.requests for task in tasks], z_layer, [editor.hparams for editor, _ in languages], sites,
            [one.templates for one in prepared], "block", progress=progress,
        )

        def keys(layer: int) -> Float[Tensor, "n d_in"]:
            found = [compute_keys(model, tok, task.requests, [layer], one.groups, sites, editor.hparams.fact_token)[layer]
                     for task, one, (editor, _) in zip(tasks, prepared, languages)]
            return torch.stack(found).mean(0)

        def missing() -> Float[Tensor, "n d_model"]:
            left = [of.target.to(now) - now for task, of, (editor, _) in zip(tasks, values, languages)
                    for now in [compute_hidden(model, tok, task.requests, z_layer, sites, editor.hparams.fact_token)]]
            return torch.stack(left).mean(0)

        with trial(model, sites) as change:
            steps = spread(
                model, sites, first.layers, keys, missing, lambda layer, k: solve.memit(factors[layer], weight, k),
                change if languages[0][0].refreshes else None, progress,
            )
    # One process's, where several work: theirs may differ in the last bits, and the models must not.
    changes = ranks.same({weight_of(model, sites, layer)[0]: step.update.smaller() for layer, step in steps.items()})
    check_finite(changes)
    about = {"editor": languages[0][0].name, "languages": len(languages), "hparams": asdict(first), "requests": len(tasks[0].requests),
             "model": model_fingerprint(model), **info, "seconds": {"total": time.perf_counter() - started}}
    return Edit(changes, about)


def _mean(moments: Sequence[Moment]) -> Moment:
    """Of one layer's second moments in several languages, each counting the same."""
    matrix = torch.stack([moment.matrix.double() for moment in moments]).mean(0)
    return Moment(matrix, sum(moment.count for moment in moments), moments[0].layer, {}, None, None)
