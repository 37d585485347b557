"""Result folders of the unified-editing code (Gupta et al. 2024) and of AlphaEdit's, in the form that this toolkit writes.

The unified-editing code names a case's file ``<num_edits>_<batch>_edits-case_<id>.json``, stores what it measured before the
edit under "post" and what it measured after it beside that, with "post_" before the names. Its ``*_prompts_correct`` is, but
for zsRE, whether the target occurs anywhere in a greedily generated text; its "probs" are mean negative log-probabilities.
AlphaEdit's code writes MEMIT's files, but measures every case after the last batch. Both put what they measure of the whole
model into ``glue_eval``.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.downstream import TASKS
from experiments.results import run_folder
from experiments.results.names import GENERATION, GROUPS

GLUE = "glue_eval"
RENAMED_TASKS = {"mmmlu": "mmlu"}
_CASE = re.compile(r"\d+_(\d+)_edits-case_\d+\.json")
_BATCH_GLUE = re.compile(r"\d+_case_\d+_glue\.json")


def batch_of(path: Path) -> int | None:
    """The batch, from 0, that a case file of the unified-editing code is of; None for another program's file."""
    match = _CASE.fullmatch(path.name)
    return int(match[1]) if match else None


def read_case(path: Path) -> dict[str, Any]:
    """The content of a case file, whoever wrote it, in this toolkit's form."""
    case = run_folder.read_json(path)
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
    """What the case's file stores with this prefix, under this toolkit's names."""
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


def of_another_batch(case_id: int, case: Mapping[str, Any]) -> bool:
    """Whether a case's batch is one that it was not in. AlphaEdit's code gives every case the last batch's ids, which tells its
    folders from MEMIT's, except where there was only one batch."""
    return case_id not in case.get("grouped_case_ids", [case_id])


def flags(run: Path) -> dict[str, Any]:
    """Editor, model, data set, batch size and ``sequential`` of a run of the unified-editing code; {} for another's."""
    if (run / run_folder.RUN).exists() or not (run / run_folder.PARAMS).is_file():
        return {}
    params = run_folder.read_json(run / run_folder.PARAMS)
    names = {"alg_name": "algo_name", "model_name": "model_name", "ds_name": "dataset", "num_edits": "n_edits",
             "sequential": "sequential"}
    return {ours: params[theirs] for ours, theirs in names.items()} if set(names.values()) <= params.keys() else {}


def read_batches(run: Path) -> list[dict[str, Any]]:
    """What ``glue_eval`` holds of the model, as ``batches/<edits>.json`` of this toolkit would: 0 edits first.

    ``weights`` has layer numbers for names. UserError for a damaged file.
    """
    contents = {path: run_folder.read_json(path) for path in sorted((run / GLUE).glob("*_glue.json"))}
    try:
        size = max((len(content.get("case_id", ())) for content in contents.values()), default=0)
        batches = [_batch(path, content, size) for path, content in contents.items()]
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{run / GLUE}: a *_glue.json file there is not of the published form ({error!r})") from error
    return sorted(batches, key=lambda batch: batch["edits"])


def _batch(path: Path, content: Mapping[str, Any], size: int) -> dict[str, Any]:
    """size: edits of a whole batch."""
    if path.name == "base_glue.json":
        place = {"batch": 0, "edits": 0}
    elif _BATCH_GLUE.fullmatch(path.name):
        number, ids = content["edit_num"], content["case_id"]
        place = {"batch": number + 1, "edits": number * size + len(ids), "case_ids": ids}
    else:  # AlphaEdit's, which counts edits
        place = {"edits": content["edit_num"]}
    return {**place, **_weights(content), **_downstream(content)}


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
