"""The world's facts as data-set records: counterfactual rewrites in the schemas of CounterFact and of MEND's zsRE."""
import random

from data.world.generate import Entity, Fact, fill, render, two_hop, World
from data.world.recall import unrelated_sentence
from data.world.relations import LANGUAGES

NEIGHBOURS = 10  # at most so many neighbourhood and attribute prompts, as in CounterFact


def case_order(world: World) -> list[Fact]:
    """The facts in the order of their case ids: shuffled, and no subject comes twice before all have come once."""
    shuffled = random.Random(f"{world.seed}-order").sample(world.facts, len(world.facts))
    last_turn: dict[str, int] = {}
    by_turn: dict[int, list[Fact]] = {}
    for fact in shuffled:
        turn = last_turn[fact.subject.id] = last_turn.get(fact.subject.id, -1) + 1
        by_turn.setdefault(turn, []).append(fact)
    return [fact for turn in sorted(by_turn) for fact in by_turn[turn]]


def _case_rng(world: World, case_id: int) -> random.Random:
    """The generator of a case's random choices: the same in every language and schema, so that records are aligned."""
    return random.Random(f"{world.seed}-case-{case_id}")


def _new_object(world: World, fact: Fact, rng: random.Random) -> Entity:
    """Another object of the same relation."""
    while True:
        candidate = rng.choice(world.objects[fact.relation.id])
        if candidate != fact.object:
            return candidate


def _prompts(world: World, fact: Fact, obj: Entity, language: str, rng: random.Random) -> list[str]:
    """The rewrite phrasing about (up to NEIGHBOURS) other subjects that have `obj`."""
    holders = world.holders[fact.relation.id, obj.id]
    subjects = rng.sample(holders, min(NEIGHBOURS + 1, len(holders)))
    rewrite = fact.relation.phrasings(language)[0]
    return [render(rewrite, subject, language) for subject in subjects if subject != fact.subject][:NEIGHBOURS]


def _names_of_holders(world: World, language: str) -> dict[tuple[str, str], list[str]]:
    """(relation id, object id) -> names of its subjects; one list that all its records share."""
    return {key: [s.name(language) for s in subjects] for key, subjects in world.holders.items()}


def _extra(world: World, fact: Fact, new: Entity, language: str, names: dict[tuple[str, str], list[str]]) -> dict:
    """Inverse and (where the relation chains) two-hop questions with their answers before and after the edit.

    `answers_true` lists all subjects that the inverse question about the true object asks for; after the edit the
    subject is an answer to the question about the new object.
    """
    column = LANGUAGES.index(language)
    inverse = fact.relation.inverse[column]
    extra = {"inverse": {
        "prompt_true": inverse.replace("{}", fact.object.name(language)),
        "answers_true": names[fact.relation.id, fact.object.id],
        "prompt_new": inverse.replace("{}", new.name(language)),
        "answer_new": fact.subject.name(language),
    }}
    before, after = two_hop(world, fact, fact.object), two_hop(world, fact, new)
    if before and after:
        extra["two_hop"] = {"prompt": render(fact.relation.hop[1 + column], fact.subject, language),
                            "answer_true": before.name(language), "answer_new": after.name(language)}
    return extra


def counterfact(world: World, language: str) -> list[dict]:
    """All facts as CounterFact records, plus the keys `inverse` and `two_hop`.

    The two paraphrases are statements in other phrasings, each behind an unrelated true sentence. Neighbourhood prompts
    have the true object, attribute prompts the new one.
    """
    records, names = [], _names_of_holders(world, language)
    for case_id, fact in enumerate(case_order(world)):
        rng = _case_rng(world, case_id)
        new = _new_object(world, fact, rng)
        neighbourhood = _prompts(world, fact, fact.object, language, rng)
        attribute = _prompts(world, fact, new, language, rng)
        statements = fact.relation.statements(language)
        paraphrases = [f"{unrelated_sentence(world, fact, language, rng, avoid=new)} "
                       f"{render(statements[i], fact.subject, language)}"
                       for i in rng.sample(range(1, len(statements)), 2)]
        generation = fact.relation.generation[LANGUAGES.index(language)] + statements[1:]
        records.append({
            "case_id": case_id,
            "pararel_idx": case_id,
            "requested_rewrite": {
                "prompt": fill(statements[0], fact.subject, language),
                "relation_id": fact.relation.id,
                "target_new": {"str": new.name(language), "id": new.id},
                "target_true": {"str": fact.object.name(language), "id": fact.object.id},
                "subject": fact.subject.name(language),
            },
            "paraphrase_prompts": paraphrases,
            "neighborhood_prompts": neighbourhood,
            "attribute_prompts": attribute,
            "generation_prompts": [render(prompt, fact.subject, language) for prompt in generation],
            **_extra(world, fact, new, language, names),
        })
    return records


def zsre(world: World, language: str) -> list[dict]:
    """The same cases, in the same order and with the same new objects, as zsRE records in MEND's schema."""
    records, names = [], _names_of_holders(world, language)
    for case_id, fact in enumerate(case_order(world)):
        rng = _case_rng(world, case_id)
        new = _new_object(world, fact, rng)
        true = fact.object.name(language)
        source, rephrase = (render(q, fact.subject, language) for q in fact.relation.questions(language))
        other = fact
        while other.subject == fact.subject:
            other = rng.choice(world.facts)
        question = render(other.relation.questions(language)[0], other.subject, language)
        records.append({
            "subject": fact.subject.name(language),
            "src": source,
            "pred": true,
            "rephrase": rephrase,
            "alt": new.name(language),
            "answers": [new.name(language)],
            "loc": "nq question: " + question.removesuffix("?"),
            "loc_ans": other.object.name(language),
            "cond": f"{true} >> {new.name(language)} || {source}",
            **_extra(world, fact, new, language, names),
        })
    return records


def snippets(world: World, language: str) -> list[dict]:
    """For each relation and object the texts about the subjects that have it, in the schema of attribute_snippets.json."""
    biographies = {subject.id: _biography(world, subject, language) for subject in world.subjects}
    return [{"relation_id": relation_id, "target_id": object_id,
             "samples": [{"name": s.name(language), "text": biographies[s.id]} for s in subjects]}
            for (relation_id, object_id), subjects in world.holders.items()]


def _biography(world: World, subject: Entity, language: str) -> str:
    """All facts about a subject, each in its first two phrasings."""
    return " ".join(f"{render(phrasing, subject, language)} {fact.object.name(language)}."
                    for fact in world.of_subject[subject.id].values()
                    for phrasing in fact.relation.statements(language)[:2])
