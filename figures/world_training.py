"""Loss and recall of the built-in world's training, as PDF and PNG.

    python -m figures.world_training                                              # of the model that ships
    python -m figures.world_training world_model --out world_model/training       # of a run of data.world.train
"""
from pathlib import Path

import matplotlib.pyplot as plt

from common.errors import UserError
from data import world
from data.files import read_json
from experiments.run.cli import run_program
from figures.lines import save
from figures.program import figure_parser

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
    parser = figure_parser("world_training", __doc__, "results/world_training")
    parser.add_argument("log", nargs="?", type=Path, default=world.CHECKPOINT,
                        help="a training_log.json, or the folder of a model or of a run of data.world.train")
    args = parser.parse_args(argv)
    places = [args.log, args.log / "training_log.json", args.log / "model" / "training_log.json"]
    path = next((place for place in places if place.is_file()), args.log)
    log = read_json(path)
    if not isinstance(log, dict) or not {"epochs", "run"} <= log.keys():
        raise UserError(f"{path}: not a training_log.json of data.world.train")
    print("written:", *save(draw(log), args.out))


if __name__ == "__main__":
    run_program(main)
