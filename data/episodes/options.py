"""The switches of the edit data: the keys ``data.*`` of the trainer's configuration."""
from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from common.errors import UserError

DEAD = {"sent_eval_sample": "it changed only fields that nothing read"}
"""Keys of published configurations that never had an effect: accepted, with a warning."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataOptions:
    """The switches of the edit data. Where a path is left out, the file is looked for at its usual place in the data folder."""

    path: str | None = None
    """gen: what stands before ``train.json`` and ``valid.json`` (a folder, with or without its slash, or a prefix)."""
    rephrase: bool = True
    """Equivalents are rephrasings; else the edit itself."""
    n_edits: int = 1
    """Edits made at a time (read by the trainer)."""
    n_outer_max: int | None = None
    """At most so many equivalents of a batch."""
    # questions
    zsre_nq: bool | None = None
    """Unrelated questions from Natural Questions: MEND's default is yes, in validation only; SERAC's is no."""
    zsre_nq_train: bool = False
    """With MEND's recipe and ``zsre_nq``: in training, too."""
    nq_path: str | None = None
    """Folder of Natural Questions: ``train.json`` and ``validation.json``."""
    zsre_path: str | None = None
    """With ``{}`` for the name of the split, or one file that is split by subject."""
    zsre_impl: bool = False
    """SERAC: questions that the edit implies are equivalents, too."""
    zsre_impl_path: str | None = None
    zsre_yn: bool = False
    """SERAC: true-or-false questions are equivalents, too."""
    zsre_yn_path: str | None = None
    zsre_eval_idxs: str | None = None
    """A text file with a row number a line: only these rows."""
    flip_inner_outer: bool = False
    """SERAC: with probability 1/2 the equivalent is what is edited, and the edit what is asked."""
    hard_neg: bool = False
    """SERAC: unrelated inputs are drawn from the edit's nearest neighbours."""
    hard_neg_neighbors: int = 100
    hard_neg_exclude: int | None = None
    """The nearest so many are left out, because they may be equivalent: 25; in the built-in world, where what is equivalent
    is known, 0."""
    hard_neg_temp: float = 0.1
    hard_neg_prob: float = 0.5
    hard_neg_encoder: str | None = None
    """A sentence encoder of the hub or a folder, or "words" (tf-idf of the words, nothing to download). Default:
    sentence-transformers/all-MiniLM-L6-v2; in the built-in world "words"."""
    # continuations
    wiki_webtext: bool = True
    """Unrelated texts from OpenWebText; else from wikitext-103."""
    wikitext_path: str | None = None
    """Unrelated texts from a local file (.txt, or .jsonl with the field text), with ``{}`` for the split or not."""
    webtext_path: str | None = None
    # claims and opinions
    fever_path: str | None = None
    vitaminc_path: str | None = None
    sentiment_path: str | None = None
    sent_loc: str = "prompt"
    """Unrelated inputs of opinions: "prompt" (a question about another entity) or, as published, "descriptor"."""
    sent_unshifted_decoder: bool = False
    """As published: the decoder reads the very tokens that it is scored on (read by the trainer)."""
    # the built-in world
    same_relation: float = 0.0
    """gen: with this probability an unrelated example is another subject's fact of the edit's relation, and with the object
    that the edit takes away if there is one, as CounterFact's neighbours are. As published: 0."""
    preceded: float = 0.0
    """gen: with this probability an equivalent or unrelated prompt stands behind a sentence of another fact, as in
    CounterFact's paraphrases. As published: 0."""
    asked: float = 0.0
    """gen: with this probability an edit, equivalent or unrelated prompt is a question, as in zsRE. As published: 0."""
    facts: int | None = None
    """Size of the world; the shipped models know the usual one."""
    language: str = "en"

    def __post_init__(self) -> None:
        if self.sent_loc not in ("prompt", "descriptor"):
            raise UserError(f'data.sent_loc is "prompt" or "descriptor", not {self.sent_loc!r}')
        for name in ("n_edits", "hard_neg_neighbors", "n_outer_max"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name} must be at least 1, not {value}")
        for name in ("same_relation", "preceded", "asked"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.{name} must be a probability, not {getattr(self, name)}")
        if self.hard_neg_exclude is not None and self.hard_neg_exclude < 0:
            raise UserError(f"data.hard_neg_exclude must be at least 0, not {self.hard_neg_exclude}")
        if self.hard_neg_temp <= 0 or not 0 <= self.hard_neg_prob <= 1:
            raise UserError(f"data.hard_neg_temp must be positive and data.hard_neg_prob a probability, not "
                            f"{self.hard_neg_temp} and {self.hard_neg_prob}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> DataOptions:
        """The options of a configuration's keys. Raises UserError for one that does not exist; dead ones get a warning."""
        types = {field.name: str(field.type) for field in fields(cls)}
        options = {}
        for key, value in values.items():
            if key in DEAD:
                log.warning("data.%s has no effect: %s", key, DEAD[key])
            elif key not in types:
                near = difflib.get_close_matches(key, types, n=1)
                raise UserError(f"data.{key} is not known; " + (f"did you mean data.{near[0]}?" if near
                                                                else f"known are {', '.join(types)}"))
            else:
                options[key] = _checked(key, value, types[key])
        return cls(**options)


def _checked(key: str, value: Any, kind: str) -> Any:
    """``value`` if it is of the field's type, which is written as in the class."""
    if value is None:
        if "None" in kind:
            return None
    elif isinstance(value, bool):
        if "bool" in kind:
            return value
    elif isinstance(value, int) and "float" in kind:
        return float(value)
    elif (isinstance(value, int) and "int" in kind) or (isinstance(value, float) and "float" in kind) \
            or (isinstance(value, str) and "str" in kind):
        return value
    raise UserError(f"data.{key} should be {kind.replace(' | ', ' or ')}, not {value!r}")
