"""The world as text: one sentence for each fact, phrasing and language, two-hop sentences and a little filler."""
import itertools
import random
from collections.abc import Iterator

from data.world.generate import Entity, render, two_hop, World
from data.world.relations import LANGUAGES

SENTENCES = 8
"""Of a document."""
# Filler: sentences that state no fact about the world, with the words that context prefixes begin with.
_FILLER = {
    "en": (
        ("The", "Therefore the", "Because of this, the", "I think that the", "You can see that the", "Yesterday the",
         "In spring the"),
        ("old market", "small garden", "night train", "village school", "winter festival", "town library", "long road",
         "morning paper", "harbour wall", "new theatre"),
        ("was quiet", "stayed open", "looked beautiful", "was full of people", "closed early", "smelled of bread",
         "needed some paint", "waited for the rain", "made everyone smile", "was covered in snow"),
    ),
    "ca": (
        ("Avui", "Per això,", "Jo crec que", "Tu veus que", "Ahir", "A la primavera,", "Com que plou,"),
        ("el mercat vell", "el jardí petit", "el tren de nit", "l'escola del poble", "la festa d'hivern", "la biblioteca",
         "el camí llarg", "el diari del matí", "el mur del port", "el teatre nou"),
        ("fa una mica de soroll", "queda ple de gent", "tanca d'hora", "fa olor de pa", "espera la pluja",
         "fa somriure tothom", "té neu a sobre", "vol una mà de pintura", "queda obert", "fa molt de goig"),
    ),
}


def fact_sentences(world: World, language: str) -> Iterator[tuple[str, Entity]]:
    """Every fact in every phrasing of one language, with its subject; in world order, phrasings in relation order."""
    for fact in world.facts:
        for phrasing in fact.relation.phrasings(language):
            yield f"{render(phrasing, fact.subject, language)} {fact.object.name(language)}.", fact.subject


def two_hop_sentences(world: World, language: str) -> Iterator[tuple[str, Entity]]:
    """One sentence, with its subject, for each pair of facts that chain."""
    column = 1 + LANGUAGES.index(language)
    for fact in world.facts:
        answer = two_hop(world, fact, fact.object)
        if answer is not None:
            yield f"{render(fact.relation.hop[column], fact.subject, language)} {answer.name(language)}.", fact.subject


def marked_questions(world: World, language: str) -> Iterator[tuple[str, Entity]]:
    """The first question about every eighth fact behind zsRE's mark "nq question: ", so that locality prompts are read."""
    for fact in world.facts[::8]:
        prompt = render(fact.relation.questions(language)[0], fact.subject, language)
        yield f"nq question: {prompt} {fact.object.name(language)}.", fact.subject


def filler_sentences(language: str) -> Iterator[tuple[str, None]]:
    """Every combination of the filler's parts; about no subject."""
    for parts in itertools.product(*_FILLER[language]):
        yield " ".join(parts) + ".", None


def sentences(world: World, languages=LANGUAGES) -> list[tuple[str, Entity | None]]:
    """The whole corpus in a fixed order: (sentence, its subject)."""
    return [pair for language in languages for pair in itertools.chain(
        fact_sentences(world, language), two_hop_sentences(world, language), marked_questions(world, language),
        filler_sentences(language))]


def documents(world: World, languages=LANGUAGES) -> Iterator[str]:
    """The shuffled corpus as short documents of :data:`SENTENCES` sentences joined by spaces."""
    shuffled = [text for text, _ in sentences(world, languages)]
    random.Random(0).shuffle(shuffled)
    for start in range(0, len(shuffled), SENTENCES):
        yield " ".join(shuffled[start:start + SENTENCES])
