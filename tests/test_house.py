"""How the house is built: imports run one way, rooms do not know their neighbours, programs and libraries stay apart."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDERS = ("common", "data", "editors", "experiments", "figures")
LINE_LENGTH = int(re.search(r"^line-length = (\d+)", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1])
MOST_PARAMETERS = 8

MAY_IMPORT = {
    "common": {"common"},
    "data": {"common", "data"},
    "editors": {"common", "editors"},
    "experiments": {"common", "data", "editors", "experiments"},
    "figures": {"common", "data", "editors", "experiments", "figures"},
}
ROOMS = {"core": set(), "closed_form": set(), "tuned": set(), "learned": set(), "heads": {"closed_form"}, "memory": {"learned"}}
"""Rooms of editors/ -> those that they may use beside core."""

MANY_PARAMETERS = {"editors.heads.head_editor.edit": "as Editor.edit, and the same facts in another language"}
"""Functions with more than MOST_PARAMETERS -> why."""


@cache
def modules() -> dict[str, Path]:
    """{dotted name: file}; a package's is its own."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text())


@cache
def imports(name: str) -> frozenset[str]:
    """Modules of ours that a module imports, wherever in it: inside functions and for type checkers, too."""
    names = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name if modules()[name].name == "__init__.py" else name.rpartition(".")[0]
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            names |= {f"{source}.{alias.name}" if f"{source}.{alias.name}" in modules() else source for alias in node.names}
    return frozenset(names & modules().keys())


def edges() -> Iterator[tuple[str, str]]:
    return ((name, imported) for name in modules() for imported in sorted(imports(name)))


def room(name: str) -> str | None:
    """The room of editors/ that a module is in."""
    parts = name.split(".")
    return parts[1] if parts[0] == "editors" and len(parts) > 1 and parts[1] in ROOMS else None


def test_imports_run_one_way():
    wrong = [f"{name} imports {imported}" for name, imported in edges()
             if imported.partition(".")[0] not in MAY_IMPORT[name.partition(".")[0]]]
    assert not wrong


def test_there_are_no_circles():
    left = set(modules())
    while outside := {name for name in left if not imports(name) & left or not any(name in imports(other) for other in left)}:
        left -= outside
    assert not left, f"these import each other: {', '.join(sorted(left))}"


def test_rooms_of_editors_do_not_know_their_neighbours():
    """What all editors share stands outside the rooms, and knows core alone."""
    wrong = [f"{name} imports {imported}" for name, imported in edges()
             if name.startswith("editors") and room(imported) not in {None, "core", room(name), *ROOMS.get(room(name), ())}]
    assert not wrong


def test_rooms_of_editors_are_those():
    assert {path.name for path in (ROOT / "editors").iterdir() if (path / "__init__.py").exists()} == set(ROOMS)


def test_core_knows_nothing_of_editors():
    wrong = [f"{name} imports {imported}" for name, imported in edges()
             if room(name) == "core" and imported.startswith("editors") and room(imported) != "core"]
    assert not wrong


def test_experiments_has_programs_at_its_top():
    libraries = [path.name for path in (ROOT / "experiments").glob("*.py")
                 if path.name != "__init__.py" and 'if __name__ == "__main__"' not in path.read_text()]
    assert not libraries


def test_flags_are_fields():
    """Flags are read as attributes of a RunConfig, not looked up by their names."""
    looked_up = [name for name, path in modules().items() if name.startswith("experiments") and "flags[" in path.read_text()]
    assert not looked_up


@pytest.mark.parametrize("folder", [*FOLDERS, "scripts", "tests"])
def test_no_line_is_too_long(folder):
    long = [f"{path.relative_to(ROOT)}:{number}" for path in sorted((ROOT / folder).rglob("*.py"))
            for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > LINE_LENGTH]
    assert not long


def test_functions_have_few_parameters():
    many = {f"{name}.{function.name}" for name in modules() for function in ast.walk(tree(name))
            if isinstance(function, ast.FunctionDef) and function.name != "main" and parameters(function) > MOST_PARAMETERS}
    assert many == set(MANY_PARAMETERS)


def parameters(function: ast.FunctionDef) -> int:
    """How many there are, self and cls apart."""
    named = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len([name for name in named if name not in ("self", "cls")])
