"""Benchmarks: this toolkit against a plain serial loop that does what the published code does, on the same inputs.

One module a part, with `main(argv)`; see `python -m experiments.bench --help`.
"""
