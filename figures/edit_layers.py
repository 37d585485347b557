"""``python -m figures.edit_layers``: where tracing finds the facts, and where edits work, block by block, as PDF and PNG.

    python -m figures.edit_layers results/edit_layers/world --out results/edit_layers/world/edit_layers

FOLDER holds one finished causal trace and runs of single-block edits, however deep (scripts/edit_layers.sh). Above: average
indirect effects at the subject's last token with 95 % bands; below: score, efficacy, paraphrase and neighbourhood of the edits
of each block. A grey band marks the blocks that the trace proposes. Prints, for each editor, its best block and how the two
curves agree.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float

from common.errors import UserError
from experiments.results import run_folder, summary
from experiments.results.names import HEADLINES
from experiments.results.runs import read_run
from experiments.run.cli import run_program
from editors.core.tracing.averages import LAST_SUBJECT
from experiments.tracing.files import AVERAGES, read_averages
from figures import lines
from figures.program import figure_parser

PANELS = {name: key for key, name in HEADLINES["counterfact"].items()}
USUAL_TOKEN = "subject_last"

Swept = Mapping[str, Mapping[int, Mapping[str, float]]]
"""{editor, with the token where it edits if that is unusual: {block: {metric in %}}}"""


def read(folder: Path) -> tuple[dict[str, Any], Swept]:
    """(averages of the trace, the edits). Raises UserError for a missing or second trace, and for runs that don't fit."""
    traces = sorted(path.parent for path in folder.rglob(AVERAGES))
    if len(traces) != 1:
        raise UserError(f"{folder}: holds {len(traces)} finished causal traces, and one is needed")
    average = read_averages(traces[0])
    swept: dict[str, dict[int, dict[str, float]]] = {}
    for path in sorted(folder.rglob(run_folder.PARAMS)):
        run = path.parent
        about, lists = read_run(run)
        hparams = run_folder.read_json(path)
        layers, token = hparams.get("layers", []), hparams.get("fact_token", USUAL_TOKEN)
        label = about["alg_name"] + ("" if token == USUAL_TOKEN else f", {token}")
        if len(layers) != 1:
            raise UserError(f"{run}: edits the blocks {layers}; runs of one block each are compared")
        model = run_folder.read_about(run)["settings"]["model"]
        if model != average["settings"]["model"]:
            raise UserError(f"{run} is of the model {model}, the trace of {average['settings']['model']}")
        statistics = summary.statistics(lists)
        blocks = swept.setdefault(label, {})
        if layers[0] in blocks:
            raise UserError(f"{run}: a second run of {label} at block {layers[0]}; give only one of them")
        try:
            blocks[layers[0]] = {name: statistics[f"post_{key}"]["mean"] for name, key in PANELS.items()}
        except KeyError as error:
            raise UserError(f"{run}: its cases have no {error}; finish it with --continue_from_run") from None
    if not swept:
        raise UserError(f"{folder}: holds no runs of experiments.evaluate")
    return average, swept


def draw(average: Mapping[str, Any], swept: Swept) -> plt.Figure:
    """A row of indirect effects by kind, a row of the edits' metrics."""
    effects = average["indirect_effect"]
    figure, axes = lines.panels(2, len(PANELS), width=2.3, height=1.9, legend=len(swept))
    for ax, (kind, title) in zip(axes[0], {"mlp": "MLP", "state": "hidden state", "attn": "attention"}.items()):
        mean, band = (effects[kind][part][LAST_SUBJECT] for part in ("mean", "band"))
        x = np.arange(len(mean))
        if band is not None:
            ax.fill_between(x, np.subtract(mean, band), np.add(mean, band), color="0.85", linewidth=0)
        lines.plot(ax, 1, x, mean)
        lines.label_axes(ax, y="avg. indirect effect,\nsubject's last token" if kind == "mlp" else "", title=f"trace: {title}")
    axes[0, -1].set_axis_off()
    for ax, name in zip(axes[1], PANELS):
        for number, (editor, blocks) in enumerate(swept.items()):
            x = sorted(blocks)
            lines.plot(ax, number, x, [blocks[block][name] for block in x])
        ax.set_ylim(0, 105)
        lines.label_axes(ax, x="block", y="% after the edit" if name == "score" else "", title=f"edit: {name}")
    proposed = average["proposal"]["range"]
    for ax in (*axes[0, :-1], *axes[1]):
        ax.axvspan(proposed[0] - 0.3, proposed[-1] + 0.3, color="0.93", zorder=0, linewidth=0)
    lines.legend(figure, [f"{editor} at one block" for editor in swept])
    return figure


def agreement(average: Mapping[str, Any], swept: Swept) -> list[str]:
    """For each editor a line: the best block, the proposed one, and the rank correlation of the two curves."""
    curve = np.array(average["indirect_effect"]["mlp"]["mean"][LAST_SUBJECT])
    peak, report = average["proposal"]["peak"], []
    for editor, blocks in swept.items():
        x = sorted(blocks)
        scores = np.array([blocks[block]["score"] for block in x])
        best = x[int(scores.argmax())]
        rank = ""
        if len(x) > 2 and np.ptp(scores) > 0:
            correlation = np.corrcoef(_ranks(curve[x]), _ranks(scores))[0, 1]
            rank = f"; rank correlation of effect and score {correlation:.2f}"
        at_peak = f"{blocks[peak]['score']:.1f}" if peak in blocks else "not run"
        report.append(f"{editor}: best at block {best} (score {scores.max():.1f}); "
                      f"the trace proposes block {peak} ({at_peak}){rank}")
    return report


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Equal values share the mean of their ranks."""
    return (values[:, None] > values).sum(1) + (values[:, None] == values).sum(1) / 2


def main(folder: str | Path, out: str | Path) -> list[Path]:
    """Draws the figure and prints how trace and edits agree; returns the files written."""
    average, swept = read(Path(folder))
    files = lines.save(draw(average, swept), out)
    print("\n".join(agreement(average, swept)))
    return files


def command(argv: Sequence[str] | None = None) -> None:
    parser = figure_parser("edit_layers", __doc__, "results/edit_layers")
    parser.add_argument("folder", help="holds a trace and runs of single-block edits")
    print("written:", *main(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    run_program(command)
