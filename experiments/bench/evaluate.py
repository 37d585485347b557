"""`python -m experiments.bench evaluate`: CounterFact's metrics of many cases, batched, against one case at a time.

The model is a random GPT-2 of the small shape (12 blocks, width 768, vocabulary 50,257); prompts are random words, as many and
as long as CounterFact's in GPT-2 tokens. The plain loop does what the published code does for each case: one right-padded batch
of all prompts with both targets behind each, logits of every position.
"""

import random
import statistics
from collections.abc import Sequence

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from data.records import Record, Target
from editors.core.prompts import fill
from experiments.bench.inputs import SMALL, TINY, random_gpt2, word_tokenizer
from experiments.bench.options import options, parse
from experiments.bench.race import race, require_equal
from experiments.metrics.counterfact import counterfact_metrics

TOLERANCE = 1e-4
"""Largest relative difference between the two ways' negative log-probabilities that counts as equal."""
GROUPS = ("rewrite", "paraphrase", "neighborhood")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Prints seconds of both ways, their ratio and the largest difference; returns them. Exits with 1 if the results differ."""
    args = parse(options("evaluate", __doc__, tiny=True, cases=(100, "number of cases"),
                         repeats=(3, "times that each way runs, in turn")), argv)
    shape = TINY if args.tiny else SMALL
    model, tok = random_gpt2(shape, args.seed), word_tokenizer(shape["vocab_size"])
    tok.pad_token = tok.unk_token
    records = _made_up_records(args.cases, shape["vocab_size"], args.seed)

    run = race({
        "ours": lambda: counterfact_metrics(model, tok, records, generated=False),
        "plain": lambda: [_plain_case(model, tok, record) for record in records],
        "generated": lambda: counterfact_metrics(model, tok, records),
    }, args.repeats)
    difference = max(_difference(ours, plain) for ours, plain in zip(run.results["ours"], run.results["plain"]))
    result = {
        **{f"{way}_seconds": run.best(way) for way in run.seconds},
        "ratio": run.best("plain") / run.best("ours"),
        "median_ratio": statistics.median(plain / ours for plain, ours in zip(run.seconds["plain"], run.seconds["ours"])),
        "difference": difference,
    }
    print(f"{args.cases} cases of 13 prompts x 2 targets, {shape['n_layer']} blocks of width {shape['n_embd']}, "
          f"{args.threads} threads, best of {args.repeats}")
    print(f"one case at a time (published way): {result['plain_seconds']:8.2f} s")
    print(f"batched across cases (ours):        {result['ours_seconds']:8.2f} s")
    print(f"ours with greedy continuations:     {result['generated_seconds']:8.2f} s")
    print(f"ratio: {result['ratio']:.2f} (median of runs {result['median_ratio']:.2f}); "
          f"largest relative difference of a negative log-probability: {difference:.1e}")
    require_equal(difference, TOLERANCE, "results")
    return result


def _plain_case(model: GPT2LMHeadModel, tok: PreTrainedTokenizerFast, record: Record) -> dict[str, list]:
    """The metrics of one case, as the published code computes them."""
    prompts = [fill(record.prompt, record.subject), *record.paraphrase_prompts, *record.neighborhood_prompts]
    targets = (record.target_new.str, record.target_true.str)
    rows = [f"{prompt} {target}" for prompt in prompts for target in targets]
    with torch.no_grad():
        logits = model(**tok(rows, padding=True, return_tensors="pt")).logits
    ids = [tok(f" {target}")["input_ids"] for target in targets]
    nlls, correct = [], []
    for row in range(len(rows)):
        start, target = len(tok(prompts[row // 2])["input_ids"]), ids[row % 2]
        before = logits[row, start - 1:start - 1 + len(target)]
        nlls.append(-sum(at.log_softmax(0)[token].item() for at, token in zip(before, target)) / len(target))
        correct.append(all(at.argmax().item() == token for at, token in zip(before, target)))
    probs = [{"target_new": new, "target_true": true} for new, true in zip(nlls[::2], nlls[1::2])]
    ends = [1, 1 + len(record.paraphrase_prompts), len(prompts)]
    metrics: dict[str, list] = {}
    for group, start, end in zip(GROUPS, [0, *ends], ends):
        metrics[f"{group}_prompts_probs"] = probs[start:end]
        metrics[f"{group}_prompts_correct"] = correct[group == "neighborhood"::2][start:end]
    return metrics


def _difference(ours: dict[str, list], plain: dict[str, list]) -> float:
    """Largest relative difference of the negative log-probabilities; infinite if a prediction differs."""
    if any(ours[f"{group}_prompts_correct"] != plain[f"{group}_prompts_correct"] for group in GROUPS):
        return float("inf")
    return max(abs(a[target] - b[target]) / abs(b[target]) for group in GROUPS for target in ("target_new", "target_true")
               for a, b in zip(ours[f"{group}_prompts_probs"], plain[f"{group}_prompts_probs"], strict=True))


def _made_up_records(number: int, vocabulary: int, seed: int) -> list[Record]:
    """Random words in CounterFact's shape: 1 rewrite, 2 paraphrase and 10 neighbourhood prompts.

    Lengths in GPT-2 tokens, as measured on CounterFact: paraphrases (which begin with an unrelated sentence) 19 on average
    and mostly 11 to 28, the others 8 and 5 to 12; targets nearly always 1.
    """
    rng = random.Random(seed)

    def words(mean: float, spread: float, least: int) -> str:
        return " ".join(f"w{rng.randrange(1, vocabulary)}" for _ in range(max(least, round(rng.gauss(mean, spread)))))

    def target() -> Target:
        return Target(words(1, 0, 2 if rng.random() < 0.05 else 1))

    return [
        Record(case_id=i, subject=words(2, 0.7, 1), prompt="{} " + words(6, 2, 3), target_new=target(), target_true=target(),
               paraphrase_prompts=tuple(words(19, 5, 8) for _ in range(2)),
               neighborhood_prompts=tuple(words(8, 2, 5) for _ in range(10)))
        for i in range(number)
    ]
