"""Languages as data: a module here that defines ``SPEC`` adds one, and every program has it by its name."""

import pkgutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from common.errors import nearest_name, UserError
from data.records import Record


@dataclass(frozen=True)
class LanguageSpec:
    """What editing in a language takes beside the model."""

    name: str
    """In flags, result folders and file names: "catalan" in catalan_CF.json."""
    code: str
    """ISO 639-1: "ca"."""
    tag: str
    """ISO 639-2: "cat", in the published file names (data_cat_dif_subj.json)."""
    context_starts: tuple[str, ...]
    """Beginnings of the context templates, for the model to go on with."""
    kl_prompt: str
    """Whose next-token distribution an edit should leave alone; ``{}`` is the subject."""
    parse: Callable[[Sequence[Any], str, int | None], list[Record]]
    """Reads its data files: (raw records, name of the source, limit) -> records, as :func:`data.counterfact.parse`."""
    corpora: Mapping[str, str] = field(default_factory=dict)
    """Where second moments come from: corpus of the hyper-parameters (``mom2_dataset``) -> the same in this language."""

    joined: bool | None = None
    """Whether targets stand behind their prompts without a space, where a record does not say so itself; None: what stands on
    both sides decides (:func:`common.orthography.continuation`)."""

    def corpus(self, dataset: str) -> str:
        """The counterpart of a corpus (``mom2_dataset``) in this language. Files are taken as they are, and so is English.

        Raises UserError where the language has no counterpart of a corpus known by an English name, and warns where another
        data set of the hub is taken as it is.
        """
        if dataset in self.corpora or self.code == "en" or dataset == "world" or dataset.endswith((".jsonl", ".txt")):
            return self.corpora.get(dataset, dataset)
        if "/" not in dataset:
            raise UserError(f"mom2_dataset {dataset!r} has no counterpart in {self.name}: add it to the corpora of its file in "
                            "data/languages, or name a file of texts")
        if dataset not in self.corpora.values():
            warnings.warn(f"mom2_dataset {dataset!r} is taken as it is for {self.name}, whose corpora do not name it",
                          stacklevel=2)
        return dataset


def names() -> list[str]:
    """The languages there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def spec(name: str) -> LanguageSpec:
    """The language called ``name`` (its code and tag will do, too). Raises UserError for one without a spec."""
    modules = names()
    for module in [name] if name in modules else modules:
        language = import_module(f"{__name__}.{module}").SPEC
        if name in (language.name, language.code, language.tag):
            return language
    raise UserError(f"no language {name!r}; {nearest_name(name, modules)}known are {', '.join(modules)}; "
                    "a file in data/languages adds one")
