"""The built-in world: an invented place with known facts, and a small model that knows them.

`load` gives its records in the schemas of CounterFact and zsRE, in English or Catalan (aligned: the same case is the
same fact); `snippets` the texts of the reference score; `corpus_path` a text corpus; CHECKPOINT is the model's folder.
"""
import difflib
import json
from functools import lru_cache
from pathlib import Path

from common.errors import UserError
from data.download import cache_folder
from data.files import write_atomically
from data.world import corpus, records, variants
from data.world.generate import BASE_FACTS, Entity, Fact, generate, SEED, World
from data.world.relations import LANGUAGES, RELATIONS

CHECKPOINT = Path(__file__).parent / "checkpoint"
SCHEMAS = {"counterfact": records.counterfact, "bilingual": variants.bilingual, "zsre": records.zsre}

__all__ = ["BASE_FACTS", "CHECKPOINT", "LANGUAGES", "RELATIONS", "SCHEMAS", "SEED", "Entity", "Fact", "World",
           "corpus_path", "generate", "load", "snippets", "world"]


@lru_cache(maxsize=2)
def world(facts: int | None = None, seed: int = SEED) -> World:
    """The generated world (see :func:`data.world.generate.generate`); kept for the next call. Raises UserError."""
    if facts is not None and facts < 1:
        raise UserError(f"the built-in world needs at least 1 fact, not {facts}")
    return generate(facts, seed)


def _one_of(value: str, known, what: str) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"the built-in world has no {what} {value!r}; {hint}known are {', '.join(known)}")


def load(language: str = "en", schema: str = "counterfact", facts: int | None = None, seed: int = SEED) -> list[dict]:
    """All records, one for each fact, as the JSON files of their schema hold them.

    language: "en" or "ca". schema: "counterfact", "zsre", or "bilingual" (two variants in Catalan, :mod:`.variants`). facts: the size of the world (default: the one that the
    checkpoint knows). Raises UserError for an unknown language or schema, or a world too small for counterfacts.
    """
    _one_of(language, LANGUAGES, "language")
    _one_of(schema, SCHEMAS, "schema")
    this = world(facts, seed)
    single = next((relation for relation, objects in this.objects.items() if len(objects) == 1), None)
    if single is not None:
        raise UserError(f"in a world of {len(this.facts)} facts relation {single} has only one object, so that no fact of it "
                        "can be changed; ask for more (300 are plenty)")
    return SCHEMAS[schema](this, language)


def snippets(language: str = "en", facts: int | None = None, seed: int = SEED) -> list[dict]:
    """Attribute snippets in the published schema: {"relation_id", "target_id", "samples": [{"name", "text"}]}."""
    _one_of(language, LANGUAGES, "language")
    return records.snippets(world(facts, seed), language)


def corpus_path(data_dir: str | Path | None = None, facts: int | None = None, seed: int = SEED,
                language: str | None = None) -> Path:
    """A .jsonl file (field "text") of the corpus, for second moments; written unless it is there. Of both languages, or of one.

    Its place is the cache of the data folder; the content is a function of the arguments.
    """
    this = world(facts, seed)
    if language is not None:
        _one_of(language, LANGUAGES, "language")
    texts = corpus.documents(this, languages=LANGUAGES if language is None else (language,))
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    path = cache_folder(data_dir) / f"world-{len(this.facts)}-{seed}{f'-{language}' if language else ''}.jsonl"
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, lambda file: file.write(content))
    return path
