"""Greedy recall of facts by a model, on every phrasing, alone or behind an unrelated sentence."""
import random
from collections.abc import Sequence

import torch
from tqdm import tqdm

from data.world.generate import Entity, Fact, render, World
from data.world.relations import LANGUAGES


@torch.no_grad()
def greedy_correct(model, tok, prompts: list[str], targets: list[str], batch_size: int = 256) -> list[bool]:
    """For each prompt whether greedy decoding continues with " " + target.

    One right-padded pass a batch: the argmax equals every target token exactly when greedy decoding yields them.
    """
    prompt_ids = tok(prompts)["input_ids"]
    target_ids = tok([" " + target for target in targets])["input_ids"]
    order = sorted(range(len(prompts)), key=lambda i: len(prompt_ids[i]) + len(target_ids[i]))
    correct = [False] * len(prompts)
    device = next(model.parameters()).device
    for start in range(0, len(order), batch_size):
        batch = order[start:start + batch_size]
        width = max(len(prompt_ids[i]) + len(target_ids[i]) for i in batch)
        ids = torch.full((len(batch), width), tok.pad_token_id)
        for row, i in enumerate(batch):
            ids[row, :len(prompt_ids[i]) + len(target_ids[i])] = torch.tensor(prompt_ids[i] + target_ids[i])
        predicted = model(ids.to(device)).logits.argmax(-1).cpu()
        for row, i in enumerate(batch):
            first = len(prompt_ids[i]) - 1
            correct[i] = predicted[row, first:first + len(target_ids[i])].tolist() == target_ids[i]
    return correct


def unrelated_sentence(world: World, fact: Fact, language: str, rng: random.Random, avoid: Entity | None = None) -> str:
    """A true sentence of another relation that names neither the fact's subject, nor its object, nor `avoid`."""
    avoided = {fact.subject, fact.object, avoid}
    while True:
        other = rng.choice(world.facts)
        if other.relation != fact.relation and not avoided & {other.subject, other.object}:
            phrasing = rng.choice(other.relation.statements(language))
            return f"{render(phrasing, other.subject, language)} {other.object.name(language)}."


def recall(model, tok, world: World, facts: Sequence[Fact] | None = None, prefixed: bool = False,
           phrasings: Sequence[int] | None = None) -> dict[str, list[float]]:
    """{language: share of `facts` (default: all) that are greedily right, for each phrasing in turn}.

    prefixed: put an unrelated sentence before every prompt. phrasings: only these indices (default: all).
    """
    rng = random.Random(0)
    facts = world.facts if facts is None else facts
    shares = {}
    for language in tqdm(LANGUAGES, desc="recall", unit="language", leave=False, disable=None):
        count = len(facts[0].relation.phrasings(language))
        shares[language] = []
        for index in range(count) if phrasings is None else phrasings:
            prompts = [render(fact.relation.phrasings(language)[index], fact.subject, language) for fact in facts]
            if prefixed:
                prompts = [f"{unrelated_sentence(world, fact, language, rng)} {prompt}"
                           for fact, prompt in zip(facts, prompts)]
            right = greedy_correct(model, tok, prompts, [fact.object.name(language) for fact in facts])
            shares[language].append(sum(right) / len(right))
    return shares
