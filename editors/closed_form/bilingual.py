"""The same facts edited in several languages at once.

Two ways: the sum of an edit for each, made on the same unedited model (`Edit.plus`), or one edit that is sought for all
(MEMAT): one change of the hidden state per fact, added at each language's own subject, and MEMIT's closed form with the means
of the languages' keys and second moments.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import nn

from common.errors import UserError
from editors.base import Task, what_is_said
from editors.changes import check_finite
from editors.core import ranks, solve
from editors.core.batching import check_continues
from editors.core.checks import check_editable
from editors.core.covariance import pin
from editors.core.fingerprint import model_fingerprint
from editors.core.moment import Moment
from editors.core.prompts import Request
from editors.core.modules import evaluating
from editors.core.values import optimise_jointly
from editors.edit import Edit
from .aim import Aim, JointAim, value_site
from .memit import MEMIT
from .prepared import trial
from .spread import distances, share_left, spread
from .statistics import described, factorised, second_moments


def joint_edit(
    languages: Sequence[tuple[MEMIT, Sequence[Mapping | Request]]], model: nn.Module, tok, progress: bool = False
) -> Edit:
    """One edit for all languages; the model is left as it was.

    languages: an editor (its hparams say the language's contexts, KL prompt, looked-up token and corpus; all have the same
    layers; lambda and step size are the first one's) and the facts, in the same order in each. With a fresh residual what is
    missing is measured as the mean over the languages; published is a stale one.
    Raises UserError for different numbers of facts or layers, settings that a joint edit has no use for, and what MEMIT finds
    wrong.
    """
    started = time.perf_counter()
    first = languages[0][0].hparams
    for name in ("rect_share", "edited_key_memory", "prune", "calculate_objective_value"):
        if any(getattr(editor.hparams, name) not in (None, False) for editor, _ in languages):
            raise UserError(f"{name}: a joint edit of several languages does not have it; leave it out, or take the sum of two "
                            "edits")
    if len({tuple(editor.hparams.layers) for editor, _ in languages}) > 1:
        layers = " and ".join(str(editor.hparams.layers) for editor, _ in languages)
        raise UserError(f"layers: {layers}; a joint edit needs the same")
    if len({len(facts) for _, facts in languages}) > 1:
        counts = ", ".join(str(len(facts)) for _, facts in languages)
        raise UserError(f"the languages have {counts} facts; give the same ones in each")
    tasks = [Task.of(model, tok, facts, progress=progress) for _, facts in languages]
    model = tasks[0].model
    check_editable(model)
    check_continues(model, "a joint edit")
    pin(model)
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        prepared = [editor.contexts(task) for (editor, _), task in zip(languages, tasks)]
        decoder, z_layer, weight = prepared[0].decoder, first.layers[-1], first.mom2_update_weight
        moments = [second_moments(decoder, editor.hparams, progress) for editor, _ in languages]
        means = {layer: _mean([by_layer[layer] for by_layer in moments]) for layer in first.layers}
        factors = factorised(means, first, ridge=first.update_norm_lambda / weight)
        statistics = described(means, factors.added)
        for layer, of_layer in statistics.items():
            of_layer["languages"] = [described(by_layer)[layer] for by_layer in moments]
        sites = [value_site(decoder, task.requests, first.layers, editor.hparams.fact_token)
                 for task, (editor, _) in zip(tasks, languages)]
        values = optimise_jointly(
            decoder, [task.requests for task in tasks], z_layer, [editor.hparams for editor, _ in languages],
            [language.templates for language in prepared], sites, progress=progress,
        )
        aims = [Aim.of(language, task.requests, editor.hparams, site, of_language)
                for language, task, (editor, _), site, of_language in zip(prepared, tasks, languages, sites, values)]
        with trial(decoder) as change:
            steps = spread(
                decoder, first.layers, JointAim(aims), lambda layer, keys: solve.memit(factors[layer], weight, keys), change,
                languages[0][0].refreshes, progress,
            )
    left = distances(steps)
    # One process's, where several work: theirs may differ in the last bits, and the models must not.
    changes = ranks.same({decoder.weight(layer).name: step.update.smaller() for layer, step in steps.items()})
    check_finite(changes)
    info = {"editor": languages[0][0].name, "languages": len(languages), "hparams": asdict(first),
            "requests": len(tasks[0].requests), "model": model_fingerprint(model), "statistics": statistics,
            "missing": left, "share_left": share_left(left), "seconds": {"total": time.perf_counter() - started}}
    by_language = [what_is_said(Edit(changes, {}), task) for task in tasks]
    return Edit(changes, info | {name: [of_language[name] for of_language in by_language] for name in by_language[0]})


def _mean(moments: Sequence[Moment]) -> Moment:
    """Of one layer's second moments in several languages, each counting the same."""
    matrix = torch.stack([moment.matrix.double() for moment in moments]).mean(0)
    return Moment(matrix, sum(moment.count for moment in moments), moments[0].layer, {}, None, None)
