"""Downstream tasks put to a model: their prompts, two ways to read an answer, and the figures.

Prompts, read-outs and figures are those of the papers on unified editing (Gupta, Rao, Anumanchipalli 2024; Gupta, Sajnani,
Anumanchipalli 2024). Kept, since results depend on it: every byte of the prompts (also cola's trailing space and sst's
missing one), which substrings count as an answer, and that no answer is a class of its own to F1 and MCC. Changed: rte's
answers are the right way round (``legacy_rte_labels`` turns them back), and accuracies and intervals are given.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from data.downstream import Example
from editors.core.prompts import encode_target, Ids, pad_id, prompt_ids
from editors.core.modules import evaluating, longest_context

from experiments.metrics.classification import figures, wilson
from experiments.metrics.incremental import check_length, continue_rows
from experiments.metrics.scoring import end_tokens, score_targets
from experiments.metrics.sharing import SharedPrefix


@dataclass(frozen=True)
class Form:
    """The prompt format of a task. Braces are the example's fields, and ``{answer}`` its answer."""

    shot: str
    question: str
    words: tuple[str, ...]
    """The answer of each class."""
    looked_for: tuple[int, ...]
    """Classes, in the order in which their words are looked for in a generated text."""
    marker: str | None = None
    """What ends a question. Read is what stands behind its last occurrence; without one, a word needs a newline behind it."""
    reserve: int = 0
    """Tokens of the context that shots leave free, beside those of the question and the answer."""


_OPTIONS = "(A){0}{{options[0]}}\n(B){0}{{options[1]}}\n(C){0}{{options[2]}}\n(D){0}{{options[3]}}\n"
_DIALOGUE = "Q: Given the following: {article}\nWhich choice is correct?\n" + _OPTIONS.format("") + "Answer:"
_MMLU = "Question: {question}\n" + _OPTIONS.format(" ") + "Answer:"
_MRPC = "Are the sentences paraphrases of each other.\nSentence 1: {sentence1}\nSentence 2: {sentence2}\nAnswer:"
_COLA = "Is this sentence linguistically acceptable?\nSentence: {sentence}\nAnswer: "
_RTE = "{sentence1}\nquestion: {sentence2} True or False?\nanswer:"
_NLI = "{sentence1} entails the {sentence2} True or False? Answer:"
_SENTIMENT = ("For each snippet of text,label the sentiment of the text as positive or negative."
              "The answer should be exact 'positive' or 'negative'. text: {sentence} answer:")

FORMS = {
    "nli": Form(_NLI + " {answer}\n", _NLI, ("False", "True"), (1, 0), "Answer:"),
    "rte": Form(_RTE + " {answer}\n", _RTE, ("False", "True"), (0, 1), "answer:"),
    "mrpc": Form(_MRPC + " {answer}\n", _MRPC, ("No", "Yes"), (1, 0), "Answer:"),
    "sentiment_analysis": Form(_SENTIMENT + " {answer}\n", _SENTIMENT, ("negative", "positive"), (1, 0), "answer:"),
    "dialogue": Form(_DIALOGUE + " {answer}\n\n", _DIALOGUE, ("A", "B", "C", "D"), (0, 1, 2, 3), reserve=5),
    "cola": Form(_COLA + "{answer}\n", _COLA, ("No", "Yes"), (1, 0), "Answer:"),
    "sst": Form("Review : {sentence}\nSentiment : {answer}\n", "Review :{sentence}\nSentiment :", ("negative", "positive"),
                (1, 0), "Sentiment :"),
    "mmlu": Form(_MMLU + " {answer}\n", _MMLU, ("A", "B", "C", "D"), (0, 1, 2, 3)),
}


@dataclass(frozen=True)
class Question:
    """What a model is asked about one example."""

    prompt: str
    shots: int
    """Few-shot examples in the prompt."""
    answer: int
    """The right class, a place in the form's ``words``."""


@dataclass(frozen=True)
class Reading:
    """What a model answers."""

    generated: str
    """The greedy continuation of the prompt."""
    probs: tuple[float, ...]
    """Of each of the form's words behind the prompt: the geometric mean over its tokens."""


