"""README's Python example, run as it stands."""

import pytest

from tests.conftest import ROOT
from tests.docs.pages import blocks


@pytest.mark.slow
def test_the_example_of_the_readme(elsewhere, capsys):
    (example,) = blocks(ROOT / "README.md", "python")
    exec(compile(example, "README.md", "exec"), {})
    assert "always plays the drum" in capsys.readouterr().out
    assert (elsewhere / "drum.safetensors").is_file() and (elsewhere / "drum_adapter" / "adapter_model.safetensors").is_file()
