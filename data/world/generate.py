"""The invented world: people, companies, cities and countries, and the facts about them, from a seed."""
import random
from dataclasses import dataclass
from functools import cached_property

from data.world import catalan
from data.world.names import NameMaker
from data.world.objects import COUNTRIES
from data.world.relations import BY_ID, Relation, RELATIONS

SEED = 0
BASE_FACTS = 3240  # 600 people x 4 facts + 220 companies x 2 + 200 cities x 2
_PEOPLE, _COMPANIES, _CITIES = 600, 220, 200  # subjects at the base size; they grow in proportion
_OBJECT_CITIES, _OBJECT_COMPANIES = 36, 36  # how many of them serve as objects at any size
_FACTS_OF = {"person": 4, "company": 2, "city": 2}


@dataclass(frozen=True)
class Entity:
    """A thing of the world. `names` maps a language to the form used in running text (Catalan objects with article)."""

    id: str
    kind: str
    en: str
    ca: str
    gender: str | None = None  # of people: "f" or "m"

    def name(self, language: str) -> str:
        """The form of its name in a language's running text."""
        return {"en": self.en, "ca": self.ca}[language]


@dataclass(frozen=True)
class Fact:
    """`subject` stands in `relation` to `object`."""

    subject: Entity
    relation: Relation
    object: Entity


@dataclass(frozen=True)
class World:
    """All facts, in a fixed order: those of people, then of companies, then of cities."""

    seed: int
    facts: tuple[Fact, ...]

    @cached_property
    def subjects(self) -> tuple[Entity, ...]:
        """Every subject once, in the order of the facts."""
        return tuple(dict.fromkeys(fact.subject for fact in self.facts))

    @cached_property
    def objects(self) -> dict[str, tuple[Entity, ...]]:
        """relation id -> its candidate objects that at least one subject has."""
        table: dict[str, dict[Entity, None]] = {}
        for fact in self.facts:
            table.setdefault(fact.relation.id, {})[fact.object] = None
        return {relation: tuple(entities) for relation, entities in table.items()}

    @cached_property
    def of_subject(self) -> dict[str, dict[str, Fact]]:
        """subject id -> relation id -> fact."""
        table: dict[str, dict[str, Fact]] = {}
        for fact in self.facts:
            table.setdefault(fact.subject.id, {})[fact.relation.id] = fact
        return table

    @cached_property
    def of_relation(self) -> dict[str, tuple[Fact, ...]]:
        """relation id -> its facts."""
        table: dict[str, list[Fact]] = {}
        for fact in self.facts:
            table.setdefault(fact.relation.id, []).append(fact)
        return {relation: tuple(facts) for relation, facts in table.items()}

    @cached_property
    def holders(self) -> dict[tuple[str, str], tuple[Entity, ...]]:
        """(relation id, object id) -> the subjects that have that object."""
        table: dict[tuple[str, str], list[Entity]] = {}
        for fact in self.facts:
            table.setdefault((fact.relation.id, fact.object.id), []).append(fact.subject)
        return {key: tuple(entities) for key, entities in table.items()}


def fill(template: str, subject: Entity, language: str) -> str:
    """The template with its Catalan markers resolved for `subject`; the subject's place stays "{}"."""
    if language == "ca" and "{de}" in template:
        template = template.replace("{de}", catalan.de(subject.ca))
    if language == "ca" and "{art}" in template:
        template = template.replace("{art}", catalan.personal_article(subject.ca, subject.gender))
    return template


def render(template: str, subject: Entity, language: str) -> str:
    """The whole prompt about `subject`: markers resolved, subject filled in."""
    return fill(template, subject, language).replace("{}", subject.name(language))


def _spread(rng: random.Random, objects: list[Entity], n: int) -> list[Entity]:
    """n objects in random order, each about equally often, so that every object has neighbours."""
    drawn: list[Entity] = []
    while len(drawn) < n:
        drawn += rng.sample(objects, len(objects))
    drawn = drawn[:n]
    rng.shuffle(drawn)
    return drawn


def _closed_sets() -> dict[str, list[Entity]]:
    """relation id or "country" -> its closed list of objects."""
    sets = {r.id: [Entity(f"{r.id}.{i}", r.name, *pair) for i, pair in enumerate(r.objects)]
            for r in RELATIONS if not isinstance(r.objects, str)}
    sets["country"] = [Entity(f"country.{i}", "country", *pair) for i, pair in enumerate(COUNTRIES)]
    return sets


def generate(facts: int | None = None, seed: int = SEED) -> World:
    """The world with about `facts` facts (default BASE_FACTS; never fewer than asked). Same arguments, same world.

    People have 4 of their 6 relations, companies 2 of 3, cities their country and a river or a dish.
    """
    facts = BASE_FACTS if facts is None else facts
    if facts < 1:
        raise ValueError(f"facts must be positive, not {facts}")
    rng = random.Random(seed)
    scale = facts / BASE_FACTS
    count = {kind: max(1, round(base * scale))
             for kind, base in (("person", _PEOPLE), ("company", _COMPANIES), ("city", _CITIES))}
    while sum(count[kind] * _FACTS_OF[kind] for kind in count) < facts:
        count["person"] += 1

    closed_sets = _closed_sets()
    names = NameMaker(rng, {name for objects in closed_sets.values() for obj in objects for name in (obj.en, obj.ca)})
    entities: dict[str, list[Entity]] = {"city": [], "company": [], "person": []}
    for i in range(count["city"]):
        name = names.city()
        entities["city"].append(Entity(f"city.{i}", "city", name, name))
    for i in range(count["company"]):
        name = names.company()
        entities["company"].append(Entity(f"company.{i}", "company", name, name))
    for i in range(count["person"]):
        name, gender = names.person()
        entities["person"].append(Entity(f"person.{i}", "person", name, name, gender))

    subjects_of: dict[str, list[Entity]] = {relation.id: [] for relation in RELATIONS}
    for subject in entities["person"] + entities["company"] + entities["city"]:
        possible_ids = [relation.id for relation in RELATIONS if relation.kind == subject.kind]
        if subject.kind == "city":
            relation_ids = ["P10", rng.choice(["P11", "P12"])]
        else:
            relation_ids = rng.sample(possible_ids, _FACTS_OF[subject.kind])
        for relation_id in relation_ids:
            subjects_of[relation_id].append(subject)

    object_sets = dict(closed_sets, city=entities["city"][:_OBJECT_CITIES], company=entities["company"][:_OBJECT_COMPANIES])
    facts_about: dict[str, list[Fact]] = {entity.id: [] for kind in entities for entity in entities[kind]}
    for relation in RELATIONS:
        objects = object_sets[relation.objects if isinstance(relation.objects, str) else relation.id]
        subjects = subjects_of[relation.id]
        for subject, obj in zip(subjects, _spread(rng, objects, len(subjects))):
            facts_about[subject.id].append(Fact(subject, relation, obj))
    ordered = [fact for kind in ("person", "company", "city") for entity in entities[kind] for fact in facts_about[entity.id]]
    return World(seed, tuple(ordered))


def two_hop(world: World, fact: Fact, obj: Entity) -> Entity | None:
    """The answer to the two-hop question about the subject of `fact` if `obj` is its object (None: there is no such fact)."""
    if fact.relation.hop is None:
        return None
    second_fact = world.of_subject.get(obj.id, {}).get(BY_ID[fact.relation.hop[0]].id)
    return second_fact.object if second_fact else None
