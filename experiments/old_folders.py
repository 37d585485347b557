"""Result folders of the unified-editing code (Gupta et al. 2024) and of AlphaEdit's, in the form that this toolkit writes.

The unified-editing code names a case's file ``<num_edits>_<batch>_edits-case_<id>.json``, stores what it measured before the edit
under "post" and what it measured after it beside that, with "post_" before the names. Its ``*_prompts_correct`` is, but for
zsRE, whether the target occurs anywhere in a greedily generated text; its "probs" are mean negative log-probabilities.
AlphaEdit's code writes MEMIT's files, but measures every case after the last batch. Both put what they measure of the whole
model into ``glue_eval``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.downstream import TASKS
from editors.errors import EditingError
from experiments import results
from experiments.metrics.summary import GENERATION, GROUPS

GLUE = "glue_eval"
RENAMED_TASKS = {"mmmlu": "mmlu"}
_CASE = re.compile(r"\d+_(\d+)_edits-case_\d+\.json")
_GLUE_CASE = re.compile(r"(\d+_)?case_\d+_glue\.json")


def batch_of(path: Path) -> int | None:
    """The batch, from 0, that a case file of the unified-editing code is of; None for another program's file."""
    match = _CASE.fullmatch(path.name)
    return int(match[1]) if match else None


def read_case(path: Path) -> dict[str, Any]:
    """The content of a case file, whoever wrote it, in this toolkit's form."""
    case = results.read_json(path)
    return case if batch_of(path) is None else convert_case(case)


def convert_case(case: Mapping[str, Any]) -> dict[str, Any]:
    """A case of the unified-editing code with ``pre``, ``post`` and ``time`` in seconds.

    Not in its files, so not here: after the edit, teacher-forced correctness (but for zsRE) and the reference score.
    A case that the code was stopped at has an empty ``post``.
    """
    stored = case["post"]
    converted = {key: value for key, value in case.items() if key not in ("post", "time")}
    converted |= {"pre": _metrics(stored, ""), "post": _metrics(stored, "post_")}
    if "time" in case:
        (converted["time"],) = case["time"]
    return converted


def _metrics(stored: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    metrics = {name: stored[prefix + name] for name in GENERATION if prefix + name in stored}
    for group in GROUPS:
        probs, flags = stored.get(f"{group}_prompts_probs"), f"{group}_prompts_correct"
        if not probs:
            if prefix + flags in stored:
                metrics[flags] = stored[prefix + flags]
            continue
        if f"{prefix}target_new_prob" not in probs[0]:
            continue
        metrics[f"{group}_prompts_probs"] = [
            {target: entry[f"{prefix}{target}_prob"] for target in ("target_new", "target_true")} for entry in probs]
        metrics[f"{group}_prompts_generated_contains"] = [entry[f"{prefix}sliding_correct"] for entry in probs]
        if f"{prefix}correct" in probs[0]:
            metrics[flags] = [entry[f"{prefix}correct"] for entry in probs]
    return metrics


def measured_at_the_end(cases: Mapping[int, Mapping[str, Any]]) -> bool:
    """Whether these cases, by id, were all measured after the last batch, as AlphaEdit's code does: it gives every case the last
    batch's ids."""
    return any("grouped_case_ids" in case and case_id not in case["grouped_case_ids"] for case_id, case in cases.items())


def flags(run: Path) -> dict[str, Any]:
    """Editor, model, data set, batch size and ``sequential`` of a run of the unified-editing code; {} for another's."""
    if (run / results.RUN).exists() or not (run / results.PARAMS).is_file():
        return {}
    params = results.read_json(run / results.PARAMS)
    names = {"alg_name": "algo_name", "model_name": "model_name", "ds_name": "dataset", "num_edits": "n_edits",
             "sequential": "sequential"}
    return {ours: params[theirs] for ours, theirs in names.items()} if set(names.values()) <= params.keys() else {}


def read_batches(run: Path) -> list[dict[str, Any]]:
    """What ``glue_eval`` holds of the model, as ``batches/<edits>.json`` (:mod:`experiments.sequential`) would: 0 edits first.

    ``weights`` has layer numbers for names. EditingError for a damaged file.
    """
    folder = run / GLUE
    found = [(path, _GLUE_CASE.fullmatch(path.name)) for path in sorted(folder.glob("*_glue.json"))]
    contents = [(path, match[1], results.read_json(path)) for path, match in found if match]
    size = max((len(content.get("case_id", ())) for _, _, content in contents), default=0)
    batches = []
    if (folder / "base_glue.json").is_file():
        batches.append({"batch": 0, "edits": 0, **_downstream(results.read_json(folder / "base_glue.json"))})
    for path, batch, content in contents:
        try:
            if batch is None:  # AlphaEdit's
                place = {"edits": content["edit_num"]}
            else:
                number, ids = content["edit_num"], content["case_id"]
                place = {"batch": number + 1, "edits": number * size + len(ids), "case_ids": ids}
            batches.append({**place, **_weights(content), **_downstream(content)})
        except (AttributeError, KeyError, TypeError) as error:
            raise EditingError(f"{path}: not of the form of the unified-editing code's figures ({error!r})") from error
    return sorted(batches, key=lambda batch: batch["edits"])


def _weights(content: Mapping[str, Any]) -> dict[str, Any]:
    weights: dict[str, dict[str, float]] = {}
    for layer, distance in (content.get("distance_from_original") or {}).items():
        weights[layer] = {"distance_from_original": distance}
    for layer, objective in (content.get("objective_distances") or {}).items():
        weights.setdefault(layer, {})["norm"] = objective["new_weights_norm"]
    return {"weights": weights} if weights else {}


def _downstream(content: Mapping[str, Any]) -> dict[str, Any]:
    """{"downstream": {task: its figures}}, with accuracies, which the files lack; {} where no task was measured."""
    figures = {}
    for name, stored in content.items():
        task = RENAMED_TASKS.get(name, name)
        if task in TASKS:
            total = stored["total"]
            figures[task] = {**stored, "accuracy": stored["correct"] / total, "invalid_rate": stored["invalid"] / total}
            if "correct_new" in stored:
                figures[task]["accuracy_new"] = stored["correct_new"] / total
    return {"downstream": figures} if figures else {}
