"""The fixtures of evaluations on the tiny golden GPT-2, for figures of their runs."""

from tests.experiments.conftest import hparams, run  # noqa: F401
