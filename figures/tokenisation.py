"""``python -m figures.tokenisation``: how alike facts are tokenised in two languages, as PDF, PNG and CSV.

    python -m figures.tokenisation --model_name projecte-aina/aguila-7b --ds_name english_CF.json --out results/tokenisation

Histograms of the Jaccard similarity of the token sets of subject, relation and new object (MEMAT, Tamayo et al. 2024), in
tenths from 0 to 1. --write_subsets DIR also writes the records whose subjects have different (below 0.5) or the same tokens (1)
in both languages, as data_<eng|cat>_<dif|eq>_subj.json.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from data import bilingual, languages, similarity
import data
from data.files import write_text
from experiments.results.tables import Table
from experiments.run.cli import run_program
from experiments.run.models import load_tokenizer
from figures import lines
from figures.program import figure_parser

BINS = np.linspace(0, 1, 11)
SUBSETS = {"different": "dif", "same": "eq"}
"""Those of :func:`similarity.by_subject`, by their part of the published file names."""


def counts(values: Sequence[float]) -> list[int]:
    """How many are in each tenth; the last has its end, 1. Rounding errors of a quotient do not move it across a border."""
    return np.histogram(np.round(values, 9), np.round(BINS, 9))[0].tolist()


def draw(similarities: Mapping[str, Sequence[float]], names: tuple[str, str]) -> plt.Figure:
    """A panel for each part; names: of the languages."""
    figure, axes = lines.panels(1, len(similarities), width=2.6, height=2.4, sharey=True)
    for ax, (part, values) in zip(axes[0], similarities.items()):
        heights = counts(values)
        ax.bar(BINS[:-1] + 0.05, heights, width=0.1, color="0.75", edgecolor="black", linewidth=0.7)
        for start, height in zip(BINS, heights):
            if height:
                ax.annotate(f"{height:,}", (start + 0.05, height), xytext=(0, 1), textcoords="offset points", fontsize=6,
                            ha="center", va="bottom")
        ax.grid(axis="y", linestyle=(0, (4, 2)), color="0.8", linewidth=0.6)
        ax.set_axisbelow(True)
        lines.label_axes(ax, x=f"Jaccard similarity,\n{names[0].capitalize()} and {names[1].capitalize()}",
                         y="facts" if ax is axes[0, 0] else "", title=f"{part} (mean {np.mean(values):.2f})")
        ax.set_xlim(0, 1)
        ax.set_xticks(np.linspace(0, 1, 6))
    return figure


def write_subsets(folder: str | Path, raw: Mapping[str, Sequence[dict]], positions: Mapping[str, Sequence[int]]) -> list[Path]:
    """Writes each subset of the aligned records in each language; returns the files. Subsets without a record have no file."""
    written = []
    for subset, chosen in positions.items():
        for language, records in raw.items():
            if chosen:
                written.append(Path(folder) / f"data_{languages.spec(language).tag}_{SUBSETS[subset]}_subj.json")
                write_text(written[-1], json.dumps([records[i] for i in chosen], ensure_ascii=False, indent=4))
    return written


def main(model_name: str, ds_name: str, out: str | Path, pair: tuple[str, str] = ("english", "catalan"),
         data_dir: str | Path | None = None, subsets: str | Path | None = None) -> list[Path]:
    """Draws the figure, writes the counts and, with ``subsets``, the subsets there; returns the files written."""
    tok = load_tokenizer(model_name)
    records = data.load_aligned(ds_name, pair, data_dir)
    aligned = [records[language] for language in pair]
    similarities = similarity.similarities(tok, *aligned)
    written = lines.save(draw(similarities, pair), out)
    rows = [[part, f"{low:.1f}", f"{high:.1f}", count] for part, values in similarities.items()
            for low, high, count in zip(BINS, BINS[1:], counts(values))]
    written.append(Table(["part", "from", "to", "facts"], rows).save(f"{out}.csv"))
    if subsets is not None:
        raw = {}
        for language in pair:
            source = bilingual.counterpart(ds_name, pair[0], language)
            by_id = {record["case_id"]: record for record in data.raw_records(source, language, data_dir)[0]}
            raw[language] = [by_id[record.case_id] for record in aligned[0]]
        written += write_subsets(subsets, raw, similarity.by_subject(tok, *aligned))
    return written


def command() -> None:
    parser = figure_parser("tokenisation", __doc__, "results/tokenisation")
    parser.add_argument("--model_name", default="world", help="whose tokenizer (default: %(default)s)")
    parser.add_argument("--ds_name", default="world", help="world, or the first language's file (default: %(default)s)")
    parser.add_argument("--language", default="english", help="of the data set (default: %(default)s)")
    parser.add_argument("--language_eval", default="catalan", help="to compare with (default: %(default)s)")
    parser.add_argument("--data_dir", help="where data files are looked for that are not here")
    parser.add_argument("--write_subsets", metavar="DIR",
                        help="write the records of differently and equally tokenised subjects")
    args = parser.parse_args()
    pair = (args.language, args.language_eval)
    print("written:", *main(args.model_name, args.ds_name, args.out, pair, args.data_dir, args.write_subsets))


if __name__ == "__main__":
    run_program(command)
