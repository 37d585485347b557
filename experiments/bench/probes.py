"""`python -m experiments.bench probes`: a logistic probe for every head, in one batched solve against scikit-learn's fits.

Inputs are random head outputs in which every tenth head tells the two classes apart. Both minimise the same objective (C = 1,
intercept without penalty). Timed is scikit-learn at its own tolerance, as MEMAT's published program has it; compared are the
first heads with scikit-learn at a tolerance of 1e-10, because the loose one moves sentences at the border to the other side.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from editors.heads import probes
from experiments.bench.options import options, parse
from experiments.bench.race import timed

COMPARED, TOLERANCE = 100, 1e-4


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Prints the seconds of both, their ratio, and how far coefficients and accuracies differ; exits with 1 where these do."""
    args = parse(options("probes", __doc__, layers=(32, "Aguila has 32"), heads=(71, "of a layer; Aguila has 71"),
                         size=(64, "of a head"), facts=(200, "that vote, two sentences each")), argv)
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(args.seed)
    count = args.layers * args.heads
    x = torch.randn(2 * args.facts, count, args.size, generator=generator)
    label = torch.tensor([True, False]).repeat(args.facts)
    x[label, ::10, 0] += 1.5
    training = 2 * int(0.7 * args.facts)

    def batched() -> tuple[probes.Probes, torch.Tensor]:
        fitted = probes.fit(x[:training], label[:training])
        return fitted, (fitted.predict(x[training:]) == label[training:, None]).double().mean(0)

    def one_by_one() -> list[float]:
        accuracies = []
        for head in range(count):
            outputs = x[:, head].numpy()
            fitted = LogisticRegression(random_state=123, max_iter=1000).fit(outputs[:training], y[:training])
            accuracies.append(fitted.score(outputs[training:], y[training:]))
        return accuracies

    y = label.numpy()
    (ours, accuracy), ours_seconds = timed(batched)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        accuracies, plain_seconds = timed(one_by_one)

    difference, other = 0.0, 0
    for head in range(min(count, COMPARED)):
        outputs = x[:, head].numpy().astype(np.float64)
        fitted = LogisticRegression(max_iter=10000, tol=1e-10).fit(outputs[:training], y[:training])
        difference = max(difference, float(np.abs(ours.weight[head].numpy() - fitted.coef_[0]).max()))
        other += fitted.score(outputs[training:], y[training:]) != float(accuracy[head])
    apart = float(np.abs(accuracy.numpy() - np.array(accuracies)).max())
    print(f"{count} heads of size {args.size}, {training} sentences to learn from, {2 * args.facts - training} to validate")
    print(f"scikit-learn, a head at a time {plain_seconds:7.2f} s, ours {ours_seconds:7.2f} s, "
          f"ratio {plain_seconds / ours_seconds:.1f}")
    print(f"against tolerance 1e-10: largest difference of a coefficient {difference:.1e}, {other} of "
          f"{min(count, COMPARED)} heads with another accuracy; against its own tolerance accuracies differ by at most "
          f"{apart:.3f}")
    if difference > TOLERANCE or other:
        raise SystemExit(f"the probes differ by more than {TOLERANCE}")
    return {"ratio": plain_seconds / ours_seconds, "difference": difference, "other": other}
