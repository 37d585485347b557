"""Edits of question answerers: zsRE in De Cao's split (KILT's structure), or in MEND's evaluation schema."""
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import UserError
from data.episodes.base import DataSpec, EditRows
from data.episodes.lines import numbered_lines, read_rows
from data.episodes.types import Example, Item
from data.fields import Fields
from data.files import read_json

SCHEMA = "JSON lines with input, output [{answer}], prediction, alternatives, filtered_rephrases"
TRUE_OR_FALSE = ("True or False: ", "True/False: ", "T/F: ", "Answer True or False: ")
_LEFT_OUT = ("sex", "gender")
_NQ_MARK = "nq question: "


@dataclass(frozen=True)
class Question:
    """One row. ``number`` is its place in the file, by which the files of implied and yes-or-no questions go."""

    number: int
    question: str
    answer: str
    prediction: str
    alternatives: tuple[str, ...]
    rephrases: tuple[str, ...]
    implied: tuple[tuple[str, str], ...] = ()
    """(question that contains the answer, what it asks for)."""
    yes_no: str = ""
    """A statement or question that contains the answer."""
    local: tuple[str, str] | None = None
    """An unrelated question with its answer, where the schema brings one."""
    subject: str | None = None


def read(path: Path, eval_idxs: str | None = None) -> list[Question]:
    """The usable rows of a file in either schema; ``eval_idxs`` names a file of row numbers to keep. Raises UserError."""
    count = -1

    def parse(fields: Fields) -> Question | None:
        nonlocal count
        count += 1
        return _mend(fields, count) if fields.has("src") else _kilt(fields, count)

    rows = read_rows(path, parse)
    if eval_idxs is not None:
        numbers = _numbers(Path(eval_idxs))
        rows = [row for row in rows if row.number in numbers]
    if not rows:
        raise UserError(f"{path}: none of its {count + 1} rows has an answer, alternatives and rephrases")
    return rows


def _kilt(fields: Fields, number: int) -> Question | None:
    """A row in KILT's structure; None without answer, alternatives, or a rephrase besides the question itself."""
    question = fields.text("input")
    answers = [o.string("answer") for o in fields.objects("output") if o.has("answer")]
    alternatives = fields.texts("alternatives", blanks=True)
    rephrases = tuple(r for r in fields.texts("filtered_rephrases", blanks=True) if r != question)
    if not answers or not answers[0].strip() or not alternatives or not rephrases:
        return None
    return Question(number, question, answers[0], fields.string("prediction"), alternatives, rephrases,
                    subject=fields.optional_text("subject") if fields.has("subject") else None)


def _mend(fields: Fields, number: int) -> Question | None:
    """A row in MEND's evaluation schema: one rephrase, one alternative, and an unrelated question of Natural Questions."""
    question, rephrase, alternative = fields.text("src"), fields.text("rephrase"), fields.string("alt")
    answers = fields.texts("answers", blanks=True)
    if not answers or not answers[0].strip() or not alternative.strip() or rephrase == question:
        return None
    local = fields.text("loc").removeprefix(_NQ_MARK)
    return Question(number, question, answers[0], fields.string("pred"), (alternative,), (rephrase,),
                    local=(local[0].upper() + local[1:] + "?", fields.text("loc_ans")), subject=fields.text("subject"))


def _numbers(path: Path) -> set[int]:
    """The row numbers of a file, one a line. Raises UserError."""
    numbers = set()
    for line_number, line in numbered_lines(path):
        if line.strip():
            if not line.strip().isdecimal():
                raise UserError(f"{path}, line {line_number}: expected a row number, found {line.strip()!r}")
            numbers.add(int(line))
    return numbers


def with_implied(rows: Sequence[Question], path: Path) -> list[Question]:
    """The rows with the implied questions of a file aligned with the rows of the question file, unusable ones left out."""
    content = read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list, aligned with the questions, of lists of [question, answer, ...]")
    with_pairs = []
    for row in rows:
        pairs = []
        for entry in content[row.number] if row.number < len(content) else []:
            if not isinstance(entry, list) or len(entry) < 2 or not all(isinstance(part, str) for part in entry[:2]):
                raise UserError(f"{path}, record {row.number}: expected [question, answer, ...], found {str(entry)[:40]!r}")
            if row.answer in entry[0]:
                pairs.append((entry[0], entry[1]))
        with_pairs.append(replace(row, implied=tuple(pairs)))
    return with_pairs


def with_yes_no(rows: Sequence[Question], path: Path) -> list[Question]:
    """The rows with line i of the file for row i; empty lines, and those without the answer, count as none."""
    lines = [line.strip() for _, line in numbered_lines(path)]

    def line_of(row: Question) -> str:
        line = lines[row.number] if row.number < len(lines) else ""
        return line if row.answer.casefold() in line.casefold() else ""

    return [replace(row, yes_no=line_of(row)) for row in rows]


def replaced(text: str, old: str, new: str) -> str:
    """``text`` with ``new`` for every ``old``, whatever its case."""
    return re.sub(re.escape(old), lambda _: new, text, flags=re.IGNORECASE)


def yes_no_question(row: Question, new: str, rng: random.Random) -> Example:
    """The question, after the edit to ``new``, whether ``new`` (True) or another alternative (False) is the answer."""
    others = [alternative for alternative in row.alternatives if alternative != new]
    if not others or rng.random() < 0.5:
        text, answer = replaced(row.yes_no, row.answer, new), "True"
    else:
        text, answer = replaced(row.yes_no, row.answer, rng.choice(others)), "False"
    return Example(_marked(text, rng), answer)


