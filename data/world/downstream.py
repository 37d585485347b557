"""The downstream tasks' formats, filled with the built-in world: an exercise of the pipeline, without any download.

Not a measure of ability: the world's model has read nothing but statements and questions about its facts, no "True or False"
and no "(A) (B) (C) (D)"; it never generates a valid answer, and its likeliest label is right about as often as chance has it.
"""
import random
from itertools import cycle
from typing import Any

from data.world import world
from data.world.generate import Entity, Fact, render, SEED

ROWS = 220
_PRAISE = "wonderful charming brilliant splendid delightful".split()
_BLAME = "dull awful boring dreadful tiresome".split()


def rows(name: str) -> list[dict[str, Any]]:
    """:data:`ROWS` rows of a task, in the schema of its published file; the classes take turns."""
    rng = random.Random(f"{SEED}-downstream-{name}")
    classes = cycle({"dialogue": "ABCD", "mmlu": range(4)}.get(name, (1, 0)))
    return [{**_BUILD[name](rng, label), "idx": number} for number, label in zip(range(ROWS), classes)]


def _statement(fact: Fact, phrasing: int, obj: Entity | None = None) -> str:
    return f"{render(fact.relation.statements('en')[phrasing], fact.subject, 'en')} {(obj or fact.object).en}."


def _others(rng: random.Random, fact: Fact, count: int) -> list[Entity]:
    """Wrong objects of a fact, of the right kind."""
    return rng.sample([obj for obj in world().objects[fact.relation.id] if obj != fact.object], count)


def _pair(rng: random.Random, same: bool) -> dict[str, Any]:
    """Two phrasings of a fact, the second with another object unless ``same``."""
    fact = rng.choice(world().facts)
    first, second = rng.sample(range(len(fact.relation.statements("en"))), 2)
    obj = fact.object if same else _others(rng, fact, 1)[0]
    return {"sentence1": _statement(fact, first), "sentence2": _statement(fact, second, obj)}


def _opinion(rng: random.Random, good: bool) -> str:
    city = rng.choice([subject for subject in world().subjects if subject.kind == "city"])
    return f"a {rng.choice(_PRAISE if good else _BLAME)} evening in {city.en} . "


def _acceptable(rng: random.Random, label: int) -> str:
    """A statement, or its words in another order."""
    words = _statement(rng.choice(world().facts), 0)[:-1].split()
    shuffled = list(words)
    while not label and shuffled == words:
        rng.shuffle(shuffled)
    return " ".join(shuffled) + "."


def _question(rng: random.Random, answer: int) -> tuple[str, str, list[str]]:
    """(question, name of its relation, four options with the right one at place ``answer``)."""
    fact = rng.choice(world().facts)
    options = _others(rng, fact, 3)
    options.insert(answer, fact.object)
    return render(rng.choice(fact.relation.questions("en")), fact.subject, "en"), fact.relation.name, [o.en for o in options]


def _dialogue(rng: random.Random, label: str) -> dict[str, Any]:
    question, _, options = _question(rng, "ABCD".index(label))
    return {"article": f"f : {question}", "options": [f"m : {option} ." for option in options], "answers": label}


def _mmlu(rng: random.Random, label: int) -> dict[str, Any]:
    question, relation, options = _question(rng, label)
    return {"question": question, "subject": relation, "choices": options, "answer": label}


_BUILD = {
    "nli": lambda rng, label: {**_pair(rng, label == 1), "label": "entailment" if label else "not_entailment"},
    "rte": lambda rng, label: {**_pair(rng, label == 0), "label": label},  # GLUE: 0 is entailment
    "mrpc": lambda rng, label: {**_pair(rng, label == 1), "label": label},
    "sentiment_analysis": lambda rng, label: {"sentence": _opinion(rng, label == 1), "label": str(label)},
    "dialogue": _dialogue,
    "cola": lambda rng, label: {"sentence": _acceptable(rng, label), "label": label},
    "sst": lambda rng, label: {"sentence": _opinion(rng, label == 1), "label": label},
    "mmlu": _mmlu,
}
