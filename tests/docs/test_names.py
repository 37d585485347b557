"""What the pages name is there: files, modules, pages and tables they link to; the generated page is up to date."""

import csv
import importlib
import re

import pytest
import yaml

from scripts import hyperparameters
from tests.conftest import ROOT
from tests.docs.pages import inline, name_of, PAGES

PACKAGES = "common|data|editors|experiments|figures|scripts|tests"
FILE = re.compile(rf"({PACKAGES}|docs|hparams|notebooks)/[\w./-]+")
NAME = re.compile(rf"({PACKAGES})(\.\w+)+")
TRAINING = yaml.safe_load((ROOT / "hparams/train/config.yaml").read_text())
"""Keys of training, some of which look like modules (data.preceded)."""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_exist(page):
    texts = [text for text in inline(page) if FILE.fullmatch(text)]
    assert [text for text in texts if not (ROOT / text).exists() and not (page.parent / text).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_and_their_names_exist(page):
    names = [text for text in inline(page) if NAME.fullmatch(text.partition("=")[0].partition("(")[0])]
    assert [name for name in names if not exists(re.split("[=(]", name)[0])] == []


def exists(dotted):
    """Whether it is a module, what a module has, or a key of training."""
    names = dotted.split(".")
    if names[0] in TRAINING and names[1] in TRAINING[names[0]]:
        return True
    for end in range(len(names), 0, -1):
        try:
            target = importlib.import_module(".".join(names[:end]))
        except ModuleNotFoundError:
            continue
        for name in names[end:]:
            if not hasattr(target, name):
                return False
            target = getattr(target, name)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        heads = [re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in file.read_text().splitlines()
                 if line.startswith("#")] if anchor else [anchor]
        assert anchor in heads, target


@pytest.mark.parametrize("table", sorted((ROOT / "docs/tables").glob("*.csv")), ids=lambda table: table.name)
def test_table_is_linked_with_its_number_of_rows(table):
    with table.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert {len(row) for row in rows} == {len(header)}
    texts = [page.read_text() for page in PAGES if f"](tables/{table.name})" in page.read_text()]
    assert texts
    announced = [int(number) for text in texts for number in re.findall(rf"{re.escape(table.name)}\)\*\*, (\d+) rows", text)]
    assert set(announced) == {len(rows)}


def test_hyperparameters_are_those_of_the_dataclasses():
    assert hyperparameters.PAGE.read_text() == hyperparameters.page(), "stale: python -m scripts.hyperparameters"


def test_readme_is_one_sitting():
    assert len((ROOT / "README.md").read_text().split()) <= 1300
