"""``python -m figures.causal_trace``: heat maps of a causal trace, as PDF and PNG.

    python -m figures.causal_trace results/ns3_r0_world/causal_trace --known_ids 0,7

Average indirect effects over all known facts: by kind of token and block for hidden states, MLPs and attentions, and as curves
with 95 % bands; after a trace with --severed also what states bring back without the MLPs, or attentions, of later blocks. With
--known_ids also the published figure of single facts: tokens x blocks, the subject's tokens marked with *. Darker is more of
the answer's probability, on one scale in each figure.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from common.errors import UserError
from experiments.run.cli import run_program
from editors.core.tracing.averages import LAST_SUBJECT
from experiments.tracing.files import case_path, read_averages, read_case
from editors.core.tracing.scores import KINDS
from figures import lines
from figures.program import figure_parser

TITLES = {"state": "hidden state", "mlp": "MLP", "attn": "attention"}
SEVERED_TITLES = {"state": "hidden state", "no_mlp": "without the MLPs of later blocks",
                  "no_attn": "without the attentions of later blocks"}
FIRST = "first"
CURVES = ("last subject token", "first subsequent token", "last token")


def draw_averages(average: Mapping[str, Any]) -> plt.Figure:
    """Above heat maps of classes of tokens x blocks, below the curves of three classes."""
    effects = {kind: effect for kind, effect in average["indirect_effect"].items() if kind in TITLES}
    classes, size = average["classes"], average["settings"]["window"]
    layers = len(effects["mlp"]["mean"][LAST_SUBJECT])  # the one class that has a token in every fact
    means = {kind: np.array([row or [np.nan] * layers for row in effects[kind]["mean"]]) for kind in effects}
    bounds = _bounds(means.values())
    figure, axes = lines.panels(2, len(effects), width=2.7, height=1.9, legend=len(CURVES))
    for number, (kind, mean) in enumerate(means.items()):
        image = _map(axes[0, number], mean, bounds, classes if number == 0 else [""] * len(classes), _title(kind, size))
        for place, name in enumerate(CURVES):
            _curve(axes[1, number], place, effects[kind], classes.index(name))
        lines.label_axes(axes[1, number], x="block", y="average indirect effect" if number == 0 else "")
        axes[1, number].sharey(axes[1, 0])
    figure.colorbar(image, ax=axes[0], shrink=0.9).ax.tick_params(labelsize=7)
    lines.legend(figure, CURVES)
    total = average["total_effect"]
    band = f" ± {total['band']:.3f}" if total["band"] is not None else ""
    figure.suptitle(f"{average['facts']} facts, average total effect {total['mean']:.3f}{band}", fontsize=9)
    return figure


def draw_severed(average: Mapping[str, Any]) -> plt.Figure:
    """Hidden states at the subject's last token, restored with and without what later MLPs, or attentions, make of them."""
    figure, axes = lines.panels(1, 1, width=4.2, height=2.4, legend=len(SEVERED_TITLES))
    for number, kind in enumerate(SEVERED_TITLES):
        _curve(axes[0, 0], number, average["indirect_effect"][kind], LAST_SUBJECT)
    lines.label_axes(axes[0, 0], x="block whose output is restored", y="average indirect effect,\nsubject's last token")
    lines.legend(figure, list(SEVERED_TITLES.values()))
    return figure


def draw_fact(cases: Mapping[str, Mapping[str, np.ndarray]]) -> plt.Figure:
    """Tokens x blocks of one fact, a panel for each kind."""
    case = cases["state"]
    start, end = case["subject_range"]
    tokens = [f"{token}{'*' if start <= i < end else ''}" for i, token in enumerate(case["input_tokens"])]
    low, high = float(case["low_score"]), float(case["high_score"])
    figure, axes = lines.panels(1, len(cases), width=2.7, height=0.6 + 0.14 * len(tokens))
    for number, (kind, case) in enumerate(cases.items()):
        labels = tokens if number == 0 else [""] * len(tokens)
        image = _map(axes[0, number], case["scores"], (low, max(high, low + 1e-6)), labels, _title(kind, int(case["window"])))
        axes[0, number].set_xlabel("block", fontsize=8)
    bar = figure.colorbar(image, ax=axes[0], shrink=0.9)
    bar.ax.tick_params(labelsize=7)
    bar.ax.set_title(f"p({str(case['answer']).strip()})", fontsize=7)
    return figure


