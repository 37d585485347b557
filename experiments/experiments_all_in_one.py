"""``python -m experiments.experiments_all_in_one``: experiments.evaluate, by its name in MEMAT's repository."""

from experiments.evaluate import command
from experiments.run.cli import run_program

if __name__ == "__main__":
    run_program(command, several=True)
