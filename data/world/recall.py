"""Greedy recall of facts by a model, on every phrasing, alone or behind an unrelated sentence."""
import random

import torch
from tqdm import tqdm

from data.world.generate import Entity, Fact, render, World
from data.world.relations import LANGUAGES


@torch.no_grad()
def greedy_correct(model, tok, prompts: list[str], targets: list[str], batch_size: int = 256) -> list[bool]:
    """For each prompt whether greedy decoding continues with " " + target.

    One right-padded pass a batch: the argmax equals every target token exactly when greedy decoding yields them.
    """
    heads = tok(prompts)["input_ids"]
    tails = tok([" " + target for target in targets])["input_ids"]
    order = sorted(range(len(prompts)), key=lambda i: len(heads[i]) + len(tails[i]))
    correct = [False] * len(prompts)
    device = next(model.parameters()).device
    for start in range(0, len(order), batch_size):
        chosen = order[start:start + batch_size]
        width = max(len(heads[i]) + len(tails[i]) for i in chosen)
        ids = torch.full((len(chosen), width), tok.pad_token_id)
        for row, i in enumerate(chosen):
            ids[row, :len(heads[i]) + len(tails[i])] = torch.tensor(heads[i] + tails[i])
        guess = model(ids.to(device)).logits.argmax(-1).cpu()
        for row, i in enumerate(chosen):
            begin = len(heads[i]) - 1
            correct[i] = guess[row, begin:begin + len(tails[i])].tolist() == tails[i]
    return correct


def unrelated_sentence(world: World, fact: Fact, language: str, rng: random.Random, avoid: Entity | None = None) -> str:
    """A true sentence of another relation that names neither the fact's subject, nor its object, nor `avoid`."""
    named = {fact.subject, fact.object, avoid}
    while True:
        other = rng.choice(world.facts)
        if other.relation != fact.relation and not named & {other.subject, other.object}:
            phrasing = rng.choice(other.relation.statements(language))
            return f"{render(phrasing, other.subject, language)} {other.object.name(language)}."


def recall(model, tok, world: World, facts=None, languages=LANGUAGES, prefixed: bool = False, seed: int = 0,
           phrasings=None) -> dict[str, list[float]]:
    """language -> share of `facts` (default: all) that are greedily right, for each phrasing index in turn.

    prefixed: put an unrelated sentence before every prompt. phrasings: only these indices (default: all).
    """
    rng = random.Random(seed)
    facts = world.facts if facts is None else facts
    shares = {}
    for language in tqdm(languages, desc="recall", unit="language", leave=False, disable=None):
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
