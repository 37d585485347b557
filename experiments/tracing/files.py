"""The files of a causal trace: ``cases/knowledge_<id>[_mlp|_attn].npz`` as published, and ``averages.json``."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from data.files import write_atomically
from experiments.results import run_folder
from editors.core.tracing.averages import FactScores
from editors.core.tracing.scores import KINDS, Traced

AVERAGES, CASES = "averages.json", "cases"
NUMBER = (int, float)
FORM = {
    "of": int, "facts": int, "high": NUMBER, "low": NUMBER, "classes": list, "proposal": {"peak": int, "range": list},
    "total_effect": {"mean": NUMBER, "band": (*NUMBER, type(None))},
    "indirect_effect": {kind: {"mean": list, "band": list} for kind in KINDS},
    "settings": {"model": str, "dtype": str, "window": int, "noise_level": str},
}
"""What readers need of averages.json, see :func:`experiments.results.run_folder.has_form`."""
DIMENSIONS = {"scores": 2, "subject_range": 1, "input_tokens": 1, "low_score": 0, "high_score": 0, "answer": 0, "window": 0}
"""Of what readers need of a known fact's arrays."""


def known_facts(
    folder: Path, numbers: Sequence[int], kinds: Sequence[str] = tuple(KINDS), layers: int | None = None
) -> list[FactScores]:
    """The scores of those of these facts that the model, of so many layers, knows. Raises UserError for a damaged file."""
    facts = []
    for number in numbers:
        files = {kind: read_case(path, layers) for kind, path in case_paths(folder, number, kinds).items()}
        if all(case["correct_prediction"] for case in files.values()):
            case = files["state"]
            subject = (int(case["subject_range"][0]), int(case["subject_range"][1]))
            facts.append(FactScores(subject, float(case["high_score"]), float(case["low_score"]),
                                    {kind: case["scores"] for kind, case in files.items()}))
    return facts


def read_case(path: Path, layers: int | None = None) -> dict[str, np.ndarray]:
    """The arrays of one traced fact and kind. Raises UserError if the file is missing or damaged. layers: of the model."""
    try:
        with np.load(path, allow_pickle=False) as file:
            case = dict(file)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not readable ({type(error).__name__}); delete it and run again") from None
    if not _is_case(case, layers):
        raise UserError(f"{path}: not of a traced fact's form; delete it and run again")
    return case


def _is_case(case: Mapping[str, np.ndarray], layers: int | None) -> bool:
    def has(dimensions: Mapping[str, int]) -> bool:
        return all(name in case and case[name].ndim == count for name, count in dimensions.items())

    if not has({"correct_prediction": 0}):
        return False
    if not case["correct_prediction"]:  # then there is no more
        return True
    if not has(DIMENSIONS):
        return False
    tokens, blocks = case["scores"].shape
    start, end = case["subject_range"] if len(case["subject_range"]) == 2 else (0, 0)
    return tokens == len(case["input_tokens"]) and blocks == (layers or blocks) and 0 <= start < end <= tokens


def case_path(folder: Path, known_id: int, kind: str) -> Path:
    """As published: states have no suffix."""
    return folder / CASES / f"knowledge_{known_id}{'' if kind == 'state' else '_' + kind}.npz"


def case_paths(folder: Path, known_id: int, kinds: Sequence[str]) -> dict[str, Path]:
    """{kind: the file of a fact}"""
    return {kind: case_path(folder, known_id, kind) for kind in kinds}


def write_case(folder: Path, tok, traced: Traced, window: int, kinds: Sequence[str]) -> None:
    """The files of one fact."""
    prompt = traced.prompt
    for kind, path in case_paths(folder, prompt.fact.known_id, kinds).items():
        arrays: dict[str, Any] = {"correct_prediction": np.bool_(traced.correct)}
        if traced.correct:
            arrays |= {
                "scores": traced.scores[kind].astype(np.float32), "low_score": np.float32(traced.low),
                "high_score": np.float32(traced.high), "input_ids": np.array(prompt.ids),
                "input_tokens": np.array([tok.decode([i]) for i in prompt.ids]),
                "subject_range": np.array([prompt.start, prompt.end]), "answer": np.str_(tok.decode([traced.answer])),
                "window": np.int64(window), "kind": np.str_("" if kind == "state" else kind)}
        write_atomically(path, lambda file, arrays=arrays: np.savez(file, **arrays))


def read_averages(folder: Path) -> dict[str, Any]:
    """The content of a trace's averages.json. Raises UserError if it is missing, unfinished or not of this program."""
    path = folder / AVERAGES
    if not path.is_file():
        raise UserError(f"{folder}: has no {AVERAGES}; finish the trace with experiments.causal_trace")
    average = run_folder.read_json(path)
    if not run_folder.has_form(average, FORM):
        raise UserError(f"{path}: was not written by experiments.causal_trace, or is damaged; delete it and trace again")
    return average