def downstream_metrics(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    task: str,
    shots: Sequence[Example],
    tests: Sequence[Example],
    gen_len: int = 3,
    legacy_rte_labels: bool = False,
    progress: Callable[[int], object] = lambda answered: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(figures of a task, what happened on each of its tests).

    task: a key of :data:`FORMS`. shots: examples to put before every question, as many as the model's context has room for.
    gen_len: tokens to generate. legacy_rte_labels: as published, "False" is the right answer to entailed rte pairs.
    progress: told how many more tests are done.

    Figures, shares of 1 unless they are counts: from the generated answer ``correct``, ``incorrect``, ``invalid`` (no answer
    found), ``total``, ``invalid_rate``, ``accuracy``, ``f1``, ``mcc``; from the likeliest of the label words ``correct_new``,
    ``incorrect_new``, ``accuracy_new``, ``f1_new``, ``mcc_new``; the rates also with ``_ci``, their 95 % interval
    (:mod:`experiments.metrics.classification`); ``majority``, what always giving the commonest answer scores; ``shots``, the
    fewest and most in a prompt; ``time`` in seconds.

    Raises UserError for a question that is longer than the model's context.
    """
    form, started = FORMS[task], time.perf_counter()
    flipped = task == "rte" and not legacy_rte_labels  # GLUE's class 0 is entailment, the form's class 1 is "True"
    classes = [1 - example.label if flipped else example.label for example in (*shots, *tests)]
    questions = make_questions(model, tok, task, list(zip(shots, classes)), list(zip(tests, classes[len(shots):])), gen_len)
    with evaluating(model):
        readings = read_answers(model, tok, questions, form.words, gen_len, progress)
    generated = [parse(form, reading.generated) for reading in readings]
    likeliest = [choose(reading.probs) for reading in readings]
    true = [question.answer for question in questions]
    results = _results(true, generated, likeliest, len(form.words))
    results["shots"] = [min(q.shots for q in questions), max(q.shots for q in questions)]
    results["time"] = time.perf_counter() - started
    outputs = [_output(form, *test) for test in zip(tests, questions, readings, generated, likeliest)]
    return results, outputs


def make_questions(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, task: str,
    shots: Sequence[tuple[Example, int]], tests: Sequence[tuple[Example, int]], gen_len: int,
) -> list[Question]:
    """The question about each test. shots, tests: with their classes.

    Shots are put in, in their order, as long as their tokens (each with the BOS that a tokenizer adds) leave room for the
    question, ``gen_len`` tokens (or the longest answer's, if that has more) and the form's reserve in the model's context.
    """
    form, context = FORMS[task], longest_context(model) or math.inf
    gen_len = max(gen_len, *(len(encode_target(tok, f" {word}")) for word in form.words))
    texts = [form.shot.format(answer=form.words[answer], **example.fields) for example, answer in shots]
    lengths = [len(prompt_ids(tok, text)) for text in texts]
    questions = []
    for number, (example, answer) in enumerate(tests):
        question = form.question.format(**example.fields)
        room = context - len(prompt_ids(tok, question)) - gen_len
        if room < 0:
            raise UserError(f"task {task}, test {number}: its question has {context - room - gen_len} tokens and can't be "
                            f"answered with {gen_len} more within the model's context of {context}; leave the task out")
        n_shots = 0
        while n_shots < len(texts) and room - lengths[n_shots] >= form.reserve:
            room -= lengths[n_shots]
            n_shots += 1
        # Joined, texts may have a token or two more than one by one.
        while n_shots and len(prompt_ids(tok, "".join(texts[:n_shots]) + question)) + gen_len > context:
            n_shots -= 1
        questions.append(Question("".join(texts[:n_shots]) + question, n_shots, answer))
    return questions


def read_answers(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, questions: Sequence[Question], words: Sequence[str], gen_len: int,
    progress: Callable[[int], object] = lambda answered: None,
) -> list[Reading]:
    """The model's answers to all questions. Each prompt runs once, and what many begin with, once for all of them.

    A word's tokens are those that ``prompt + " " + word`` has beyond the prompt's number, whatever the tokenizer.
    """
    prompts = [prompt_ids(tok, question.prompt) for question in questions]
    targets: dict[Ids, set[Ids]] = {prompt: set() for prompt in prompts}
    word_places: list[list[tuple[Ids, Ids]]] = []  # of each question: (row, target) of each word
    for question, prompt in zip(questions, prompts):
        word_places.append([])
        for word in words:
            whole = prompt_ids(tok, f"{question.prompt} {word}")
            row, target = whole[:len(prompt)], whole[len(prompt):]
            if not target:
                raise UserError(f"the tokenizer has no tokens for the answer {word!r} behind {question.prompt[-40:]!r}")
            check_length(model, whole, f"the prompt {question.prompt[-40:]!r} with the answer {word!r}")
            # Usually the prompt itself; another row where its last token merges with the word's space.
            targets.setdefault(row, set()).add(target)
            word_places[-1].append((row, target))

    continuations: dict[Ids, str] = {}
    nll: dict[tuple[Ids, Ids], float] = {}
    prompt_set = set(prompts)
    ends = end_tokens(model, tok)
    for rows in _alike(questions, prompts, targets):
        shared = SharedPrefix(model, rows, pad_id(tok))
        for group in shared.batches():
            batch = [rows[i] for i in group]
            prefix, logits = shared.read(batch)
            scores = score_targets(model, prefix, logits, batch, targets, pad_id(tok))
            nll.update((place, score.nll) for place, score in scores.items())
            new = continue_rows(
                model, prefix, logits, lambda logits, alive, step: logits.argmax(-1),
                lambda row, ids, batch=batch: batch[row] not in prompt_set or len(ids) == gen_len or ids[-1] in ends)
            continuations.update((row, _continuation(tok, row, ids)) for row, ids in zip(batch, new))
            progress(sum(row in prompt_set for row in batch))
    return [Reading(continuations[prompt], tuple(math.exp(-nll[place]) for place in places))
            for prompt, places in zip(prompts, word_places)]


def parse(form: Form, generated: str) -> int:
    """The class that a generated text names, -1 if none.

    Any occurrence counts, also inside another word: as published, "nothing" is a no, and "camera\\n" an A.
    """
    if form.marker is None:
        text, ending = generated.lower(), "\n"
    else:
        text, ending = generated.rpartition(form.marker)[2].strip().lower(), ""
    return next((c for c in form.looked_for if form.words[c].lower() + ending in text), -1)


def choose(probs: tuple[float, ...]) -> int:
    """The class of the likeliest word; where none is likelier than all others, the first of two classes, -1 of more."""
    best = next((c for c, prob in enumerate(probs) if all(prob > other for other in (*probs[:c], *probs[c + 1:]))), -1)
    return max(best, 0) if len(probs) == 2 else best


def _continuation(tok: PreTrainedTokenizerBase, prompt: Ids, new: Sequence[int]) -> str:
    """The text of the new tokens, decoded with the prompt: alone, SentencePiece tokens lose the space before the first."""
    def decode(ids):
        return tok.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return decode([*prompt, *new])[len(decode(prompt)):]


def _alike(questions: Sequence[Question], prompts: Sequence[Ids], targets: Mapping[Ids, object]) -> list[list[Ids]]:
    """All rows to read, in groups: those of prompts with equally many shots, which begin alike, together."""
    groups: dict[int, dict[Ids, None]] = {}
    for question, prompt in zip(questions, prompts):
        groups.setdefault(question.shots, {})[prompt] = None
    grouped = set().union(*groups.values())
    merged = [row for row in targets if row not in grouped]
    return [list(rows) for rows in groups.values()] + ([merged] if merged else [])


def _results(true: Sequence[int], generated: Sequence[int], likeliest: Sequence[int], classes: int) -> dict[str, Any]:
    total, invalid = len(true), generated.count(-1)
    correct, correct_new = (sum(map(int.__eq__, true, answers)) for answers in (generated, likeliest))
    return {
        "correct": correct, "incorrect": total - correct - invalid, "invalid": invalid, "total": total,
        "invalid_rate": invalid / total, "invalid_rate_ci": wilson(invalid, total),
        **figures(true, generated, classes),
        "correct_new": correct_new, "incorrect_new": total - correct_new,
        **{name.replace("_ci", "") + "_new" + "_ci" * name.endswith("_ci"): value
           for name, value in figures(true, likeliest, classes).items()},
        "majority": max(map(true.count, set(true))) / total,
    }


def _output(
    form: Form, example: Example, question: Question, reading: Reading, generated: int, likeliest: int
) -> dict[str, Any]:
    def named(answer: int) -> str:
        return "invalid" if answer == -1 else form.words[answer]
    return {
        **example.fields, "id": example.id, "shots": question.shots, "input_prompt": question.prompt,
        "true_answer": named(question.answer), "generated_text": reading.generated, "answer": named(generated),
        "correct": generated == question.answer,
        **{f"prob_{word.lower()}": prob for word, prob in zip(form.words, reading.probs)},
        "highest_probability_answer": named(likeliest), "correct_new": likeliest == question.answer,
    }
