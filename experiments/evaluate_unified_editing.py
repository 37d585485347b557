"""``python experiments/evaluate_unified_editing.py``: experiments.evaluate, by its name in the unified-editing repository.

Records come in that repository's edit order (--sample_num 0), unless flags say otherwise.
"""

import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # started as a file, too
    from experiments.evaluate import command
    from experiments.run.cli import run_program

    run_program(partial(command, sample_num=0), several=True)
