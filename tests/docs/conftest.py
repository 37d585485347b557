"""A folder to run commands in that looks like the project's."""

import pytest

from tests.conftest import ROOT


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The current folder, with hparams/ and scripts/ in it; what is written stays there."""
    for name in ("hparams", "scripts", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
