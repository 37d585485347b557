"""Python on the pages runs as it stands."""

import pytest

from tests.conftest import ROOT
from tests.docs.pages import PAGES, blocks, name_of


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_snippets_run(page, elsewhere, capsys):
    namespace = {}
    for text in blocks(page, "python"):
        exec(compile(text, name_of(page), "exec"), namespace)
    if page == ROOT / "README.md":
        assert "always plays the drum" in capsys.readouterr().out
        assert (elsewhere / "drum.safetensors").is_file()
        assert (elsewhere / "drum_adapter" / "adapter_model.safetensors").is_file()
