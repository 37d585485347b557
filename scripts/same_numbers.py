"""Compares two folders that scripts/same_numbers.sh has filled: ``python scripts/same_numbers.py A B``.

Prints every difference in a line (file, key, what A has, what B has) and at the end how many files are the same and how many
differ; exit code 1 if any does. Numbers are compared exactly: there is no tolerance. What is compared:

* that both folders have the same files;
* .json, .jsonl, .yaml: value by value, 1 and 1.0 being two things;
* .safetensors and .memory: every tensor bit by bit, and the header's texts as JSON; .npz, .npy: array by array, bit by bit;
* .png: pixel by pixel;
* .csv, .md, .html, and what programs printed: their numbers, in order. Where only words differ a line says so, as a note that
  does not count; but it counts in WORDS_COUNT, where words are results;
* anything else: the whole text.

What is not compared, since it differs between two runs of the same code, or between places and machines, is listed below.
"""

import argparse
import csv
import html
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import safe_open

FILES_IGNORED = (
    r"done/.*|seconds\.txt|places\.txt",  # of the script itself
    r"errors/.*",  # progress, with seconds; warnings, whose wording may change
    r".*\.pdf",  # has the date in it; beside each is a .png of the same picture
    r"figures/sequential_cost\.png",  # draws seconds and memory
    r"results/sweeps/.*/log\.txt",  # progress of a job, with seconds
)
KEYS_IGNORED = re.compile(
    r"(.*_)?(time|seconds|elapsed)|(.*_)?time/.*|phases"  # phases: seconds of the parts of an edit
    r"|memory_mb"  # of the process
    r"|commit|python|platform|accelerator|packages"  # where a run was made, and with what
)
"""Keys of JSON objects, columns of tables, and names in a cell of a row."""
CHECKSUMS_IGNORED = re.compile(
    r"results/(ke|enn)/run_000/run\.json: settings\.checkpoint"
    r"|results/downstream/run_000/downstream\.json: settings\.edit_sha256"
)
"""FILE: KEY of checksums of files that have seconds in their headers. These files are compared themselves."""
ROWS_IGNORED = re.compile(r"\bseconds\b|\btime\b", re.IGNORECASE)
"""Lines of a printed table and of a summary."""
WORDS_COUNT = re.compile(r"printed/(memory_|world_check)|episodes/|given/")
"""Where words are results (answers, edit data), not titles and remarks."""
SHOWN = 100
"""Characters of a value that are printed."""

Difference = tuple[str, Any, Any]
ABSENT = "(not there)"


class Folder:
    """A folder that the script has filled, or a copy of one. Paths in its files are read without what depends on the place: the
    folder's own, and the repository's, of which only a file's name is kept, as files may move there."""

    def __init__(self, path: Path):
        self.path = path.resolve()
        places = self.path / "places.txt"
        if not places.is_file():
            sys.exit(f"error: {path}: not a folder of scripts/same_numbers.sh")
        self.root, self.made_as = places.read_text().splitlines()

    def plain(self, text: str) -> str:
        """The text without what depends on the place or the time."""
        text = re.sub(rf"{re.escape(self.root)}(?![\w.-])", "ROOT", text.replace(self.made_as, "OUT"))
        text = re.sub(r"ROOT/(?:[\w.+-]+/)+", "ROOT/", text)
        text = re.sub(r"\bat_\d{15,}\b", "at_TIME", text)  # when a sweep began
        # Statistics lie in a folder that is called as the model is, which is a path for the built-in world.
        return re.sub(r"\b(stats\w*)/_[^/\s]*_checkpoint\b", r"\1/WORLD", text)

    def files(self) -> dict[str, Path]:
        """Path in the folder -> path."""
        files = {}
        for path in sorted(self.path.rglob("*")):
            name = self.plain(path.relative_to(self.path).as_posix())
            if path.is_file() and not any(re.fullmatch(pattern, name) for pattern in FILES_IGNORED):
                files[name] = path
        return files


