"""Fixtures: outputs of the published implementations (golden), tiny models, samples of real data."""

import functools
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
# The complete collection, where a checkout has it beside it; else the part that is committed.
GOLDEN = next(p for p in (ROOT.parent / "shared" / "golden", ROOT / "tests" / "golden") if p.is_dir())
REALDATA = ROOT.parent / "shared" / "realdata"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)  # also while module fixtures run


def golden_models(kind: str) -> list[str]:
    """Names ("tiny-gpt2", "tiny-gptj_f64", ...) that the collection at hand has arrays of this kind for."""
    return sorted(path.stem.removeprefix(f"{kind}_") for path in GOLDEN.glob(f"{kind}_tiny-gpt*.npz"))


@pytest.fixture(scope="session")
def golden_model():
    """Function of such a name that gives (model, tok), each loaded once."""

    @functools.cache
    def load(name: str):
        return load_tiny(name.removesuffix("_f64"), torch.float64 if name.endswith("_f64") else torch.float32)

    return load


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the published implementations' outputs (see tests/golden/README.md)."""
    return GOLDEN


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Samples of the real data sets; skipped where they are not beside the checkout."""
    if not REALDATA.is_dir():
        pytest.skip("samples of the real data sets are not beside this checkout (../shared/realdata)")
    return REALDATA


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny models: a second thread only waits. And programs that a test runs set their own number, and so the last digits."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    """A program that finds what torchrun sets waits for the other processes."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _signals():
    """A program that a test runs to its end may leave SIGTERM ignored, which every later child would inherit."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def _private_folders(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's own data and statistics."""
    monkeypatch.setenv("KE_DATA_DIR", str(tmp_path_factory.getbasetemp() / "data"))
    monkeypatch.delenv("KE_STATS_DIR", raising=False)


def load_tiny(name: str, dtype: torch.dtype = torch.float32):
    """(model, tok) of a golden model, with eager attention as in the golden runs."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = GOLDEN / name
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32).to(dtype).eval()
    return model, AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="session")
def tiny_gpt2():
    return load_tiny("tiny-gpt2")


@pytest.fixture(scope="session")
def tiny_gptj():
    return load_tiny("tiny-gptj")


def relative(ours, theirs) -> float:
    """|ours - theirs| / |theirs| over the whole array."""
    ours, theirs = (np.asarray(x, dtype=np.float64) for x in (ours, theirs))
    assert ours.shape == theirs.shape, f"shape {ours.shape}, expected {theirs.shape}"
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-300))


OCCITAN = '''
from data import counterfact
from data.languages import LanguageSpec

SPEC = LanguageSpec("occitan", "oc", "oci", ("Lo", "Per aquò"), "{} es un", counterfact.parse, {"wikipedia": "owner/oc"})
'''


@pytest.fixture
def occitan(tmp_path, monkeypatch):
    """A third language, added by one file."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "occitan.py").write_text(OCCITAN)
    from data import languages

    monkeypatch.setattr(languages, "__path__", [*languages.__path__, str(tmp_path / "more")])
