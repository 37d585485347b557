"""`python -m experiments.bench probes`: a logistic probe for every head in one batched solve, against one scikit-learn fit a head.

Inputs are random head outputs in which every tenth head tells the two classes apart. Both minimise the same objective (C = 1,
intercept without penalty). Timed is scikit-learn at its own tolerance, as MEMAT's published program has it; compared are the first
heads with scikit-learn at a tolerance of 1e-10, because the loose one moves sentences at the border to the other side.
"""

import time
import warnings
from collections.abc import Sequence

import numpy as np
import torch

from editors.heads import probes
from experiments.run.cli import at_least_one

from experiments.bench.options import options, parse

COMPARED, TOLERANCE = 100, 1e-4


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Prints the seconds of both, their ratio, and how far coefficients and accuracies differ; exits with 1 where these do."""
    parser = options("probes", __doc__)
    parser.add_argument("--layers", type=at_least_one, default=32, help="Aguila has 32 (default: %(default)s)")
    parser.add_argument("--heads", type=at_least_one, default=71, help="of a layer; Aguila has 71 (default: %(default)s)")
    parser.add_argument("--size", type=at_least_one, default=64, help="of a head (default: %(default)s)")
    parser.add_argument("--facts", type=at_least_one, default=200, help="that vote, two sentences each (default: %(default)s)")
    args = parse(parser, argv)
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(args.seed)
    count = args.layers * args.heads
    x = torch.randn(2 * args.facts, count, args.size, generator=generator)
    label = torch.tensor([True, False]).repeat(args.facts)
    x[label, ::10, 0] += 1.5
    training = 2 * int(0.7 * args.facts)

    start = time.perf_counter()
    ours = probes.fit(x[:training], label[:training])
    accuracy = (ours.predict(x[training:]) == label[training:, None]).double().mean(0)
    ours_seconds = time.perf_counter() - start

    y, accuracies = label.numpy(), []
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for head in range(count):
            one = x[:, head].numpy()
            fitted = LogisticRegression(random_state=123, max_iter=1000).fit(one[:training], y[:training])
            accuracies.append(fitted.score(one[training:], y[training:]))
    plain_seconds = time.perf_counter() - start

    difference, other = 0.0, 0
    for head in range(min(count, COMPARED)):
        one = x[:, head].numpy().astype(np.float64)
        fitted = LogisticRegression(max_iter=10000, tol=1e-10).fit(one[:training], y[:training])
        difference = max(difference, float(np.abs(ours.weight[head].numpy() - fitted.coef_[0]).max()))
        other += fitted.score(one[training:], y[training:]) != float(accuracy[head])
    apart = float(np.abs(accuracy.numpy() - np.array(accuracies)).max())
    print(f"{count} heads of size {args.size}, {training} sentences to learn from, {2 * args.facts - training} to validate")
    print(f"scikit-learn, a head at a time {plain_seconds:7.2f} s, ours {ours_seconds:7.2f} s, ratio {plain_seconds / ours_seconds:.1f}")
    print(f"against tolerance 1e-10: largest difference of a coefficient {difference:.1e}, {other} of {min(count, COMPARED)} heads with "
          f"another accuracy; against its own tolerance accuracies differ by at most {apart:.3f}")
    if difference > TOLERANCE or other:
        raise SystemExit(f"the probes differ by more than {TOLERANCE}")
    return {"ratio": plain_seconds / ours_seconds, "difference": difference, "other": other}
