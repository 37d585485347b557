"""zsRE's metrics: how many tokens of an answer the model would say, given the ones before."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.records import Record
from editors.core.prompts import encode_target, fill

from experiments.metrics.scoring import Answers, ask, generated_metrics, Ids, Plan, prompt_ids


def zsre_metrics(model: PreTrainedModel, tok: PreTrainedTokenizerBase, records: Sequence[Record]) -> list[dict[str, Any]]:
    """zsRE's metrics of each record: for the groups ``rewrite``, ``paraphrase`` and ``neighborhood``:

    * ``<group>_prompts_correct``: one bool a token of the answer, the prompts of a group one after another. For token i the
      model reads the prompt and the answer's tokens before i *as text*, and its most probable next token is compared with
      the first token of the decoded i-th. The answer is " " + ``target_new``; for neighborhood the one of the locality
      question, whose prompts the data set gives token by token.
    * ``<group>_prompts_generated``, ``..._generated_exact``, ``..._generated_starts``: as for CounterFact, one a question.

    Definition: the evaluation of MEMIT (Meng et al. 2023).
    """
    prompt = cache(lambda text: prompt_ids(tok, text))
    first = cache(lambda text: encode_target(tok, text)[0])
    groups_of_records = [_questions(tok, record) for record in records]
    plan = Plan()
    for groups in groups_of_records:
        for questions in groups.values():
            for steps, answer in questions:
                for row, target, _ in _positions(steps, prompt, first):
                    plan.score(row, target)
                plan.generate(prompt(steps[0][0]), tuple(encode_target(tok, answer)))
    answers = ask(model, tok, plan)
    results: list[dict[str, Any]] = []
    for groups in groups_of_records:
        results.append({})
        for group, questions in groups.items():
            results[-1] |= _group_metrics(group, questions, answers, prompt, first)
    return results


Steps = list[tuple[str, str]]
"""(text read, decoded token expected next) for each token of an answer."""


def _questions(tok: PreTrainedTokenizerBase, record: Record) -> dict[str, list[tuple[Steps, str]]]:
    """{group: (steps, whole answer) of each of its questions}."""
    answer = " " + record.target_new.str
    ids = encode_target(tok, answer)
    decoded = [tok.decode(ids[:i], clean_up_tokenization_spaces=False) for i in range(len(ids))]
    tokens = [tok.decode([i], clean_up_tokenization_spaces=False) for i in ids]

    def steps(question: str) -> tuple[Steps, str]:
        return [(question + before, token) for before, token in zip(decoded, tokens)], answer

    locality = [(p.prompt, p.target) for p in record.neighborhood_prompts]
    return {
        "rewrite": [steps(fill(record.prompt, record.subject))],
        "paraphrase": [steps(question) for question in record.paraphrase_prompts],
        "neighborhood": [(locality, "".join(token for _, token in locality))] if locality else [],
    }


def _positions(steps: Steps, prompt, first) -> Iterable[tuple[Ids, Ids, int]]:
    """(row, target, position) of each step: its choice is the arg max at that position of the target behind the row.

    A step whose text tokenises to the first text's tokens followed by the tokens expected so far is a position in one
    shared pass. Where it doesn't (half of a character decodes to U+FFFD), the step is a row of its own.
    """
    row = prompt(steps[0][0])
    expected = tuple(first(token) for _, token in steps)
    for i, (text, _) in enumerate(steps):
        if prompt(text) == row + expected[:i]:
            yield row, expected, i
        else:
            yield prompt(text), expected[i:i + 1], 0


def _group_metrics(group: str, questions: list[tuple[Steps, str]], answers: Answers, prompt, first) -> dict[str, list]:
    correct = [answers.scores[row, target].predicted[position] == target[position]
               for steps, _ in questions for row, target, position in _positions(steps, prompt, first)]
    texts = [answers.texts[prompt(steps[0][0])] for steps, _ in questions]
    return {f"{group}_prompts_correct": correct, **generated_metrics(group, texts, [answer for _, answer in questions])}
