"""Text corpora that key statistics are collected over: a Hugging Face data set, or a local .jsonl or .txt file.

Documents are visited in the published order: `random.Random(1).shuffle(range(N))`, the first `n_samples` of them.
"""

import difflib
import functools
import hashlib
import json
import pkgutil
import random
import re
import warnings
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError

HUB = {
    # The published code read "wikipedia", 20200501.en, a script data set that the hub no longer serves.
    "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
}
"""Short names of the published hyper-parameter files -> (data set, configuration) read for them."""
BUILT_IN = {"world": "data.world:corpus_path"}
"""Short names -> the function, named by text, that writes the corpus unless it is there and gives its path."""
SUFFIXES = (".jsonl", ".txt")
ORDER_SEED = 1


@dataclass(frozen=True)
class Corpus:
    """Which texts are meant. Cheap to make: nothing is downloaded before `texts()`."""

    name: str
    """As asked: "wikipedia", "owner/name[:config]", or the path of a file."""
    slug: str
    """Short name for folders; for files it changes with their content."""
    identity: str
    """What the texts are: "hub:<data set>:<configuration>:train" or "sha256:<of the file>"."""

    def texts(self) -> Sequence[str]:
        """All texts, by index. A hub data set is downloaded at the first call; a file is read text by text, when asked.

        Raises UserError when the data set is not there, or lacks the split "train" or the field "text".
        """
        if self.identity.startswith("hub:"):
            return _HubTexts(self)
        return _scan(*_version_of(Path(self.name)))[1]

    def stream(self) -> Iterator[str]:
        """Pieces of all texts as one: the lines of a .txt file as they are, other texts with blank lines between them.

        Raises UserError as `texts()`, and for a file that is not UTF-8.
        """
        if not self.identity.startswith("hub:") and Path(self.name).suffix == ".txt":
            try:
                with open(self.name, encoding="utf-8-sig", newline="") as file:
                    yield from file
            except UnicodeDecodeError:
                raise UserError(f"corpus {self.name}: not UTF-8") from None
            return
        for number, text in enumerate(self.texts()):
            yield "\n\n" + text if number else text


def find_corpus(dataset: str) -> Corpus:
    """The corpus called `dataset` (a value of `mom2_dataset`).

    * "wikipedia", "wikitext", or any "owner/name[:config]" of the Hugging Face hub: split train, field `text`;
    * "world": the built-in world's, in both languages;
    * the path of a .jsonl file: one JSON object a line, field `text`;
    * the path of a .txt file: one text a line. Blank lines of either file are skipped.
    Raises UserError for an unknown name, a missing file, or another kind of file.
    """
    if dataset in HUB:
        return Corpus(dataset, dataset, ":".join(("hub", *HUB[dataset], "train")))
    if dataset in BUILT_IN:
        return find_corpus(_built_in(dataset))
    path = Path(dataset)
    if path.suffix in SUFFIXES or path.exists():
        if path.suffix not in SUFFIXES:
            raise UserError(f"corpus {dataset}: a local corpus is a {' or '.join(SUFFIXES)} file")
        if not path.is_file():
            raise UserError(f"corpus {dataset}: no such file")
        digest, _ = _scan(*_version_of(path))
        return Corpus(dataset, f"{path.stem}-{digest[:8]}", f"sha256:{digest}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", dataset):
        near = difflib.get_close_matches(dataset, HUB | BUILT_IN, n=1)
        kinds = f"give {', '.join(HUB | BUILT_IN)}, owner/name[:config] or a {' or '.join(SUFFIXES)} file"
        hint = f"did you mean {near[0]!r}?" if near else kinds
        raise UserError(f"corpus {dataset!r} is not known: {hint}")
    name, _, config = dataset.partition(":")
    return Corpus(dataset, re.sub("[/:]", "_", dataset), f"hub:{name}:{config or 'default'}:train")


def _built_in(name: str) -> str:
    return str(pkgutil.resolve_name(BUILT_IN[name])())


def document_order(total: int, n_samples: int | str) -> list[int]:
    """Indices of the documents to read, in order: a shuffle of `range(total)` with seed 1, cut to `n_samples` ("all": not cut).

    Fewer documents than asked: all of them, with a warning, as published.
    """
    order = list(range(total))
    random.Random(ORDER_SEED).shuffle(order)
    if n_samples == "all":
        return order
    if n_samples > total:
        warnings.warn(f"the corpus has {total} documents, fewer than the {n_samples} asked for: all are used", stacklevel=2)
    return order[:n_samples]


class _HubTexts(Sequence):
    """The field `text` of a hub data set."""

    def __init__(self, corpus: Corpus):
        import datasets  # takes seconds to import, and most runs find their statistics on disk

        _, name, config, split = corpus.identity.split(":")
        try:
            self.rows = datasets.load_dataset(name, None if config == "default" else config, split=split)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"corpus {corpus.name}: Hugging Face data set {name} ({config}) did not load ({reason}); "
                f"download it beforehand, or give the path of a {' or '.join(SUFFIXES)} file as corpus"
            ) from error
        if "text" not in self.rows.column_names:
            raise UserError(f"corpus {corpus.name}: {name} has no field 'text', only {', '.join(self.rows.column_names)}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> str:
        return self.rows[index]["text"]


class _FileTexts(Sequence):
    """Texts of a file with one text a line, found by their byte offsets, so that a corpus may exceed the memory."""

    def __init__(self, path: Path, offsets: array):
        self.path, self.offsets = path, offsets

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> str:
        with open(self.path, "rb") as file:
            file.seek(self.offsets[index])
            line = file.readline()
        try:
            text = line.decode("utf-8-sig" if self.offsets[index] == 0 else "utf-8").rstrip("\r\n")
            if self.path.suffix == ".jsonl":
                text = json.loads(text)["text"]
            if isinstance(text, str):
                return text
            problem = f"the field 'text' holds a {type(text).__name__}"
        except UnicodeDecodeError:
            problem = "not UTF-8"
        except (ValueError, KeyError, TypeError):
            problem = "not a JSON object with a field 'text'"
        raise UserError(f"corpus {self.path}: line {self._line_number(index)}: {problem}")

    def _line_number(self, index: int) -> int:
        position = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                position += len(line)
                if position > self.offsets[index]:
                    break
        return number


def _version_of(path: Path) -> tuple[Path, int, int]:
    """Path, size and time: a file that was written anew is scanned anew."""
    status = path.stat()
    return path.resolve(), status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=8)
def _scan(path: Path, size: int, time: int) -> tuple[str, _FileTexts]:
    """(sha256, texts) of a file, in one pass."""
    digest, offsets, position = hashlib.sha256(), array("Q"), 0
    with open(path, "rb") as file:
        for line in file:
            digest.update(line)
            if line.strip():
                offsets.append(position)
            position += len(line)
    if not offsets:
        raise UserError(f"corpus {path}: the file holds no text")
    return digest.hexdigest(), _FileTexts(path, offsets)