def _marked(text: str, rng: random.Random) -> str:
    mark = rng.choice(TRUE_OR_FALSE)
    return (mark.lower() if rng.random() < 0.5 else mark) + text.replace(" - ", "-")


class MendQuestions(EditRows):
    """MEND's recipe: a random alternative is the new answer, a random rephrase the equivalent."""

    rows: Sequence[Question]

    def item(self, index: int, epoch: int) -> Item:
        row, rng = self.rows[index], self.rng(index, epoch)
        rephrase, new = rng.choice(row.rephrases), rng.choice(row.alternatives)
        outer = Example(rephrase if self.spec.options.rephrase else row.question, new)
        return Item(Example(row.question, new), (outer,), condition_text(row, new), hard=(False,), key=row.subject, index=index)

    def as_local(self, index: int, epoch: int) -> Example:
        return Example(self.rows[index].question, self.rows[index].answer)


class SeracQuestions(MendQuestions):
    """SERAC's recipe: the equivalent is, at equal odds, the question, a rephrase, an implied or a true-or-false question."""

    def item(self, index: int, epoch: int) -> Item:
        row, rng, options = self.rows[index], self.rng(index, epoch), self.spec.options
        new = rng.choice(row.alternatives)
        kinds = ["question", *["rephrase"] * options.rephrase, *["implied"] * (options.zsre_impl and bool(row.implied)),
                 *["yes_no"] * (options.zsre_yn and bool(row.yes_no))]
        kind = rng.choice(kinds)
        if kind == "implied":
            question, answer = rng.choice(row.implied)
            outer = Example(replaced(question, row.answer, new), answer)
        elif kind == "yes_no":
            outer = yes_no_question(row, new, rng)
        else:
            outer = Example(row.question if kind == "question" else rng.choice(row.rephrases), new)
        return Item(Example(row.question, new), (outer,), condition_text(row, new), key=row.subject,
                    hard=(kind in ("implied", "yes_no"),), index=index)

    def without_contradictions(self, items: list[Item], local: list[Example],
                               drawn: Sequence[int]) -> tuple[list[Item], list[Example]]:
        """The batch without implied questions that contradict it, for which rephrases and plain questions stand in.

        A question that several edits imply ("Who speaks Galdese?") has more than one answer, and one that any implies is not
        unrelated. In the built-in world, where edits share few objects, that is common: of 1,000 edits at once hardly an
        implied question is left. Unrelated questions of Natural Questions stay as they are.
        """
        if not self.spec.options.zsre_impl or self.owners is None:
            return items, local
        edited = [(self.rows[item.index], item.edit.target) for item in items]
        implied = Counter(question for row, new in edited
                          for question in {replaced(question, row.answer, new) for question, _ in row.implied})
        items = [self._rephrased(item) if implied[item.outer[0].input] > 1 else item for item in items]
        owners = [self.rows[self.owners[index % len(self.owners)]] for index in drawn]
        return items, [Example(row.question, row.answer) if example.input in implied else example
                       for example, row in zip(local, owners, strict=True)]

    def _rephrased(self, item: Item) -> Item:
        row = self.rows[item.index]
        text = self.rng(item.index, 0, "settled").choice(row.rephrases) if self.spec.options.rephrase else row.question
        return replace(item, outer=(Example(text, item.edit.target),), hard=(False,))


def condition_text(row: Question, new: str) -> str:
    """The text that KE's hyper-network reads: prediction, new answer and question."""
    return f"{row.prediction} >> {new} || {row.question}"


def without_left_out(rows: Sequence[Question]) -> list[Question]:
    """The rows without those that ask for sex or gender, which SERAC leaves out."""
    return [row for row in rows if not any(word in row.question for word in _LEFT_OUT)]


def mixture(rows: Sequence[Question], spec: DataSpec) -> tuple[list[Example], list[int]]:
    """(SERAC's unrelated examples, the row that each belongs to).

    Equal parts of questions, rephrases and, if they are equivalents, implied and true-or-false questions, all with the answers
    from before any edit. (Those of the last are drawn at random: they only shape teacher forcing, as published.)
    """
    rng = random.Random(f"{spec.seed}-{spec.split}-mixture")
    makers = [(lambda row: True, lambda row: Example(row.question, row.answer)),
              (lambda row: True, lambda row: Example(rng.choice(row.rephrases), row.answer))]
    if spec.options.zsre_impl:
        makers.append((lambda row: bool(row.implied), lambda row: Example(*rng.choice(row.implied))))
    if spec.options.zsre_yn:
        makers.append((lambda row: bool(row.yes_no),
                       lambda row: Example(_marked(row.yes_no, rng), rng.choice(("True", "False")))))
    size = len(rows) // len(makers)
    examples: list[Example] = []
    owners: list[int] = []
    for number, (is_usable, make) in enumerate(makers):
        usable = [i for i, row in enumerate(rows) if is_usable(row)]
        count = size + (len(rows) - size * len(makers) if number == 0 else 0)
        chosen = rng.sample(usable, min(count, len(usable)))
        examples += [make(rows[i]) for i in chosen]
        owners += chosen
    return examples, owners
