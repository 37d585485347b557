"""Models over several devices (accelerate's hooks, here with one), and weights in 16 bits."""

import copy
import json

import accelerate
import pytest
import torch

from experiments import evaluate, export
from experiments.bench.kill import content
from experiments.results import summary
from experiments.results.runs import read_run
from tests.conftest import load_tiny


def dispatched():
    """The tiny golden GPT-2 as a device map leaves it: hooks that move each module's inputs."""
    model, tok = load_tiny("tiny-gpt2")
    places = dict.fromkeys(["lm_head", *(f"transformer.{name}" for name in ("wte", "wpe", "drop", "ln_f"))], "cpu")
    places |= {f"transformer.h.{i}": "cpu" for i in range(6)}
    return accelerate.dispatch_model(model, device_map=places, main_device="cpu", force_hooks=True), tok


def test_a_dispatched_model_is_edited_and_measured_alike(run):
    flags = {"num_edits": 2, "dataset_size_limit": 2}
    plain, hooked = (run("MEMIT", dir_name=name, model_name=model, **flags) for name, model in
                     (("plain", load_tiny("tiny-gpt2")), ("hooked", dispatched())))
    assert content(plain) == content(hooked)


@pytest.mark.parametrize("program", [evaluate.command_line, export.command_line])
def test_the_flag(program, capsys):
    required = {"--alg_name": "FT"} if program is evaluate.command_line else {"edit": "x", "--out": "y"}
    argv = [word for key, value in required.items() for word in ((key, value) if key.startswith("-") else (value,))]
    assert program().parse_args([*argv, "--device_map", "auto"]).device == "map"
    assert program().parse_args(argv).device == "auto" and program().parse_args([*argv, "--device", "cpu"]).device == "cpu"
    with pytest.raises(SystemExit) as caught:
        program().parse_args([*argv, "--device_map", "balanced"])
    assert caught.value.code == 2 and "'balanced' should be auto" in capsys.readouterr().err


@pytest.mark.parametrize("sequential", [False, True])
def test_what_16_bits_take_is_in_the_results(run, tiny_gpt2, sequential):
    half = copy.deepcopy(tiny_gpt2[0]).to(torch.bfloat16), tiny_gpt2[1]
    flags = {"num_edits": 2, "dataset_size_limit": 2, "sequential": sequential}
    folder = run("FT", model_name=half, **flags)
    cases = [json.loads(path.read_text()) for path in folder.glob("*case*.json")]
    assert len({case["rounding"] for case in cases}) == 1 and 1e-3 < cases[0]["rounding"] < 1
    about, lists = read_run(folder)
    table = summary.comparison([summary.statistics(lists)])
    row, = [row for row in table.texts() if row[0] == "change lost to rounding (16 bits)"]
    assert row[-1] == f"{100 * cases[0]['rounding']:.1f} ± 0.0"
    if sequential:
        assert max(json.loads((folder / "batches" / "000002.json").read_text())["rounding"].values()) == cases[0]["rounding"]
        return
    full = run("FT", dir_name="full", **flags)
    assert all("rounding" not in json.loads(path.read_text()) for path in full.glob("*case*.json"))
    assert "rounding" not in read_run(full)[1]
