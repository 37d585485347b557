"""Languages as data: a module here that defines ``SPEC`` adds one, and every program has it by its name."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from data.errors import DataError
from data.records import Record


@dataclass(frozen=True)
class LanguageSpec:
    """What editing in a language takes beside the model."""

    name: str
    """In flags, result folders and file names: "catalan" in catalan_CF.json."""
    code: str
    """ISO 639-1: "ca"."""
    tag: str
    """ISO 639-2: "cat", in the published file names (data_cat_dif_subj.json) and of what is kept for each language."""
    context_starts: tuple[str, ...]
    """Beginnings of the context templates, for the model to go on with."""
    kl_prompt: str
    """Whose next-token distribution an edit should leave alone; ``{}`` is the subject."""
    parse: Callable[[Sequence[Any], str, int | None], list[Record]]
    """Reads its data files: (raw records, name of the source, limit) -> records, as :func:`data.counterfact.parse`."""
    corpora: Mapping[str, str] = field(default_factory=dict)
    """Where second moments come from: corpus of the hyper-parameters (``mom2_dataset``) -> the same in this language."""

    def corpus(self, dataset: str) -> str:
        """The corpus in this language; one that the language says nothing about is taken as it is."""
        return self.corpora.get(dataset, dataset)


def names() -> list[str]:
    """The languages there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def spec(name: str) -> LanguageSpec:
    """The language called ``name`` (its code and tag will do, too). Raises DataError for one without a spec."""
    known = names()
    specs = (import_module(f"{__name__}.{module}").SPEC for module in ([name] if name in known else known))
    found = next((language for language in specs if name in (language.name, language.code, language.tag)), None)
    if found is None:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(f"no language {name!r}; {hint}known are {', '.join(known)}; a file in data/languages adds one")
    return found
