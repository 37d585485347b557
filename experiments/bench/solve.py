"""`python -m experiments.bench solve`: MEMIT's linear system, with a factor that is kept, against LU of the full system.

Both solve (lambda C + K K^T) A = K in float64, batch after batch on the same C, as a run over many edits does. The first batch
pays for the Cholesky factor; from the second on only triangular solves are left.

Then the same in a sequence with edited-key memory (MEMIT_seq, AlphaEdit), where the matrix changes with every batch: the factor
absorbs the keys. At d and at d / 2, so that the power of d shows with which the time of a batch grows: 2 for ours, 3 for LU.
"""

import math
from collections.abc import Sequence

import torch

from editors.core.solve import factorise, memit
from experiments.run.cli import above_zero

from experiments.bench.options import options, parse
from experiments.bench.race import require_equal, timed

TOLERANCE = 1e-8


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Prints seconds of each batch both ways and the ratios; exits with 1 if the solutions differ."""
    parser = options(
        "solve", __doc__, d=(6400, "width of a key; GPT-2 XL has 6400"), keys=(10, "edits in a batch"), batches=(3, ""))
    parser.add_argument("--weight", type=above_zero, default=20000.0, help="lambda (default: %(default)s)")
    args = parse(parser, argv)
    generator = torch.Generator().manual_seed(args.seed)

    # A second moment with a spectrum that falls like a language model's: eigenvalues over four orders of magnitude.
    keys_seen = torch.randn(2 * args.d, args.d, generator=generator) * torch.logspace(0, -2, args.d)
    moment = keys_seen.T @ keys_seen / len(keys_seen)
    del keys_seen
    factor, ratios, difference = None, [], 0.0

    def by_factor() -> torch.Tensor:
        nonlocal factor
        factor = factor or factorise(moment)
        return memit(factor, args.weight, keys)

    def by_lu() -> torch.Tensor:
        wide = keys.double()
        return torch.linalg.solve(args.weight * moment.double() + wide @ wide.T, wide)

    print(f"d = {args.d}, {args.keys} keys a batch, float64, {args.threads} threads")
    for batch in range(1, args.batches + 1):
        keys = torch.randn(args.d, args.keys, generator=generator)
        ours, ours_seconds = timed(by_factor)
        plain, plain_seconds = timed(by_lu)
        ratios.append(plain_seconds / ours_seconds)
        difference = max(difference, float((ours - plain).norm() / plain.norm()))
        print(f"batch {batch}: LU of the full system {plain_seconds:7.3f} s, ours {ours_seconds:7.3f} s, "
              f"ratio {ratios[-1]:.1f}")
    print(f"largest relative difference: {difference:.1e}")
    require_equal(difference, TOLERANCE, "solutions")
    powers = _with_memory(args.d, args.keys, args.weight, generator)
    return {**powers, "first": ratios[0], "later": min(ratios[1:], default=ratios[0]), "difference": difference}


def _with_memory(d: int, keys: int, weight: float, generator: torch.Generator) -> dict[str, float]:
    """Seconds of a batch in a sequence with edited-key memory, at d / 2 and at d; the power of d with which they grow."""
    seconds: dict[str, list[float]] = {"ours": [], "LU": []}

    def by_factor() -> torch.Tensor:
        nonlocal factor
        solution = memit(factor, 1.0, new)
        factor = factor.plus(new)
        return solution

    def by_lu() -> torch.Tensor:
        nonlocal system
        system += new @ new.T
        return torch.linalg.solve(system, new)

    for width in (d // 2, d):
        keys_seen = torch.randn(2 * width, width, generator=generator) * torch.logspace(0, -2, width)
        system = weight * (keys_seen.T @ keys_seen / len(keys_seen)).double()
        factor, times = factorise(system), {"ours": [], "LU": []}
        for _ in range(3):
            new = torch.randn(width, keys, generator=generator, dtype=torch.float64)
            ours, ours_seconds = timed(by_factor)
            plain, plain_seconds = timed(by_lu)
            times["ours"].append(ours_seconds)
            times["LU"].append(plain_seconds)
            difference = float((ours - plain).norm() / plain.norm())
            if difference > TOLERANCE:
                raise SystemExit(f"the solutions with memory differ by {difference:.1e}, more than {TOLERANCE}")
        for way in seconds:
            seconds[way].append(min(times[way]))
        print(f"with memory, d = {width}: LU {seconds['LU'][-1]:7.3f} s a batch, ours {seconds['ours'][-1]:7.3f} s, "
              f"ratio {seconds['LU'][-1] / seconds['ours'][-1]:.1f}")
    powers = {f"power_{way}": math.log2(large / small) for way, (small, large) in seconds.items()}
    print(f"time grows with d to the power {powers['power_ours']:.1f} (ours), {powers['power_LU']:.1f} (LU)")
    return powers
