"""Unrelated inputs that come from elsewhere: Natural Questions, wikitext, OpenWebText."""
import json
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from data.download import data_folder
from data.episodes.lines import numbered_lines
from data.episodes.options import DataOptions
from data.episodes.types import Example
from data.fields import Fields
from data.files import read_json

NQ_FILES = {"train": "train.json", "validation": "validation.json", "test": "validation.json"}
SHORTEST_PARAGRAPH = 50
"""Words of a paragraph of wikitext; shorter ones, and those that are not all ASCII, are left out."""
WEBTEXT_TRAIN = 0.9
"""The first share of OpenWebText, which is for training; the rest is for validation."""


def natural_questions(split: str, options: DataOptions, data_dir: str | Path | None) -> list[Example]:
    """The questions of a split with their answers. Raises UserError where the file is missing or not of its schema."""
    folder = Path(options.nq_path) if options.nq_path else data_folder(data_dir) / "nq"
    path = folder / NQ_FILES[split]
    if not path.is_file():
        raise UserError(f"{path}: no such file; make it with python -m experiments.make_episodes nq --out {folder}, name its "
                        "folder with data.nq_path, or take unrelated questions from the same data with data.zsre_nq=False")
    fields = Fields(read_json(path), str(path))
    questions, answers = fields.texts("questions"), fields.texts("answers")
    if len(questions) != len(answers) or not questions:
        raise UserError(f"{path}: it has {len(questions)} questions and {len(answers)} answers; expected as many, and some")
    return [Example(question, answer) for question, answer in zip(questions, answers)]


def open_questions(split: str, limit: int | None = None) -> list[tuple[str, str]]:
    """(question, shortest answer) pairs of the open form of Natural Questions on the hub, ``limit`` of them at most.

    A question gets a capital and a question mark, as in the published files. (Those were made from the full data set, 40 times
    as large, by the same rule.)
    """
    rows = _rows("google-research-datasets/nq_open", None, split, "data.nq_path")
    pairs = []
    for row in rows:
        answers = [answer for answer in row["answer"] if answer.strip()]
        if answers:
            pairs.append((row["question"][:1].upper() + row["question"][1:].rstrip("?") + "?", min(answers, key=len)))
        if len(pairs) == limit:
            break
    return pairs


def passages(split: str, options: DataOptions) -> list[Example]:
    """Unrelated texts for continuations: OpenWebText, or wikitext with ``data.wiki_webtext=False``; from a local file if one
    is named, else from the hub. Raises UserError."""
    if options.wiki_webtext:
        texts = _local(options.webtext_path, split) if options.webtext_path else _published_part(
            _hub("stas/openwebtext-10k", None, "train", "data.webtext_path", "refs/convert/parquet"), split)
    else:
        texts = [text for text in paragraphs(split, options.wikitext_path)
                 if text.isascii() and len(text.split(" ")) >= SHORTEST_PARAGRAPH]
    return [Example(text) for text in texts if text.strip()]


def paragraphs(split: str, path: str | None) -> Sequence[str]:
    """The paragraphs of wikitext: of a local file, or of the hub's wikitext-103 (of its training split the first 10 %)."""
    if path:
        return _local(path, split)
    part = {"train": "train[:10%]", "validation": "validation", "test": "test"}[split]
    return _hub("Salesforce/wikitext", "wikitext-103-raw-v1", part, "data.wikitext_path")


def _local(path: str, split: str) -> Sequence[str]:
    """The texts of a local file, one a line. A file for all splits (no ``{}`` in its name) gives 90 % to training, of the
    rest half to validation and half to test."""
    file = Path(path.replace("{}", split))
    texts = []
    for number, line in numbered_lines(file):
        if not line.strip():
            continue
        if file.suffix == ".jsonl":
            try:
                line = Fields(json.loads(line), f"{file}, line {number}").string("text")
            except (ValueError, RecursionError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"{file}, line {number}: not valid JSON ({error})") from None
        texts.append(line.strip())
    if not texts:
        raise UserError(f"{file}: it has no text")
    if "{}" in path:
        return texts
    cut = int(WEBTEXT_TRAIN * len(texts))
    middle = cut + (len(texts) - cut + 1) // 2
    return {"train": texts[:cut], "validation": texts[cut:middle], "test": texts[middle:]}[split]


def _published_part(texts: Sequence[str], split: str) -> Sequence[str]:
    """The texts of a split of OpenWebText. As published there is no test split: what is not for training is for both others."""
    cut = int(WEBTEXT_TRAIN * len(texts))
    return texts[:cut] if split == "train" else texts[cut:]


def _hub(name: str, config: str | None, split: str, option: str, revision: str | None = None) -> Sequence[str]:
    """The field ``text`` of a data set of the Hugging Face hub. Raises UserError when it can't be had."""
    return _rows(name, config, split, option, revision)["text"]


def _rows(name: str, config: str | None, split: str, option: str, revision: str | None = None):
    """A data set of the hub (a ``datasets.Dataset``). Raises UserError when it can't be had."""
    import datasets  # takes seconds to import

    try:
        return datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"data set {name} of the Hugging Face hub did not load ({reason}); fetch it beforehand, or name a "
                        f"local file with {option}") from error
