"""Edits of claim checkers: FEVER in De Cao's form, and VitaminC's claims with evidence."""
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from data.episodes.base import EditRows
from data.episodes.lines import read_rows
from data.episodes.types import Example, Item
from data.fields import Fields

FEVER_SCHEMA = "JSON lines with input, output [{answer}], prediction, alternatives, filtered_rephrases, logit"
VITAMINC_SCHEMA = "JSON lines with claim, evidence, label, revision_type and page"
LABELS = {"SUPPORTS": 1, "REFUTES": 0, "NOT ENOUGH INFO": None}
SHORTEST_EVIDENCE = 10
"""Evidence of at most so many words is left out."""


@dataclass(frozen=True)
class Claim:
    """A claim that a model has checked. Classes are "SUPPORTS" and anything else."""

    claim: str
    answer: str
    prediction: str
    alternative: str
    rephrases: tuple[str, ...]


@dataclass(frozen=True)
class EvidencedClaim:
    """A claim and a sentence that supports it (label 1), refutes it (0) or leaves it open (None)."""

    evidence: str
    claim: str
    label: int | None
    page: str


def read_fever(path: Path) -> list[Claim]:
    """The rows that have an alternative and a rephrase. Raises UserError."""
    return read_rows(path, _fever, "no row has an answer, alternatives and rephrases")


def _fever(fields: Fields) -> Claim | None:
    claim = fields.text("input")
    answers = [o.string("answer") for o in fields.objects("output") if o.has("answer")]
    alternatives, rephrases = fields.texts("alternatives", blanks=True), fields.texts("filtered_rephrases", blanks=True)
    prediction = fields.string("prediction")
    fields.number("logit")
    if not answers or not alternatives or not rephrases:
        return None
    return Claim(claim, answers[0], prediction, alternatives[0], rephrases)


def read_vitaminc(path: Path, seed: int) -> list[EvidencedClaim]:
    """The rows of real revisions with long enough evidence, shuffled. Raises UserError.

    Copies without ``revision_type`` and ``page`` are read too: all their rows count as real, and the rows of one revision
    case (``id`` up to its last "_") as one page.
    """
    rows = read_rows(path, _vitaminc, f"no row of a real revision has evidence of more than {SHORTEST_EVIDENCE} words")
    random.Random(f"{seed}-vitaminc").shuffle(rows)
    return rows


def _vitaminc(fields: Fields) -> EvidencedClaim | None:
    evidence, claim, label = fields.text("evidence"), fields.text("claim"), fields.text("label").upper()
    if label not in LABELS:
        raise fields.error(f"'label' should be one of {', '.join(LABELS)}, found {label!r}")
    page = fields.text("page") if fields.has("page") else fields.text("id").rpartition("_")[0]
    real = not fields.has("revision_type") or fields.string("revision_type") == "real"
    if not real or len(evidence.split(" ")) <= SHORTEST_EVIDENCE:
        return None
    return EvidencedClaim(evidence, claim, LABELS[label], page)


def class_of(answer: str) -> int:
    """The class of an answer: 1 if it is "SUPPORTS", else 0."""
    return int(answer == "SUPPORTS")


class Claims(EditRows):
    """MEND's recipe for FEVER: with probability 1/2 the edit turns the prediction round, else it confirms it."""

    rows: Sequence[Claim]

    def item(self, index: int, epoch: int) -> Item:
        row, rng = self.rows[index], self.rng(index, epoch)
        rephrase, flip = rng.choice(row.rephrases), rng.random() < 0.5
        answer = row.alternative if flip else row.prediction
        label = class_of(answer)
        outer = Example(rephrase if self.spec.options.rephrase else row.claim, label=label)
        return Item(Example(row.claim, label=label), (outer,), f"{row.prediction} >> {answer} || {row.claim}", flip=flip,
                    hard=(False,), index=index)

    def as_local(self, index: int, epoch: int) -> Example:
        return Example(self.rows[index].claim, label=class_of(self.rows[index].answer))


class EvidencedClaims(EditRows):
    """SERAC's recipe for VitaminC: the evidence is edited in as true, and the claim is what it decides.

    A claim that its evidence leaves open is the unrelated input (a hard negative by nature); else a claim of another page is.
    Unrelated claims have no label. Outside the test split the classes are balanced by thinning each pass.
    """

    rows: Sequence[EvidencedClaim]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.keys = [row.page for row in self.rows]
        self._pages = [row.page.casefold() for row in self.rows]
        if self.spec.split != "test":
            counts = Counter(row.label for row in self.rows)
            self.keep = [min(counts.values()) / counts[row.label] for row in self.rows]
        if len(set(self._pages)) < 2:
            raise UserError(f"{self._name}: all rows are of one page; unrelated claims need a second")
        pages = list(dict.fromkeys(self._pages))
        for page in pages:
            if not any(_apart(page, other) for other in pages):
                raise UserError(f"{self._name}: every page's name contains {page!r} or is a part of it, so no claim is "
                                "unrelated to that page's")

    def item(self, index: int, epoch: int) -> Item:
        row = self.rows[index]
        outer = () if row.label is None else (Example(row.claim, label=row.label),)
        return Item(Example(row.evidence, label=1), outer, key=row.page, hard=(False,) * len(outer), index=index)

    def as_local(self, index: int, epoch: int) -> Example:
        return Example(self.rows[index].claim)

    def paired_local(self, index: int, epoch: int) -> Example:
        row, rng = self.rows[index], self.rng(index, epoch, "local")
        if row.label is None:
            return Example(row.claim)
        while True:
            other = rng.randrange(len(self.rows))
            if _apart(self._pages[other], self._pages[index]):
                return Example(self.rows[other].claim)


def _apart(page: str, other: str) -> bool:
    """Whether neither name is a part of the other."""
    return page not in other and other not in page