def main(folder: str | Path, out: str | Path | None = None, known_ids: Sequence[int] | str = ()) -> list[Path]:
    """Draws the figures; returns the files written: ``out`` (by default average in the folder) with .pdf and .png, single facts
    beside it."""
    folder = Path(folder)
    average = read_averages(folder)
    facts = {known_id: _fact(folder, known_id) for known_id in ([_first_known(folder)] if known_ids == FIRST else known_ids)}
    out = Path(out or folder / "average")
    files = lines.save(draw_averages(average), out)
    if all(kind in average["indirect_effect"] for kind in SEVERED_TITLES):
        files += lines.save(draw_severed(average), out.with_name(f"{out.name}_severed"))
    for known_id, cases in facts.items():
        files += lines.save(draw_fact(cases), out.with_name(f"{out.name}_knowledge_{known_id}"))
    return files


def _fact(folder: Path, known_id: int) -> dict[str, dict[str, np.ndarray]]:
    """Raises UserError for a fact that was not traced."""
    paths = {kind: case_path(folder, known_id, kind) for kind in KINDS}
    if not all(path.exists() for path in paths.values()):
        raise UserError(f"{folder}: has no fact {known_id}; the first is {next(iter(_traced(folder)), 'none')}")
    cases = {kind: read_case(path) for kind, path in paths.items()}
    if not all(case["correct_prediction"] for case in cases.values()):
        raise UserError(f"{folder}: the model does not know fact {known_id}, so it was not traced")
    return cases


def _traced(folder: Path) -> list[int]:
    """Numbers of the facts whose files are there."""
    matches = (re.fullmatch(r"knowledge_(\d+)(_\w+)?", path.stem) for path in folder.glob("cases/knowledge_*.npz"))
    return sorted({int(match[1]) for match in matches if match})


def _first_known(folder: Path) -> int:
    """Raises UserError where the model knows none."""
    for number in _traced(folder):
        if read_case(case_path(folder, number, "state"))["correct_prediction"]:
            return number
    raise UserError(f"{folder}: the model knows none of the facts")


def _curve(ax: Axes, number: int, effect: Mapping[str, Any], row: int) -> None:
    """With its band; nothing for a class without tokens."""
    mean, band = effect["mean"][row], effect["band"][row]
    if mean is not None and band is not None:
        ax.fill_between(range(len(mean)), np.subtract(mean, band), np.add(mean, band), color="0.88", linewidth=0)
    if mean is not None:
        lines.plot(ax, number, range(len(mean)), mean)


def _title(kind: str, window: int) -> str:
    return TITLES[kind] if kind == "state" else f"{TITLES[kind]}, window of {window}"


def _bounds(values) -> tuple[float, float]:
    largest = max(float(np.nanmax(value)) for value in values)
    return 0.0, max(largest, 1e-6)


def _map(ax: Axes, values: np.ndarray, bounds: tuple[float, float], rows: Sequence[str], title: str):
    image = ax.imshow(values, cmap="Greys", vmin=bounds[0], vmax=bounds[1], aspect="auto", interpolation="nearest")
    lines.label_axes(ax, title=title)
    ax.set_yticks(range(len(rows)), rows, fontsize=7)
    return image


def _numbers(text: str) -> list[int] | str:
    if text == FIRST:
        return text
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} should be whole numbers with commas between, or {FIRST}")
    return [int(part) for part in text.split(",")]


def command(argv: Sequence[str] | None = None) -> None:
    parser = figure_parser("causal_trace", __doc__, None, "path of the files without ending; by default average in the folder")
    parser.add_argument("folder", help="of a finished trace")
    parser.add_argument("--known_ids", type=_numbers, default=[],
                        help="comma list of facts to draw one by one; first: the first that the model knows")
    print("written:", *main(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    run_program(command)
