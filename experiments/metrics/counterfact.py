"""CounterFact's metrics: is the new target now likelier than the true one, where it should be and nowhere else?"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.records import Record, Variant, VariantRecord
from editors.core.prompts import encode_target, fill

from experiments.metrics.scoring import ask, generated_metrics, Ids, Plan, prompt_ids

Pairing = Literal["matched", "legacy"]


def counterfact_metrics(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, records: Sequence[Record], generated: bool = True,
    contains_length: int = 0, pairing: Pairing = "matched",
) -> list[dict[str, Any]]:
    """CounterFact's metrics of each record.

    For the groups ``rewrite``, ``paraphrase``, ``neighborhood`` and ``attribute``, one entry a prompt:

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

    Prompts in two variants (:class:`VariantRecord`) are asked with ``target_new`` in the wording for it, and with
    ``target_true`` in the other. ``pairing`` "legacy" replays MEMAT's published evaluation: the variants for ``target_true``,
    then those for ``target_new``, in one list whose even places are asked with ``target_new`` and whose odd ones with
    ``target_true``; neighbours in the list are compared, so that each wording meets the other's object, and one paraphrase or
    neighbour another.
    """
    target = cache(lambda text: tuple(encode_target(tok, " " + text)))
    prompt = cache(lambda text: prompt_ids(tok, text))
    groups_of_records = [
        {group: [(prompt(new), prompt(true)) for new, true in pairs] for group, pairs in _groups(record, pairing).items()}
        for record in records]
    plan = Plan(length=contains_length)
    for record, groups in zip(records, groups_of_records):
        for group, pairs in groups.items():
            for for_new, for_true in pairs:
                plan.score(for_new, target(record.target_new.str))
                plan.score(for_true, target(record.target_true.str))
                if generated:
                    row, expected = _expected(record, group, for_new, for_true)
                    plan.generate(row, target(expected))
    answers = ask(model, tok, plan)

    results = []
    for record, groups in zip(records, groups_of_records):
        new, true = target(record.target_new.str), target(record.target_true.str)
        metrics: dict[str, Any] = {}
        for group, pairs in groups.items():
            expectations = [_expected(record, group, *pair) for pair in pairs]
            metrics[f"{group}_prompts_probs"] = [
                {"target_new": answers.scores[for_new, new].nll, "target_true": answers.scores[for_true, true].nll}
                for for_new, for_true in pairs]
            metrics[f"{group}_prompts_correct"] = [
                answers.scores[row, target(expected)].predicted == target(expected) for row, expected in expectations]
            if generated:
                texts, targets = [answers.texts[row] for row, _ in expectations], [expected for _, expected in expectations]
                metrics |= generated_metrics(group, texts, targets)
                if contains_length:
                    metrics[f"{group}_prompts_generated_contains"] = [
                        expected.strip() in answers.long_texts[row] for row, expected in expectations]
        results.append(metrics)
    return results


def _groups(record: Record, pairing: Pairing) -> dict[str, list[tuple[str, str]]]:
    """{group: pairs of (prompt to score target_new behind, prompt to score target_true behind)}."""
    for_new, for_true = _prompts(record), _prompts(record.worded_for_true())
    if pairing == "legacy" and isinstance(record, VariantRecord):
        lists = {group: [*for_true[group], *for_new[group]] for group in for_new}
        paired = {group: list(zip(prompts[::2], prompts[1::2])) for group, prompts in lists.items()}
    else:
        paired = {group: list(zip(for_new[group], for_true[group])) for group in for_new}
    return {group: pairs for group, pairs in paired.items() if pairs or group != "attribute"}


def _prompts(wording: Record | Variant) -> dict[str, Sequence[str]]:
    return {"rewrite": [fill(wording.prompt, wording.subject)], "paraphrase": wording.paraphrase_prompts,
            "neighborhood": wording.neighborhood_prompts, "attribute": wording.attribute_prompts}


def _expected(record: Record, group: str, for_new: Ids, for_true: Ids) -> tuple[Ids, str]:
    """(the prompt of the pair that the expected target should follow, the expected target)."""
    return (for_true, record.target_true.str) if group == "neighborhood" else (for_new, record.target_new.str)
