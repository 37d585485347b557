"""zsRE's metrics: how many tokens of an answer the model would say, given the ones before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from data.records import Record
from data.zsre import locality
from editors.core.prompts import encode_target, fill, Ids

from experiments.metrics.scoring import ask, generated_metrics, Plan, Tokens


def zsre_metrics(model: PreTrainedModel, tok: PreTrainedTokenizerBase, records: Sequence[Record]) -> list[dict[str, Any]]:
    """zsRE's metrics of each record: for the groups ``rewrite``, ``paraphrase`` and ``neighborhood``:

    * ``<group>_prompts_correct``: one bool a token of the answer, the questions of a group one after another. For token i the
      model reads the question and the answer's tokens before i, and its most probable next token is compared with token i.
      The answer is ``target_new``; for neighborhood that of the locality question.
    * ``<group>_prompts_generated``, ``..._generated_exact``, ``..._generated_starts``: as for CounterFact, one a question.

    Definition: the evaluation of MEMIT (Meng et al. 2023), which makes text of the tokens before i and tokenises it again. Here
    the ids stay ids. Where a record has its locality answer as published, one prompt a token, and half of a character is
    U+FFFD in it, that one token is asked for behind that text, so that published figures of GPT-2 stay what they are.
    """
    tokens = Tokens(tok)
    groups_of_records = [_groups(tokens, record) for record in records]
    plan = Plan()
    for groups in groups_of_records:
        for questions in groups.values():
            for question in questions:
                for row, target, _ in question.places:
                    plan.score(row, target)
                plan.generate(question.prompt, question.ids)
    answers = ask(model, tok, plan)
    results: list[dict[str, Any]] = []
    for groups in groups_of_records:
        results.append({})
        for group, questions in groups.items():
            results[-1][f"{group}_prompts_correct"] = [
                answers.scores[row, target].predicted[i] == target[i]
                for question in questions for row, target, i in question.places]
            texts = [answers.texts[question.prompt] for question in questions]
            results[-1] |= generated_metrics(group, texts, [question.answer for question in questions])
    return results


@dataclass(frozen=True)
class _Question:
    prompt: Ids
    ids: Ids
    """Of the answer."""
    answer: str
    places: list[tuple[Ids, Ids, int]]
    """Of each token: (row read, target behind it, position in the target)."""


def _groups(tokens: Tokens, record: Record) -> dict[str, list[_Question]]:
    """{group: its questions}. Raises UserError naming the case for an answer that the tokenizer has nothing for."""
    answer = record.target_new.str
    groups = {
        "rewrite": [(fill(record.prompt, record.subject), answer)],
        "paraphrase": [(question, answer) for question in record.paraphrase_prompts],
        "neighborhood": [(prompt.prompt, prompt.target) for prompt in locality(record)],
    }
    try:
        asked = {group: [_question(tokens, *question, record.joined) for question in questions]
                 for group, questions in groups.items()}
        for question in asked["neighborhood"]:
            published = record.neighborhood_prompts if len(record.neighborhood_prompts) == len(question.ids) else ()
            for i, prompt in enumerate(published):
                if "\ufffd" in prompt.prompt + prompt.target:
                    row, first = tokens.prompt(prompt.prompt), encode_target(tokens.tok, prompt.target)[0]
                    question.places[i] = row, (first,), 0
    except UserError as error:
        raise UserError(f"case {record.case_id}: {error}") from None
    return asked


def _question(tokens: Tokens, prompt: str, answer: str, joined: bool | None) -> _Question:
    row, ids = tokens.prompt(prompt), tokens.target(prompt, answer, joined)
    return _Question(row, ids, answer, [(row, ids, i) for i in range(len(ids))])

