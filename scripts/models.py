"""``python -m scripts.models``: writes docs/models.md, what works for every causal language model type of transformers.

    python -m scripts.models                  # all types, some seconds each
    python -m scripts.models gpt2 mixtral     # prints what came of these alone

Each type is built small and random, and checked in a process of its own (see model_checks.py).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from tqdm import tqdm

from common.programs import run_program
from scripts.model_checks import Cell, CHECKS, run_checks
from tests.decoders import NOT_ALONE, tiny_decoder, TYPES
from tests.models import tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
SECONDS = 120
"""After which a type is given up."""
LONGEST = 240
"""Characters of a quoted line."""
SHARES = ("share_1", "share_3")
MARKED = [name for name in CHECKS if name not in SHARES]

HEAD = """\
# Which models work

Written by `python -m scripts.models` with transformers {version}: {types} model types for causal language modelling.

* Each type is built from a tiny random configuration: 4 blocks, width 32, a vocabulary of 320. Norms, biases and embeddings are
  perturbed, so that mistakes show.
* It is about architectures. How well an edit takes on a real model is in [results.md](results.md).
* A type that is not here, or your own code, is examined in the same way when it is loaded: module names play no part.

{counts}

## What is checked

The measure is a plain loop: one text at a time, without padding and without cache. Differences are at most 1e-4 (relative).

* **sites**: the edited module and its neighbours are found, and do what they should.
* **keys**, **values**, **statistics**: of MEMIT and ROME, computed in batches.
* **metrics**: CounterFact's likelihoods, most probable tokens and continuations, all prompts in left-padded batches.
* **MEMIT**, **MEMAT**, **MEND**: the edited model finds the target likelier. MEND's gradients are those of the plain loop.
* **ROME**: the edited weight maps the key onto the value.
* **FT**: the loss is the plain loop's, and falls. Where no module is found, a whole block is tuned (`rewrite_module_tmp`).
* **share left**: what MEMIT leaves of the way to the target state of one fact, with lambda 1e-4, edited in one block and in
  three.

Marks: ✓ right; – refused with one line, which is quoted; **✗** wrong; **!** a traceback.
"""

GROUPS = {
    "right": ("Right on all points", "Whatever is listed above."),
    "remarks": ("Right, with remarks",
                "What is not refused is right. What is refused ends in the quoted line, before anything is edited. Most are "
                "mixtures of experts without one that every token passes, recurrent and hybrid decoders, or encoders used as "
                "decoders: metrics, FT and often MEND work."),
    "refused": ("Refused with a line", "Neither edited nor measured."),
    "faulty": ("Faulty", "Something is wrong, or ends in a traceback. Don't use the toolkit with these."),
    "unbuilt": ("Not built", "Not checked, because no tiny model of the type could be built or run by itself."),
}


@dataclass(frozen=True)
class Row:
    """What came of a model type."""

    type: str
    cells: Mapping[str, Cell] = field(default_factory=dict)
    unbuilt: str = ""
    """Why there is no model."""

    @property
    def group(self) -> str:
        kinds = {cell.kind for cell in self.cells.values()}
        if self.unbuilt:
            return "unbuilt"
        if kinds & {"wrong", "traceback"}:
            return "faulty"
        if "line" not in kinds and not any(cell.remark for cell in self.cells.values()):
            return "right"
        return "remarks" if self.cells["metrics"].kind == "right" else "refused"

    def markdown(self) -> str:
        """The row of its group's table."""
        name = f"`{self.type}`"
        if self.unbuilt:
            return _table_row(name, self.unbuilt)
        if self.group == "right":
            return _table_row(name, f"`{self.cells['sites'].text}`", *(self._share(share) for share in SHARES))
        if self.group == "refused":
            return _table_row(name, self.cells["metrics"].text)
        marks = (self._mark(name) for name in MARKED)
        return _table_row(name, *marks, *(self._share(share) for share in SHARES), self._remarks())

    def _mark(self, name: str) -> str:
        return {"right": "✓", "line": "–", "wrong": "**✗**", "traceback": "**!**"}[self.cells[name].kind]

    def _share(self, name: str) -> str:
        cell = self.cells[name]
        return self._mark(name) if cell.number is None else _number(cell.number)

    def _remarks(self) -> str:
        """Each line once, with the faults in front."""
        faults = [f"{name}: {cell.text}" for name, cell in self.cells.items() if cell.kind in ("wrong", "traceback")]
        lines = [cell.text if cell.kind == "line" else cell.remark for cell in self.cells.values()]
        lines = [re.sub(r"an edit by \w+", "an edit", line) for line in lines if line]
        return "; ".join([*faults, *(f"“{_shortened(line)}”" for line in dict.fromkeys(lines))])


HEADERS = {
    "right": ("type", "edited module", "share left: one block", "three blocks"),
    "unbuilt": ("type", "why"),
    "refused": ("type", "the line"),
    **dict.fromkeys(("remarks", "faulty"), ("type", *MARKED, "share: one", "three", "remarks")),
}


def page(rows: Sequence[Row]) -> str:
    """The text of docs/models.md."""
    groups = {name: [row for row in rows if row.group == name] for name in GROUPS}
    counts = "\n".join(["| | types |", "|---|---|", *(f"| {GROUPS[name][0]} | {len(members)} |"
                                                     for name, members in groups.items() if members)])
    head = HEAD.format(version=transformers.__version__, types=len(rows), counts=counts)
    return "\n".join([head, *(_section(name, members) for name, members in groups.items() if members)])


def _section(group: str, rows: Sequence[Row]) -> str:
    title, text = GROUPS[group]
    header = HEADERS[group]
    return "\n".join([f"## {title}\n\n{text}\n", _table_row(*header), "|" + "---|" * len(header),
                      *(row.markdown() for row in rows), ""])


def _table_row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _shortened(line: str) -> str:
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _number(share: float) -> str:
    """Two digits, and 0 below a thousandth: further digits are the machine's."""
    return "0" if share < 1e-3 else f"{share:.2g}"


def row_of(model_type: str) -> Row:
    """Build a model of the type and check it, in this process."""
    if model_type in NOT_ALONE:
        return Row(model_type, unbuilt=NOT_ALONE[model_type])
    try:
        model = tiny_decoder(model_type)
        row = torch.tensor([[3, 7, 5, 4]])
        with torch.no_grad():
            model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)
    except Exception as error:
        return Row(model_type, unbuilt=f"{type(error).__name__}: {str(error).strip()[:200]}")
    return Row(model_type, run_checks(model, tiny_tokenizer("byte_level")))


def row_apart(model_type: str) -> Row:
    """`row_of` in a process of its own, which may hang or die."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_send, args=(model_type, sender))
    worker.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(SECONDS) else Row(model_type, unbuilt=f"not done after {SECONDS} seconds")
    except EOFError:
        return Row(model_type, unbuilt="the process died")
    finally:
        worker.kill()
        worker.join()


def _send(model_type: str, sender) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(None):  # a training says how it goes
        sender.send(row_of(model_type))


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or TYPES
    with contextlib.redirect_stdout(None):
        row_of("gpt2")  # so that every process finds the modules loaded
    rows = [row_apart(model_type) for model_type in tqdm(chosen, unit="type", disable=None)]
    if sys.argv[1:]:
        print(*(row.markdown() for row in rows), sep="\n")
        return
    PAGE.write_text(page(rows))
    print(f"written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    run_program(main)
