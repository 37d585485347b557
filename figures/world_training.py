"""Loss and recall of the built-in world's training: `python -m figures.world_training [log] [--out figures/out]`.

Writes world_training.pdf and world_training.png.
"""
import argparse
import functools
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only, no display
import matplotlib.pyplot as plt

from data import world
from data.errors import DataError
from data.files import read_json, write_atomically
from experiments.cli import Parser, run_program

STYLES = {"en": ("-", "o", "English"), "ca": ("--", "s", "Catalan")}  # told apart without colour


def draw(log: dict) -> plt.Figure:
    """The figure of a training_log.json: training loss above, greedy recall below, over the seconds of training."""
    epochs = log["epochs"]
    minutes = [entry["seconds"] / 60 for entry in epochs]
    figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(6, 5.5), constrained_layout=True)
    top.plot(minutes, [entry["loss"] for entry in epochs], "k-", marker=".")
    top.set_ylabel("training loss (nats per token)")
    for language, (line, marker, label) in STYLES.items():
        bottom.plot(minutes, [100 * entry["recall"][language] for entry in epochs], linestyle=line, marker=marker,
                    markersize=4, color="black", markerfacecolor="white", label=label)
    bottom.set_ylabel("facts recalled greedily (%)")
    bottom.set_xlabel("time of training (minutes)")
    bottom.set_ylim(-3, 103)
    warm = [minute for minute, entry in zip(minutes, epochs) if entry["warm"]]
    if warm:
        for axes in (top, bottom):
            axes.axvspan(0, warm[-1], color="0.9")
        share = log["run"]["warm_share"]
        bottom.text(warm[-1] / 2, 0.95, f"trained on\n{share:.0%} of the\nsubjects", fontsize=8, ha="center", va="top",
                    transform=bottom.get_xaxis_transform())
    bottom.legend(frameon=False, loc="lower right")
    return figure


def main(argv=None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", nargs="?", type=Path, default=world.CHECKPOINT / "training_log.json")
    parser.add_argument("--out", type=Path, default=Path("figures/out"))
    args = parser.parse_args(argv)
    log = read_json(args.log)
    if not isinstance(log, dict) or not {"epochs", "run"} <= log.keys():
        raise DataError(f"{args.log}: not a training_log.json of data.world.train")
    figure = draw(log)
    for suffix in ("pdf", "png"):
        path = args.out / f"world_training.{suffix}"
        write_atomically(path, functools.partial(figure.savefig, format=suffix, dpi=200))
        print(path)


if __name__ == "__main__":
    run_program(main)
