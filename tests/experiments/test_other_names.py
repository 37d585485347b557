"""Programs, files and flags under the names that other repositories have for them."""

import runpy
import sys

import pytest

from experiments import evaluate
from experiments.run.config import command_line, RunConfig
from experiments.run.hparams_file import has_file, load_editor
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules")


@pytest.fixture
def started(monkeypatch):
    """Starts a program that evaluates; returns its configuration."""
    seen = []
    monkeypatch.setattr(evaluate, "main", seen.append)

    def start(run, name, *flags):
        monkeypatch.setattr(sys, "argv", [str(name), "--alg_name=EMMET", *flags])
        monkeypatch.setattr(sys, "path", [str(ROOT / "experiments"), *sys.path])
        run(str(name), run_name="__main__")
        return seen[0]
    return start


def test_programs(started):
    assert started(runpy.run_module, "experiments.experiments_all_in_one").sample_num is None


@pytest.mark.parametrize("flags, number", [((), 0), (("--sample_num=3",), 3)])
def test_the_unified_program_has_its_order(started, flags, number):
    assert started(runpy.run_path, ROOT / "experiments/evaluate_unified_editing.py", *flags).sample_num == number


@pytest.mark.filterwarnings("ignore:.*without effect")
@pytest.mark.parametrize("editor, name, ours", [
    ("MEMIT", "aguila.json", "Aguila-7b.json"), ("EMMET", "llama2-7b.json", "Llama-2-7B.json"),
    ("AlphaEdit", "Llama3-8B.json", "Llama-3-8B.json"), ("MEMIT", "gpt2-xl.json", "gpt2-xl.json"),
])
def test_hyper_parameters(editor, name, ours):
    config = RunConfig(alg_name=editor, hparams_fname=name)
    assert has_file(config)
    assert load_editor(config)[0] == load_editor(RunConfig(alg_name=editor, hparams_fname=ours))[0]
    assert not has_file(RunConfig(alg_name=editor, hparams_fname="gpt3.json"))


@pytest.mark.parametrize("word, said", [
    ("head_ind=heads.npy", "unrecognized arguments: head_ind=heads.npy; did you mean --head_ind? (see"),
    ("nonsense=1", "unrecognized arguments: nonsense=1 (see"),
])
def test_flags_without_their_dashes(word, said, capsys):
    with pytest.raises(SystemExit) as caught:
        command_line().parse_args(["--alg_name", "MEMAT", word])
    assert caught.value.code == 2 and said in capsys.readouterr().err
