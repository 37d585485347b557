"""Evaluations on the tiny golden GPT-2, with the golden corpus for statistics."""

import json
from pathlib import Path

import pytest

from experiments import evaluate


@pytest.fixture
def hparams(golden, tmp_path):
    """Writes an editor's hparams file of the golden runs (with changes); returns its path."""
    def write(alg_name: str, **changes) -> Path:
        values = json.loads((golden / "results_example" / alg_name / "run_000" / "params.json").read_text())
        if "mom2_dataset" in values:
            values["mom2_dataset"] = str(golden / "corpus.jsonl")
        path = tmp_path / f"{alg_name}{''.join(f'-{key}-{value}' for key, value in changes.items())}.json"
        path.write_text(json.dumps({**values, **changes}))
        return path
    return write


@pytest.fixture
def run(golden, tmp_path, tiny_gpt2, hparams):
    """Evaluates an editor on the golden records and model, without generation tests unless asked; returns the run's folder."""
    def start(alg_name: str = "FT", **flags) -> Path:
        flags = {"model_name": tiny_gpt2, "ds_name": str(golden / "multi_counterfact.json"), "skip_generation_tests": True,
                 "results_dir": tmp_path / "results", **flags}
        return evaluate.main(alg_name, hparams_fname=flags.pop("hparams_fname", None) or hparams(alg_name), **flags)
    return start
