"""CounterFact's metrics: is the new target now likelier than the true one, where it should be and nowhere else?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from data.records import Record, Variant, VariantRecord
from editors.core.prompts import fill

from experiments.metrics.scoring import ask, generated_metrics, Ids, Plan, Tokens

Pairing = Literal["matched", "legacy"]
OWN_ANSWERS = ("portability", "locality")
"""Groups whose prompts each have a target of their own."""


def counterfact_metrics(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, records: Sequence[Record], generated: bool = True,
    contains_length: int = 0, pairing: Pairing = "matched",
) -> list[dict[str, Any]]:
    """CounterFact's metrics of each record.

    For the groups ``rewrite``, ``paraphrase``, ``neighborhood`` and ``attribute``, one entry a prompt:

    * ``<group>_prompts_probs``: {"target_new", "target_true"}: the *negative log-probability* per target token of
      the target as it continues the prompt, in nats (the name is the published one).
      Not for records without a true target, of which neighborhood prompts are not asked either.
    * ``<group>_prompts_correct``: every token of the expected target is the most probable one after the true tokens before
      it. Expected are ``target_true`` for neighborhood, ``target_new`` for the others.
    * ``<group>_prompts_generated``: the model's own greedy continuation, a few tokens longer than the expected target;
      ``..._generated_exact``: it is the expected target, and then the model stops (see :func:`scoring.compare`);
      ``..._generated_starts``: it starts with the expected target. Not with ``generated`` False.
    * ``<group>_prompts_generated_contains``: the expected target is anywhere in the greedy continuation to ``contains_length``
      tokens, with the prompt's (the unified-editing code's ``_prompts_correct``, with 50). Not with 0.

    For ``portability`` and ``locality`` (KnowEdit), whose questions have answers of their own, all but the first.

    Definitions: Meng et al. 2022, ROME, section 4 and appendix; as the evaluation of MEMIT computes them, except that
    attribute prompts are scored too (as in ROME), and that generation is an addition.

    Prompts in two variants (:class:`VariantRecord`) are asked with ``target_new`` in the wording for it, and with
    ``target_true`` in the other. ``pairing`` "legacy" replays MEMAT's published evaluation: the variants for ``target_true``,
    then those for ``target_new``, in one list whose even places are asked with ``target_new`` and whose odd ones with
    ``target_true``; neighbours in the list are compared, so that each wording meets the other's object, and one paraphrase or
    neighbour another.
    """
    tokens = Tokens(tok)
    groups_of_records = [_asked_groups(tokens, record, pairing) for record in records]
    plan = Plan(length=contains_length)
    for groups in groups_of_records:
        for questions in groups.values():
            for question in questions:
                for pair in (question.new, question.true, question.expected):
                    if pair is not None:
                        plan.score(*pair)
                if generated:
                    plan.generate(*question.expected)
    answers = ask(model, tok, plan)

    results = []
    for record, groups in zip(records, groups_of_records):
        metrics: dict[str, Any] = {}
        for group, questions in groups.items():
            if record.target_true is not None and group not in OWN_ANSWERS:
                metrics[f"{group}_prompts_probs"] = [
                    {"target_new": answers.scores[question.new].nll, "target_true": answers.scores[question.true].nll}
                    for question in questions]
            metrics[f"{group}_prompts_correct"] = [
                answers.scores[question.expected].predicted == question.expected[1] for question in questions]
            if generated:
                rows, expected = [question.expected[0] for question in questions], [question.answer for question in questions]
                metrics |= generated_metrics(group, [answers.texts[row] for row in rows], expected)
                if contains_length:
                    metrics[f"{group}_prompts_generated_contains"] = [
                        answer.strip() in answers.long_texts[row] for answer, row in zip(expected, rows)]
        results.append(metrics)
    return results


@dataclass(frozen=True)
class _Question:
    """A prompt with each of the two targets behind it: (token ids of the prompt, of the target)."""

    new: tuple[Ids, Ids] | None
    true: tuple[Ids, Ids] | None
    """None: no such target, or a question with an answer of its own."""
    expected: tuple[Ids, Ids]
    """That which the group asks for."""
    answer: str
    """Its target."""


def _asked_groups(tokens: Tokens, record: Record, pairing: Pairing) -> dict[str, list[_Question]]:
    """{group: its questions}. Raises UserError naming the case for a target that the tokenizer has nothing for."""
    def with_target(prompt: str, target: str) -> tuple[Ids, Ids]:
        try:
            return tokens.prompt(prompt), tokens.target(prompt, target, record.joined)
        except UserError as error:
            raise UserError(f"case {record.case_id}: {error}") from None

    groups: dict[str, list[_Question]] = {}
    for group, pairs in _groups(record, pairing).items():
        groups[group] = []
        for for_new, for_true in pairs:
            new = with_target(for_new, record.target_new.str)
            true = None if record.target_true is None else with_target(for_true, record.target_true.str)
            asked = record.target_true if group == "neighborhood" else record.target_new
            groups[group].append(_Question(new, true, true if group == "neighborhood" else new, asked.str))
    for group in OWN_ANSWERS:
        if questions := getattr(record, group):
            groups[group] = [_Question(None, None, with_target(question.prompt, question.target), question.target)
                             for question in questions]
    return groups


def _groups(record: Record, pairing: Pairing) -> dict[str, list[tuple[str, str]]]:
    """{group: pairs of (prompt to score target_new behind, prompt to score target_true behind)}."""
    for_new, for_true = _prompts(record), _prompts(record.worded_for_true())
    if pairing == "legacy" and isinstance(record, VariantRecord):
        lists = {group: [*for_true[group], *for_new[group]] for group in for_new}
        paired = {group: list(zip(prompts[::2], prompts[1::2])) for group, prompts in lists.items()}
    else:
        paired = {group: list(zip(for_new[group], for_true[group])) for group in for_new}
    if record.target_true is None:
        del paired["neighborhood"]  # nothing says what should stay
    return {group: pairs for group, pairs in paired.items() if pairs or group != "attribute"}


def _prompts(wording: Record | Variant) -> dict[str, Sequence[str]]:
    return {"rewrite": [fill(wording.prompt, wording.subject)], "paraphrase": wording.paraphrase_prompts,
            "neighborhood": wording.neighborhood_prompts, "attribute": wording.attribute_prompts}
