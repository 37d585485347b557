"""``python -m experiments.scope RUN``: how well a trained SERAC tells what is in scope, by threshold, and which one to take.

    python -m experiments.scope outputs/<run> --edits 10                    # writes outputs/<run>/scope.json
    python -m experiments.scope outputs/<run> --export systems/qa           # and the networks, with the calibrated threshold
    python -m experiments.scope outputs/<run> --edits 1000 --out outputs/<run>/scope_1000.json
    python -m figures.scope outputs/<run>/scope.json

Of every batch so many edits are made at once; each of its equivalents should be routed to its own edit, none of its unrelated
inputs to any. The threshold is chosen on the validation split (see ``calibrated``) and depends on how many edits there are: the
more, the nearer the nearest one is to any input. The figures are of the test split.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from common.errors import UserError
from data.files import read_json
from editors.learned.algorithms import algorithm
from editors.memory.parts import check_place, save_parts
from editors.memory.serac import SERAC
from editors.memory.texts import with_texts
from experiments.results import run_folder
from experiments.run.cli import at_least_one, Parser, run_program
from experiments.train import CONFIG, CONFIGS
from experiments.training.episodes import Episodes

if TYPE_CHECKING:
    from experiments.training.setup import Setup

SCOPE = "scope.json"


@dataclass(frozen=True)
class Scores:
    """Probabilities of the edit to which each input is nearest."""

    inside: list[float]
    """Of inputs that belong to an edit,"""
    right: list[bool]
    """and whether it is that one."""
    outside: list[float]
    """Of unrelated inputs."""

    def at(self, threshold: float) -> dict[str, float]:
        """recall: share of equivalents that go to their own edit; false_positives: share of unrelated inputs that go to any;
        precision: share of routed inputs that go where they should (1 where none is)."""
        routed = [ok for p, ok in zip(self.inside, self.right) if p > threshold]
        wrong = sum(p > threshold for p in self.outside)
        hits, total = sum(routed), len(routed) + wrong
        return {"threshold": threshold, "recall": hits / len(self.inside), "false_positives": wrong / len(self.outside),
                "precision": hits / total if total else 1.0}

    def sweep(self) -> list[dict[str, float]]:
        """At 0, and from each probability that occurs on."""
        return [self.at(threshold) for threshold in sorted({0.0, *self.inside, *self.outside})]

    def calibrated(self) -> float:
        """The threshold with the largest recall - false_positives: the middle of the widest interval of such."""
        points = self.sweep()
        best = max(point["recall"] - point["false_positives"] for point in points)
        ends = [point["threshold"] for point in points[1:]] + [1.0]
        widest = max((end - point["threshold"], -point["threshold"]) for point, end in zip(points, ends)
                     if point["recall"] - point["false_positives"] == best)
        return min(max(-widest[1] + widest[0] / 2, 1e-6), 1 - 1e-6)


@torch.no_grad()
def scores(alg: SERAC, source: Episodes, edits: int) -> Scores:
    """Over the first episodes that hold so many edits."""
    alg.eval()
    inside, right, outside, edits_seen, number = [], [], [], 0, 0
    bar = tqdm(desc="scope", unit="edit", leave=False, disable=None)
    while number < len(source) and edits_seen < edits:
        episode = with_texts(source.episode(number))
        edited, _ = alg.edit(episode.edit_inner)
        if episode.edit_outer is not None:
            route = edited.route(edited.queries(episode.edit_outer))
            inside += route.score.tolist()
            owners = [edited.placed[edit] for _, edit in episode.pos_pairs.tolist()]
            right += [place == owner for place, owner in zip(route.edit.tolist(), owners)]
        outside += edited.route(edited.queries(episode.loc)).score.tolist()
        edited_now = len(episode.edit_inner["input_ids"])
        edits_seen, number = edits_seen + edited_now, number + 1
        bar.update(edited_now)
    bar.close()
    if not inside or not outside:
        raise UserError("there are no equivalents and unrelated inputs to tell apart; ask for fewer --edits at once")
    return Scores(inside, right, outside)


def load_run(run: Path, edits: int = 1, most: int = 1000, **changed: Any) -> Setup:
    """A trained SERAC with the data of its run, in batches of `edits`; of the validation split the first `most` edits.

    changed: keys of the configuration with their new values. Raises UserError for another folder.
    """
    from experiments.training.setup import prepare

    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: not the folder of a run of experiments.train (no {CONFIG})")
    config = read_json(run / CONFIG)
    missing = [key for key in ("alg", "task", "model", "data") if not isinstance(config, dict) or key not in config]
    if missing:
        raise UserError(f"{run / CONFIG}: not the configuration of a run, there is no {missing[0]}")
    defaults = OmegaConf.to_container(OmegaConf.load(CONFIGS / "config.yaml"))
    defaults = {key: value for key, value in defaults.items() if key not in ("hydra", "defaults")}
    for key, value in defaults.items():
        if isinstance(value, dict) and not isinstance(config.get(key, {}), dict):
            raise UserError(f"{run / CONFIG}: not the configuration of a run, {key} is {config[key]!r} and no object")
    config = OmegaConf.to_container(OmegaConf.merge(defaults, config))  # keys that an older run did not know
    if algorithm(str(config["alg"])) is not SERAC:
        raise UserError(f"{run}: a run of {config['alg']}; only SERAC has a scope classifier and a memory")
    return prepare({**config, "archive": str(run), "eval_only": True, "silent": True, "val_batch_size": edits,
                    "val_steps": most, "export": None, "eval": {**config["eval"], "split": "test"}, **changed}, run)


def main(
    run: Path, edits: int = 10, most: int = 1000, export: Path | None = None, out: Path | None = None
) -> dict[str, Any]:
    """Writes `out` (None: scope.json in the run's folder); returns its content."""
    out = out or run / SCOPE
    if export is not None:
        check_place(export)
    setup = load_run(run, edits, most)
    alg = setup.trainer.alg
    validation, test = (scores(alg, source, most) for source in (setup.trainer.validation, setup.final))
    threshold = validation.calibrated()
    content = {
        "run": str(run), "edits": edits, "inputs": {"inside": len(test.inside), "outside": len(test.outside)},
        "published": {"threshold": alg.options.threshold, **test.at(alg.options.threshold)},
        "calibrated": test.at(threshold), "validation": validation.at(threshold), "sweep": test.sweep(),
    }
    run_folder.write_json(out, content)
    if export is not None:
        print(f"networks: {save_parts(alg, export, threshold)}")
    for name in ("published", "calibrated"):
        print(f"{name:11s}" + "  ".join(f"{key} {value:.4f}" for key, value in content[name].items()))
    print(f"results: {out}")
    return content


def command(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m experiments.scope", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of experiments.train +alg=rep")
    parser.add_argument("--edits", type=at_least_one, default=10, help="made at once (default: %(default)s)")
    parser.add_argument("--most", type=at_least_one, default=1000, help="edits of a split that are read (default: %(default)s)")
    parser.add_argument("--export", type=Path, help="folder for the networks, as transformers loads them, with the threshold")
    parser.add_argument("--out", type=Path, help="file of the figures (default: scope.json in the run's folder)")
    args = parser.parse_args(argv)
    main(args.run, args.edits, args.most, args.export, args.out)


if __name__ == "__main__":
    run_program(command)
