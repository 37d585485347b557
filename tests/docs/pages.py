"""What the pages show: fenced blocks, commands, names in backticks."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

PAGES = [*(ROOT / folder / "README.md" for folder in (".", "hparams", "data/world")), *sorted((ROOT / "docs").glob("*.md"))]
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STARTS = ("python", "python3", "bash", "torchrun")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks in this language."""
    return [text for kind, text in _FENCED.findall(page.read_text()) if kind == language]


def inline(page: Path) -> list[str]:
    """What stands in backticks."""
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", _prose(page))]


def commands(page: Path) -> list[str]:
    """Every command of ours, from blocks of shell and from backticks."""
    lines = [line for text in blocks(page, "bash") for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if words(line)] + [text for text in inline(page) if _is_command(text)]


def words(command: str) -> list[str]:
    """Those of a line of shell, without comments."""
    return shlex.split(command, comments=True)


def _is_command(text: str) -> bool:
    words = [word for word in text.split() if not re.match(r"[A-Z_]+=", word)]
    return len(words) > 1 and words[0] in _STARTS


def _prose(page: Path) -> str:
    """Without blocks, and without commands of other repositories: the left side of a table of "there" and "here", unless the
    right side is the same. Flags that are the same become a command."""
    text = _FENCED.sub("", page.read_text())
    return "\n".join(_rows(text.splitlines()) if "| there | here |" in text else text.splitlines())


def _rows(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("| "):
            yield line
            continue
        their_command, our_command = line.strip("| ").split(" | ")
        if our_command.startswith("the same"):
            yield re.sub(r"`(?=--)", "`python -m experiments.evaluate --alg_name MEMAT ", their_command)
        yield our_command
