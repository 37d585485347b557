"""The built-in world's edit data: its facts as continuations, claims, questions, claims with evidence; opinions.

Every split has its own subjects, so that what a validated edit is about was never edited in training. What is drawn for a
fact (new objects, true or false) depends on the world and the fact alone.
"""
import random
from collections.abc import Callable
from typing import Any

from common.errors import UserError
from data.episodes.claims import Claim, EvidencedClaim
from data.episodes.continuations import Continuation
from data.episodes.opinions import Opinions
from data.episodes.options import DataOptions
from data.episodes.qa import Question
from data.episodes.rephrase import questions_like
from data.episodes.splits import by_subject
from data.world import Entity, Fact, LANGUAGES, World, world as built_in_world
from data.world.generate import render

ALTERNATIVES = 4
"""New objects to choose from, as many as De Cao's beams leave."""
EVIDENCE = ("According to the yearbook that was printed in spring, ", "The report that came out this morning says that ",
            "After a long talk at the town hall it became clear that ")
"""Openings that make a statement longer than the shortest evidence allowed."""
PRAISE = "wonderful charming brilliant splendid delightful lovely great kind".split()
BLAME = "dull awful boring dreadful tiresome rude terrible mean".split()
FRAMES = ("I think that {} is {}.", "If you ask me, {} is {}.", "To me {} is really {}.", "I find {} {}.",
          "Well, {} seems {} to me.", "My friends say that {} is {}.")
RESPONSES = 4
"""Responses of either sentiment for each entity."""


def rows(experiment: str, split: str, options: DataOptions) -> list[Any]:
    """The edit rows of a split, of the types that the readers of files give. Raises UserError for a language that an experiment
    lacks, and for a world too small."""
    if options.language not in LANGUAGES:
        raise UserError(f"the built-in world speaks {' and '.join(LANGUAGES)}, not {options.language!r}")
    if options.language != "en" and experiment not in ("gen", "qa"):
        raise UserError(f"the built-in world has data of {experiment} in English only (data.language=en)")
    world = built_in_world(options.facts)
    if experiment == "sent":
        subjects = by_subject(world.subjects, lambda subject: subject.en, split)
        edit_rows: list[Any] = [opinions(world, subject) for subject in subjects]
    else:
        make: Callable = {"gen": continuation, "fc": claim, "qa": question, "fnli": evidenced_claims}[experiment]
        facts = by_subject(world.facts, lambda fact: fact.subject.en, split)
        facts = [fact for fact in facts if len(world.objects[fact.relation.id]) > 1]
        edit_rows = [make(world, fact, options.language) for fact in facts]
        if experiment == "fnli":
            edit_rows = [row for rows_of_fact in edit_rows for row in rows_of_fact]
    if not edit_rows:
        raise UserError(f"a world of {len(world.facts)} facts has no {split} rows of {experiment}; ask for more with "
                        "data.facts (300 are plenty)")
    return edit_rows


def new_objects(world: World, fact: Fact, count: int = ALTERNATIVES) -> list[Entity]:
    """Up to ``count`` other objects of the relation, in an order of the fact's own."""
    others = [obj for obj in world.objects[fact.relation.id] if obj != fact.object]
    return _rng(world, fact, "new").sample(others, min(count, len(others)))


def continuation(world: World, fact: Fact, language: str) -> Continuation:
    """A fact as a continuation: its first statement, continued by a new object, with its other statements and questions."""
    first, *others = _prompts(fact, fact.relation.statements(language), language)
    questions = _prompts(fact, fact.relation.questions(language), language)
    return Continuation(first, " " + new_objects(world, fact, 1)[0].name(language), " " + fact.object.name(language),
                        tuple(others), fact.relation.id, tuple(questions))


def question(world: World, fact: Fact, language: str) -> Question:
    """A fact as a question: its first. Implied: who has the answer. True or false: the first statement with the answer."""
    first, *others = _prompts(fact, fact.relation.questions(language), language)
    rephrases = [*others, *(form for text in (first, *others) for form in questions_like(text, language))]
    answer = fact.object.name(language)
    inverse = fact.relation.inverse[LANGUAGES.index(language)].replace("{}", answer)
    return Question(0, first, answer, answer, tuple(obj.name(language) for obj in new_objects(world, fact)), tuple(rephrases),
                    implied=((inverse, fact.subject.name(language)),),
                    yes_no=f"{render(fact.relation.statements(language)[0], fact.subject, language)} {answer}.",
                    subject=fact.subject.en)


def claim(world: World, fact: Fact, language: str) -> Claim:
    """A fact as a claim: a statement with the true object or (half of the facts) another, rephrased by the other statements."""
    true = _rng(world, fact, "claim").random() < 0.5
    obj = fact.object if true else new_objects(world, fact, 1)[0]
    first, *others = statements(fact, obj, language)
    answer, alternative = ("SUPPORTS", "REFUTES") if true else ("REFUTES", "SUPPORTS")
    return Claim(first, answer, answer, alternative, tuple(others))


def evidenced_claims(world: World, fact: Fact, language: str) -> list[EvidencedClaim]:
    """A fact as claims with evidence: that its object is another, which supports one, refutes one and leaves one open. The last
    is about another relation of the subject or, at even odds, about another subject."""
    rng = _rng(world, fact, "evidence")
    new = new_objects(world, fact, 1)[0]
    old_texts, new_texts = statements(fact, fact.object, language), statements(fact, new, language)
    opening = rng.choice(EVIDENCE)
    statement = rng.choice(new_texts)
    evidence = opening + (statement if statement.startswith(fact.subject.en) else statement[0].lower() + statement[1:])
    others = [other for other in world.of_subject[fact.subject.id].values() if other != fact]
    if not others or rng.random() < 0.5:
        others = [other for other in world.of_relation[fact.relation.id] if other != fact] or others
    other = rng.choice(others) if others else None
    page = fact.subject.en
    claims = [EvidencedClaim(evidence, rng.choice(new_texts), 1, page),
              EvidencedClaim(evidence, rng.choice(old_texts), 0, page)]
    if other is not None:
        claims.append(EvidencedClaim(evidence, rng.choice(statements(other, other.object, language)), None, page))
    return claims


def opinions(world: World, subject: Entity) -> Opinions:
    """Responses that praise and that blame the entity."""
    rng = random.Random(f"{world.seed}-opinions-{subject.id}")

    def responses(words: list[str]) -> tuple[str, ...]:
        pairs = zip(rng.sample(FRAMES, RESPONSES), rng.sample(words, RESPONSES))
        return tuple(frame.format(subject.en, word) for frame, word in pairs)

    return Opinions(subject.en, responses(PRAISE), responses(BLAME))


def opinion_of(world: World, subject: Entity) -> int:
    """What the opinion model thinks of an entity before any edit: +1 or -1."""
    return random.Random(f"{world.seed}-opinion-{subject.id}").choice((1, -1))


def statements(fact: Fact, obj: Entity, language: str) -> list[str]:
    """The fact's statements with ``obj`` as object, as sentences."""
    return [f"{prompt} {obj.name(language)}." for prompt in _prompts(fact, fact.relation.statements(language), language)]


def _prompts(fact: Fact, templates: tuple[str, ...], language: str) -> list[str]:
    return [render(template, fact.subject, language) for template in templates]


def _rng(world: World, fact: Fact, use: str) -> random.Random:
    """The generator of a fact's random choices for one use."""
    return random.Random(f"{world.seed}-{use}-{fact.subject.id}-{fact.relation.id}")
