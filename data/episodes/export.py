"""Writes the built-in world's rows in the published formats, so that every reader of those can be tried without them."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.episodes import world as invented
from data.episodes.claims import LABELS
from data.episodes.options import DataOptions
from data.episodes.types import SPLITS
from data.files import json_lines, write_json, write_text

_DEV = {"train": "train", "validation": "dev", "test": "test"}


def world(experiment: str, folder: Path, facts: int | None = None) -> list[tuple[Path, int]]:
    """Writes the files of all splits, under their published names; returns (path, number of rows) of each. Raises UserError.

    Of ``gen`` the published form holds whole texts and one length of target for all, so there is none of the world.
    """
    written = []
    for split in SPLITS:
        rows = invented.rows(experiment, split, DataOptions(facts=facts))
        written += [(path, len(rows)) for path in _WRITE[experiment](folder, split, rows)]
    return written


def _qa(folder: Path, split: str, rows: Sequence[Any]) -> list[Path]:
    split = _DEV[split]
    paths = [folder / f"structured_zeroshot-{split}-new_annotated_final.jsonl", folder / f"impl_{split}.json",
             folder / f"zsre_yn_{split}.txt"]
    write_text(paths[0], json_lines(
        {"input": row.question, "output": [{"answer": row.answer}], "prediction": row.prediction,
         "alternatives": list(row.alternatives), "filtered_rephrases": list(row.rephrases), "subject": row.subject}
        for row in rows))
    write_json(paths[1], [[[*pair, ""] for pair in row.implied] for row in rows])
    write_text(paths[2], "".join(f"{row.yes_no}\n" for row in rows))
    return paths


def _fc(folder: Path, split: str, rows: Sequence[Any]) -> list[Path]:
    path = folder / f"fever-{_DEV[split]}-kilt.jsonl"
    write_text(path, json_lines(
        {"input": row.claim, "output": [{"answer": row.answer}], "prediction": row.prediction, "logit": 0.0,
         "alternatives": [row.alternative], "filtered_rephrases": list(row.rephrases)} for row in rows))
    return [path]


def _fnli(folder: Path, split: str, rows: Sequence[Any]) -> list[Path]:
    path, names = folder / f"{_DEV[split]}.jsonl", {label: name for name, label in LABELS.items()}
    write_text(path, json_lines(
        {"claim": row.claim, "evidence": row.evidence, "label": names[row.label], "page": row.page, "revision_type": "real"}
        for row in rows))
    return [path]


def _sent(folder: Path, split: str, rows: Sequence[Any]) -> list[Path]:
    path = folder / f"blender_{'val' if split == 'validation' else split}.json"
    write_json(path, [{"ent": row.entity, "pos": list(row.positive), "neg": list(row.negative)} for row in rows])
    return [path]


_WRITE = {"qa": _qa, "fc": _fc, "fnli": _fnli, "sent": _sent}
EXPERIMENTS = tuple(_WRITE)