def values(a: Any, b: Any, key: str = "") -> Iterator[Difference]:
    """Differences of two JSON values."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in dict.fromkeys([*a, *b]):
            if not KEYS_IGNORED.fullmatch(name):
                yield from values(a.get(name, ABSENT), b.get(name, ABSENT), f"{key}.{name}" if key else name)
    elif isinstance(a, list) and isinstance(b, list):
        for i in range(max(len(a), len(b))):
            yield from values(a[i] if i < len(a) else ABSENT, b[i] if i < len(b) else ABSENT, f"{key}[{i}]")
    elif type(a) is not type(b) or repr(a) != repr(b):  # repr: nan is nan, and no two numbers have the same
        yield key, a, b


def read_json(path: Path, folder: Folder) -> Any:
    """The values of a .json, without what depends on the place."""
    return json.loads(folder.plain(path.read_text()))


def read_yaml(path: Path, folder: Folder) -> Any:
    """The values of a .yaml, without what depends on the place."""
    return yaml.safe_load(folder.plain(path.read_text()))


def read_lines(path: Path, folder: Folder) -> Any:
    """The values of a .jsonl, one a line."""
    return [json.loads(line) for line in folder.plain(path.read_text()).splitlines()]


Array = tuple[str, np.ndarray]
"""(type, values: of types that NumPy lacks the same ones in a wider type)."""


def read_tensors(path: Path, folder: Folder) -> tuple[dict[str, Array], Any]:
    """(tensors by name, the header's texts, those that are JSON as values)."""
    with safe_open(path, "pt") as file:
        about = {name: folder.plain(text) for name, text in (file.metadata() or {}).items()}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    for name, text in about.items():
        with suppress(ValueError):
            about[name] = json.loads(text)
    return {name: (str(t.dtype), (t.float() if t.dtype == torch.bfloat16 else t).numpy()) for name, t in tensors.items()}, about


def read_arrays(path: Path, folder: Folder) -> tuple[dict[str, Array], Any]:
    """As of tensors; a .npz has a name for each array."""
    loaded = np.load(path)
    named = {"": loaded} if path.suffix == ".npy" else dict(loaded)
    return {name: (array.dtype.str, array) for name, array in named.items()}, {}


def read_picture(path: Path, folder: Folder) -> tuple[dict[str, Array], Any]:
    """The pixels of a picture."""
    from matplotlib.image import imread

    pixels = imread(path)
    return {"pixels": (pixels.dtype.str, pixels)}, {}


def arrays(a: tuple[dict[str, Array], Any], b: tuple[dict[str, Array], Any]) -> Iterator[Difference]:
    """Differences of two sets of arrays and of what is said about them."""
    for name in dict.fromkeys([*a[0], *b[0]]):
        one, two = a[0].get(name), b[0].get(name)
        if one is None or two is None:
            yield name, *("there" if array else ABSENT for array in (one, two))
        elif (one[0], one[1].shape) != (two[0], two[1].shape):
            yield name, *(f"{kind}{list(array.shape)}" for kind, array in (one, two))
        elif one[1].tobytes() != two[1].tobytes():
            yield _of_arrays(name, one[1], two[1])
    yield from values(a[1], b[1], "(header)")


def _of_arrays(name: str, a: np.ndarray, b: np.ndarray) -> Difference:
    """How many numbers differ, and the first of them."""
    one, two = (np.frombuffer(array.tobytes(), np.uint8).reshape(array.size, -1) for array in (a, b))
    differing = (one != two).any(1).nonzero()[0]
    first = differing[0]
    return f"{name} ({len(differing)} of {a.size}, first at {first})", a.reshape(-1)[first].item(), b.reshape(-1)[first].item()


NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|\bnan\b|\binf\b")


def read_text(path: Path, folder: Folder) -> list[str]:
    """The lines of a text."""
    return folder.plain(path.read_text()).splitlines()


def read_table(path: Path, folder: Folder) -> list[str]:
    """The rows of a .csv without ignored columns and rows."""
    rows = list(csv.reader(io.StringIO(folder.plain(path.read_text()))))
    kept = [i for i, title in enumerate(rows[0]) if not KEYS_IGNORED.fullmatch(title) and not ROWS_IGNORED.search(title)]
    return [" , ".join(row[i] for i in kept) for row in rows if not any(map(KEYS_IGNORED.fullmatch, row))]


def read_printed(path: Path, folder: Folder) -> list[str]:
    """Lines, without those about time. Of a Markdown table the columns about time, too; of the table of downstream tasks the
    last one, whose title is "s". Lines of JSON without ignored keys."""
    lines, without, last_column = [], [], False
    for line in read_text(path, folder):
        cells = line.strip("| ").split("|") if line.startswith("|") else []
        if cells and not (lines and lines[-1].startswith("|")):  # titles
            without = [i for i, title in enumerate(cells) if ROWS_IGNORED.search(title)]
            lines.append(_without(cells, without))
        elif ROWS_IGNORED.search(line) and not line.startswith("{"):
            continue
        elif cells:
            lines.append(_without(cells, without))
        elif line.startswith("{"):
            content = json.loads(line)
            lines.append(json.dumps({key: value for key, value in content.items() if not KEYS_IGNORED.fullmatch(key)}))
        elif last_column or line.endswith("  s"):
            last_column = True
            lines.append(line.rsplit(maxsplit=1)[0])
        else:
            lines.append(line)
    return lines


def _without(cells: list[str], left_out: list[int]) -> str:
    return "| " + " | ".join(cell.strip() for i, cell in enumerate(cells) if i not in left_out)


def read_page(path: Path, folder: Folder) -> list[str]:
    """What is seen of a page, without rows and charts about time, and where a run was made; charts by their texts. Sorted,
    as the order, for example of settings, is layout."""
    text = re.sub(r"<(style|script)\b.*?</\1>", "", folder.plain(path.read_text()), flags=re.DOTALL)
    text = re.sub(r'<svg[^>]*aria-label="seconds.*?</svg>', "", text, flags=re.DOTALL)
    text = re.sub(r"</(tr|p|h\d|li|div|text|summary|title)>", "\n", text)
    shown = (" ".join(html.unescape(re.sub(r"<[^>]*>", " ", line)).split()) for line in text.splitlines())
    return sorted(line for line in shown
                  if line and not ROWS_IGNORED.search(line) and not KEYS_IGNORED.fullmatch(re.split("[ .]", line)[0]))


def texts(a: list[str], b: list[str]) -> Iterator[Difference]:
    """Differences of the numbers, or, where these are equal, of the words: then the key says so."""
    one, two = ([(i, number) for i, line in enumerate(lines) for number in NUMBER.findall(line)] for lines in (a, b))
    if [number for _, number in one] == [number for _, number in two]:
        for i in range(max(len(a), len(b))):
            x, y = (lines[i] if i < len(lines) else ABSENT for lines in (a, b))
            if x != y:
                yield f"words of line {i + 1}", x, y
        return
    if len(one) != len(two):
        yield "how many numbers", len(one), len(two)
    for (i, x), (j, y) in zip(one, two):
        if x != y:
            yield f"line {i + 1}", f"{x} in {a[i]!r}", f"{y} in {b[j]!r}"
            if len(one) != len(two):
                return  # all that follow are shifted


KINDS: dict[str, tuple[Callable[[Path, Folder], Any], Callable[[Any, Any], Iterator[Difference]]]] = {
    ".json": (read_json, values), ".yaml": (read_yaml, values), ".jsonl": (read_lines, values),
    ".safetensors": (read_tensors, arrays), ".memory": (read_tensors, arrays),
    ".npz": (read_arrays, arrays), ".npy": (read_arrays, arrays), ".png": (read_picture, arrays),
    ".csv": (read_table, texts), ".md": (read_printed, texts), ".html": (read_page, texts), ".txt": (read_printed, texts),
}
PROSE = (".csv", ".md", ".html", ".txt")
"""Of these the numbers count alone."""


def compare(a: Folder, b: Folder) -> tuple[int, int]:
    """Prints all differences; returns the numbers of files that are the same and that differ."""
    same = differ = 0
    files = a.files(), b.files()
    for name in sorted(files[0].keys() | files[1].keys()):
        if name not in files[0] or name not in files[1]:
            differ += 1
            print(f"{name}: only in {'B' if name in files[1] else 'A'}")
            continue
        words_count, kind = WORDS_COUNT.match(name), Path(name).suffix
        read, difference = (read_text, texts) if words_count and kind == ".txt" else KINDS.get(kind, (read_text, texts))
        count = 0
        for key, x, y in difference(*(read(paths[name], folder) for paths, folder in zip(files, (a, b)))):
            if CHECKSUMS_IGNORED.fullmatch(f"{name}: {key}"):
                continue
            note = key.startswith("words of") and kind in PROSE and not words_count
            print(f"{'note: ' if note else ''}{name}: {key}: {_short(x)} | {_short(y)}")
            count += not note
        same, differ = same + (not count), differ + bool(count)
    return same, differ


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path, help="what the old code has made")
    parser.add_argument("b", type=Path, help="what the new code has made")
    args = parser.parse_args()
    same, differ = compare(Folder(args.a), Folder(args.b))
    print(f"{same} files the same, {differ} differ")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
