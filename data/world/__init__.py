"""The built-in world: an invented place with known facts, and a small model that knows them.

`load` gives its records in the schemas of CounterFact and zsRE, in English or Catalan (aligned: the same case is the
same fact); `snippets` the texts of the reference score; `corpus_path` a text corpus; CHECKPOINT is the model's folder.
"""
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from common.errors import nearest_name, UserError
from data.download import cache_folder
from data.files import json_lines, write_text
from data.world import corpus, records, variants
from data.world.generate import BASE_FACTS, Entity, Fact, generate, SEED, World
from data.world.relations import LANGUAGES, RELATIONS

CHECKPOINT = Path(__file__).parent / "checkpoint"
SCHEMAS = {"counterfact": records.counterfact, "bilingual": variants.bilingual, "zsre": records.zsre}

__all__ = ["BASE_FACTS", "CHECKPOINT", "LANGUAGES", "RELATIONS", "SCHEMAS", "SEED", "Entity", "Fact", "World",
           "corpus_path", "generate", "load", "snippets", "world"]


_generated = lru_cache(maxsize=2)(generate)


def world(facts: int | None = None, seed: int = SEED) -> World:
    """The generated world (see :func:`data.world.generate.generate`); kept for the next call. Raises UserError."""
    if facts is not None and facts < 1:
        raise UserError(f"the built-in world needs at least 1 fact, not {facts}")
    return _generated(facts, seed)


def _check_name(value: str, names: Iterable[str], what: str) -> None:
    if value not in names:
        raise UserError(f"the built-in world has no {what} {value!r}; {nearest_name(value, names)}"
                        f"known are {', '.join(names)}")


def load(language: str = "en", schema: str = "counterfact", facts: int | None = None) -> list[dict]:
    """All records, one for each fact, as the JSON files of their schema hold them.

    language: "en" or "ca". schema: "counterfact", "zsre", or "bilingual" (two variants in Catalan, :mod:`.variants`).
    facts: the size of the world (default: the one that the checkpoint knows).
    Raises UserError for an unknown language or schema, or a world too small for counterfacts.
    """
    _check_name(language, LANGUAGES, "language")
    _check_name(schema, SCHEMAS, "schema")
    built = world(facts)
    single = next((relation for relation, objects in built.objects.items() if len(objects) == 1), None)
    if single is not None:
        raise UserError(f"in a world of {len(built.facts)} facts relation {single} has only one object, so that no fact of it "
                        "can be changed; ask for more (300 are plenty)")
    return SCHEMAS[schema](built, language)


def snippets(language: str = "en", facts: int | None = None) -> list[dict]:
    """Attribute snippets in the published schema: {"relation_id", "target_id", "samples": [{"name", "text"}]}."""
    _check_name(language, LANGUAGES, "language")
    return records.snippets(world(facts), language)


def corpus_path(data_dir: str | Path | None = None, language: str | None = None) -> Path:
    """The path of the corpus for second moments: a .jsonl file (field "text") in the cache of the data folder.

    language: default both. The content is a function of the arguments; it is written unless it is there.
    """
    built = world()
    if language is not None:
        _check_name(language, LANGUAGES, "language")
    documents = corpus.documents(built, languages=LANGUAGES if language is None else (language,))
    content = json_lines({"text": text} for text in documents)
    path = cache_folder(data_dir) / f"world-{len(built.facts)}-{SEED}{f'-{language}' if language else ''}.jsonl"
    if not path.exists() or path.read_bytes() != content.encode():
        write_text(path, content)
    return path
