"""``python -m figures.memat_sweep``: success, accuracy and magnitude over the number of heads (MEMAT), or over alpha (ITI).

    python -m figures.memat_sweep results/MEMAT --out results/memat_heads
    python -m figures.memat_sweep results/MEMIT_ITI --over alpha --out results/iti

Over heads (figure 9 of MEMAT) there is a figure for each profile and language of measurement, <out>_<profile>_<language>, with
a line for each pair of languages, and <out>_<profile>_scores; 0 heads is MEMIT alone, on the same facts. Over alpha each pair
has a figure, with a line for each number of heads and MEMIT alone as a dashed one. Bars are standard errors over chunks;
--published adds the published values, on another model and other data, as small filled marks.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from common.errors import UserError
from data import languages
from experiments.memat_results import COLUMNS, Key, Stage, base_of, read
from experiments.results import memat_published
from experiments.results.names import SCORED
from experiments.run.cli import run_program
from figures import lines
from figures.program import figure_parser

ROWS = {name[0].upper(): name for name in SCORED.values()}
MEASURES = {"S": "success", "A": "accuracy (teacher-forced)", "M": "magnitude"}
"""Second letters of :data:`names.PUBLISHED`; ROWS are the first."""
PUBLISHED = {"linestyle": "none", "markersize": 3.5, "markerfacecolor": "0.6", "markeredgecolor": "0.6", "zorder": 1}
BASE = {"color": "black", "linewidth": 1.0, "linestyle": (0, (4, 2)), "zorder": 1}

Published = Callable[[str, float], dict[str, float] | None]
"""(line's name, x) -> published values."""


def pair_name(pair: str) -> str:
    """"CE" -> "CE: edits in Catalan, heads in English"."""
    by_letter = {language[0].upper(): language.capitalize() for language in languages.names()}
    first, second = (by_letter.get(letter, letter) for letter in pair.strip("()").replace("+", ""))
    if "+" in pair:
        return f"{pair}: {'joint edits' if '(' in pair else 'edits'} and heads in {first} and {second}"
    return f"{pair}: edits in {first}, heads in {second}"


def over_heads(stages: Sequence[Stage]) -> dict[str, list[Stage]]:
    """{pair: its stages by number of heads, MEMIT alone first}."""
    by_pair: dict[str, list[Stage]] = {}
    for stage in sorted(stages, key=lambda stage: stage.heads):
        if stage.key[3] != "iti":
            by_pair.setdefault(stage.key[1], []).append(stage)
    return dict(sorted(by_pair.items()))


def grid(curves: Mapping[str, Sequence[Stage]], x_of: Callable[[Stage], float], x_label: str, labels: Sequence[str],
         published: Published | None = None, bases: Sequence[Stage] = ()) -> plt.Figure:
    """3 x 3 panels, a line for each of the curves; bases: stages that are drawn as horizontal lines."""
    extra = _extra(published, bases)
    figure, axes = lines.panels(len(ROWS), len(MEASURES), legend=len(labels) + len(extra), sharex=True)
    for row, (group, group_name) in zip(axes, ROWS.items()):
        for ax, (measure, title) in zip(row, MEASURES.items()):
            metric = group + measure
            for base in bases:
                ax.axhline(base.value(metric)[0], **BASE)
            draw_lines(ax, curves, x_of, metric, published)
            lines.label_axes(ax, x=x_label if group == list(ROWS)[-1] else "", y=f"{metric} (%)",
                             title=f"{group_name} {title}")
            ax.set_xticks(sorted({x_of(stage) for curve in curves.values() for stage in curve}))
    lines.legend(figure, labels, None, *extra)
    return figure


def draw_lines(ax: Axes, curves: Mapping[str, Sequence[Stage]], x_of: Callable[[Stage], float], metric: str,
               published: Published | None) -> None:
    """A line for each curve, with standard errors; beside it what was published for the same x."""
    for number, (name, stages) in enumerate(curves.items()):
        x = [x_of(stage) for stage in stages]
        means, errors = zip(*(stage.value(metric) for stage in stages))
        lines.errors(ax, x, means, errors)
        lines.plot(ax, number, x, means)
        marks = [(at, values[metric]) for at in x if published and (values := published(name, at)) and metric in values]
        if marks:
            ax.plot(*zip(*marks), marker=lines.style(number)["marker"], **PUBLISHED)


def _extra(published: Published | None, bases: Sequence[Stage]) -> list[Line2D]:
    marks = [Line2D([], [], marker="o", label="published, Aguila-7b, same marks", **PUBLISHED)] if published else []
    return [*([Line2D([], [], label="MEMIT alone, same facts", **BASE)] if bases else []), *marks]


def scores(by_language: Mapping[str, Mapping[str, Sequence[Stage]]], published: bool) -> plt.Figure:
    """The score over heads, a panel for each language of measurement."""
    pairs = list(next(iter(by_language.values())))
    extra = _extra(published_in("") if published else None, ())
    figure, axes = lines.panels(1, len(by_language), height=2.6, width=3.2, legend=len(pairs) + len(extra), sharey=True)
    for ax, (measured, curves) in zip(axes[0], by_language.items()):
        draw_lines(ax, curves, lambda stage: stage.heads, COLUMNS[-1], published_in(measured) if published else None)
        lines.label_axes(ax, x="heads", y="score (%)" if ax is axes[0, 0] else "", title=f"measured in {measured.capitalize()}")
        ax.set_xticks(sorted({stage.heads for curve in curves.values() for stage in curve}))
    lines.legend(figure, list(map(pair_name, pairs)), None, *extra)
    return figure


def published_in(measured: str) -> Published:
    """The published mean by language pair and number of heads; without heads it is MEMIT's."""
    return lambda pair, heads: memat_published.values("memat" if heads else "memit", measured, pair, int(heads), 0.0)


def _iti_in(measured: str, pair: str) -> Published:
    return lambda heads, alpha: memat_published.values("iti", measured, pair, int(heads), alpha)


def main(folders: Sequence[str | Path], out: str | Path, over: str = "heads", published: bool = False) -> list[Path]:
    """Draws the figures of the runs in these folders; returns the files written. UserError without such runs."""
    stages = read(folders)
    return _alpha_figures(stages, out, published) if over == "alpha" else _head_figures(stages, out, published)


def _head_figures(stages: Mapping[Key, Stage], out: str | Path, published: bool) -> list[Path]:
    written = []
    for profile in dict.fromkeys(key[0] for key in stages):
        by_language = {}
        for measured in dict.fromkeys(key[2] for key in stages if key[0] == profile):
            curves = over_heads([stage for key, stage in stages.items() if (key[0], key[2]) == (profile, measured)])
            by_language[measured] = curves
            figure = grid(curves, lambda stage: stage.heads, "heads", list(map(pair_name, curves)),
                          published_in(measured) if published else None)
            written += lines.save(figure, f"{out}_{profile}_{measured}")
        written += lines.save(scores(by_language, published), f"{out}_{profile}_scores")
    return written


def _alpha_figures(stages: Mapping[Key, Stage], out: str | Path, published: bool) -> list[Path]:
    written = []
    iti = sorted((stage for key, stage in stages.items() if key[3] == "iti"), key=lambda stage: (stage.heads, stage.alpha))
    if not iti:
        raise UserError("none of these runs has ITI's stages; use --over heads")
    for profile, pair, measured in sorted({stage.key[:3] for stage in iti}):
        curves: dict[str, list[Stage]] = {}
        for stage in iti:
            if stage.key[:3] == (profile, pair, measured):
                curves.setdefault(str(stage.heads), []).append(stage)
        figure = grid(curves, lambda stage: stage.alpha, "alpha", [f"{heads} head{'s' * (heads != '1')}" for heads in curves],
                      _iti_in(measured, pair) if published else None, [base_of(stages, next(iter(curves.values()))[0])])
        written += lines.save(figure, f"{out}_{profile}_{pair}_{measured}")
    return written


def command() -> None:
    parser = figure_parser("memat_sweep", __doc__, "results/memat_sweep", "beginning of the files' names")
    parser.add_argument("folders", nargs="+", help="run folders, or folders with runs somewhere in them")
    parser.add_argument("--over", choices=("heads", "alpha"), default="heads", help="the x axis (default: %(default)s)")
    parser.add_argument("--published", action="store_true", help="add the published values, of another model and other data")
    print("written:", *main(**vars(parser.parse_args())))


if __name__ == "__main__":
    run_program(command)
