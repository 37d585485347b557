"""CounterFact's metrics: is the new target now likelier than the true one, where it should be and nowhere else?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.records import Record
from editors.core.prompts import encode_target, fill

from .scoring import Plan, ask, generated_metrics, prompt_ids


def counterfact_metrics(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, records: Sequence[Record], generated: bool = True,
    contains_length: int = 0,
) -> list[dict[str, Any]]:
    """For each record, for the groups ``rewrite``, ``paraphrase``, ``neighborhood`` and ``attribute``, one entry a prompt:

    * ``<group>_prompts_probs``: {"target_new", "target_true"}: the *negative log-probability* per target token of
      " " + target behind the prompt, in nats (the name is the published one).
    * ``<group>_prompts_correct``: every token of the expected target is the most probable one after the true tokens before
      it. Expected are ``target_true`` for neighborhood, ``target_new`` for the others.
    * ``<group>_prompts_generated``: the model's own greedy continuation, a few tokens longer than the expected target;
      ``..._generated_exact``: it is the expected target, and then the model stops (see :func:`scoring.compare`);
      ``..._generated_starts``: it starts with the expected target. Not with ``generated`` False.
    * ``<group>_prompts_generated_contains``: the expected target is anywhere in the greedy continuation to ``contains_length``
      tokens, with the prompt's (the unified-editing code's ``_prompts_correct``, with 50). Not with 0.

    Definitions: Meng et al. 2022, ROME, section 4 and appendix; as the evaluation of MEMIT computes them, except that
    attribute prompts are scored too (as in ROME), and that generation is an addition.
    """
    target = cache(lambda text: tuple(encode_target(tok, " " + text)))
    prompt = cache(lambda text: prompt_ids(tok, text))
    plan = Plan(length=contains_length)
    for record in records:
        for group, texts in _groups(record).items():
            for text in texts:
                plan.score(prompt(text), target(record.target_new.str))
                plan.score(prompt(text), target(record.target_true.str))
                if generated:
                    plan.generate(prompt(text), target(_expected(record, group)))
    answers = ask(model, tok, plan)

    results = []
    for record in records:
        new, true = target(record.target_new.str), target(record.target_true.str)
        metrics: dict[str, Any] = {}
        for group, texts in _groups(record).items():
            expected = target(_expected(record, group))
            rows = [prompt(text) for text in texts]
            metrics[f"{group}_prompts_probs"] = [
                {"target_new": answers.scores[row, new].nll, "target_true": answers.scores[row, true].nll} for row in rows]
            metrics[f"{group}_prompts_correct"] = [answers.scores[row, expected].predicted == expected for row in rows]
            if generated:
                texts = [answers.texts[row] for row in rows]
                metrics |= generated_metrics(group, texts, [_expected(record, group)] * len(rows))
                if contains_length:
                    metrics[f"{group}_prompts_generated_contains"] = [
                        _expected(record, group).strip() in answers.long_texts[row] for row in rows]
        results.append(metrics)
    return results


def _groups(record: Record) -> dict[str, Sequence[str]]:
    groups = {"rewrite": [fill(record.prompt, record.subject)], "paraphrase": record.paraphrase_prompts,
              "neighborhood": record.neighborhood_prompts, "attribute": record.attribute_prompts}
    return {name: prompts for name, prompts in groups.items() if prompts or name != "attribute"}


def _expected(record: Record, group: str) -> str:
    return (record.target_true if group == "neighborhood" else record.target_new).str
