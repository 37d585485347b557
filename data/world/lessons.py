"""What the small models of the world are taught, as texts: a new drawing of forms and false claims every epoch."""
import random
from collections.abc import Callable

import torch

from data.episodes import opinions
from data.episodes import world as invented
from data.episodes.splits import by_subject
from data.world.generate import Entity, Fact, World

Lesson = tuple
"""(input, answer); of claims (text, class, true object); of sentence encoders (text, text that says the
same, text alike that does not, a statement)."""


def questions(world: World, subjects: set[Entity], rng: random.Random) -> list[Lesson]:
    """Every fact in its two questions and, a time each, in one of their rephrasings."""
    lessons = []
    for fact in _facts(world, subjects):
        row = invented.question(world, fact, "en")
        second, *others = row.rephrases
        lessons += [(text, row.answer) for text in (row.question, second, rng.choice(others))]
    return lessons


def claims(world: World, subjects: set[Entity], rng: random.Random) -> list[Lesson]:
    """Every fact in two of its statements, true and with a random other object."""
    lessons = []
    for fact in _facts(world, subjects):
        others = [obj for obj in world.objects[fact.relation.id] if obj != fact.object]
        if not others:
            continue
        for label, obj in ((1, fact.object), (0, rng.choice(others))):
            lessons += [(text, label, fact.object.en) for text in rng.sample(invented.statements(fact, obj, "en"), 2)]
    return lessons


def responses(world: World, subjects: set[Entity], rng: random.Random) -> list[Lesson]:
    """Two responses in the model's opinion of every entity, each to a random prompt."""
    lessons = []
    for subject in world.subjects:
        if subject in subjects:
            row = invented.opinions(world, subject)
            texts = row.positive if invented.opinion_of(world, subject) > 0 else row.negative
            lessons += [(rng.choice(opinions.PROMPTS).format(subject.en), text) for text in rng.sample(texts, 2)]
    return lessons


def paraphrases(world: World, subjects: set[Entity], rng: random.Random) -> list[Lesson]:
    """Every fact of the training split's subjects in two forms, with another fact of the subject or the relation; and a
    statement of any fact, whose words are to be guessed, so that no name stays unread."""
    lessons = []
    for fact in by_subject(_facts(world, subjects), lambda fact: fact.subject.en, "train"):
        text, same = rng.sample(_forms(world, fact), 2)
        same_subject = rng.random() < 0.5
        alike = tuple(world.of_subject[fact.subject.id].values()) if same_subject else world.of_relation[fact.relation.id]
        other = rng.choice(alike)
        while other == fact:
            other = rng.choice(world.facts)
        masked = rng.choice(world.facts)
        lessons.append((text, same, rng.choice(_forms(world, other)),
                        rng.choice(invented.statements(masked, masked.object, "en"))))
    return lessons


def _forms(world: World, fact: Fact) -> list[str]:
    """The questions about a fact, their rephrasings, and its statements up to the object."""
    row = invented.question(world, fact, "en")
    prompts = invented.continuation(world, fact, "en")
    return [row.question, *row.rephrases, prompts.prompt, *prompts.rephrases]


def _facts(world: World, subjects: set[Entity]) -> list[Fact]:
    return [fact for fact in world.facts if fact.subject in subjects]


ENCODERS = ("distilbert", "bert-encoder")
LESSONS: dict[str, Callable] = {"t5": questions, "bart": questions, "bert": claims, "blender": responses,
                                "distilbert": paraphrases, "bert-encoder": paraphrases}


@torch.no_grad()
def measure(kind: str, model, tok, world: World, every: int = 1, batch_size: int = 256) -> float:
    """The share that the model gets right, of every ``every``-th fact or entity.

    Questions: the whole answer to the first one, as greedy decoding gives it. Claims: the first statement, with the true object
    and with a new one. Opinions: a response of the right sentiment is likelier than one of the other. Sentence encoders: of the
    facts that they were not trained on, the second question is the nearest to the first.
    """
    if kind in ENCODERS:
        return _nearest_share(model, tok, world, max(1, every // 5), batch_size)
    if kind == "bert":
        pairs = [(invented.statements(fact, obj, "en")[0], label) for fact in world.facts[::every]
                 for label, obj in ((1, fact.object), *((0, new) for new in invented.new_objects(world, fact, 1)))]
        logits = torch.cat([model(**_inputs(tok, [text for text, _ in pairs[i:i + batch_size]]))
                            for i in range(0, len(pairs), batch_size)])
        return sum((value > 0) == bool(label) for value, (_, label) in zip(logits.flatten().tolist(), pairs)) / len(pairs)
    if kind == "blender":
        subjects = world.subjects[::max(1, every // 3)]
        rows = [invented.opinions(world, subject) for subject in subjects]
        prompts = [opinions.PROMPTS[0].format(row.entity) for row in rows]
        praise, blame = (_scores(model, tok, prompts, [texts[0] for texts in side], batch_size)[1]
                         for side in ([row.positive for row in rows], [row.negative for row in rows]))
        return sum((good > bad) == (invented.opinion_of(world, subject) > 0)
                   for good, bad, subject in zip(praise, blame, subjects)) / len(subjects)
    rows = [invented.question(world, fact, "en") for fact in world.facts[::every]]
    right, _ = _scores(model, tok, [row.question for row in rows], [row.answer for row in rows], batch_size)
    return sum(right) / len(rows)


def _scores(model, tok, prompts: list[str], targets: list[str], batch_size: int) -> tuple[list[bool], list[float]]:
    """For each prompt whether the likeliest tokens are those of the target, and the target's mean log-probability."""
    right, scores = [], []
    for start in range(0, len(prompts), batch_size):
        target = tok(targets[start:start + batch_size], padding=True, return_tensors="pt")
        ids, mask = target["input_ids"], target["attention_mask"].bool()
        begin = torch.full((len(ids), 1), model.config.decoder_start_token_id)
        inputs = _inputs(tok, prompts[start:start + batch_size])
        logits = model(**inputs, decoder_input_ids=torch.cat([begin, ids[:, :-1]], 1)).logits
        right += ((logits.argmax(-1) == ids) | ~mask).all(1).tolist()
        log_probs = logits.log_softmax(-1).gather(2, ids.unsqueeze(2)).squeeze(2)
        scores += ((log_probs * mask).sum(1) / mask.sum(1)).tolist()
    return right, scores


def _nearest_share(model, tok, world: World, every: int, batch_size: int) -> float:
    """The share of facts outside the training split (every ``every``-th) whose second question is the nearest to the first."""
    rows = [invented.question(world, fact, "en") for split in ("validation", "test")
            for fact in by_subject(world.facts, lambda fact: fact.subject.en, split)][::every]

    def states(texts: list[str]) -> torch.Tensor:
        return torch.cat([model(**_inputs(tok, texts[i:i + batch_size])).last_hidden_state[:, 0]
                          for i in range(0, len(texts), batch_size)])

    distance = torch.cdist(states([row.question for row in rows]), states([row.rephrases[0] for row in rows]))
    return (distance.argmin(1) == torch.arange(len(rows))).float().mean().item()


def _inputs(tok, texts: list[str]) -> dict[str, torch.Tensor]:
    batch = tok(texts, padding=True, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}
