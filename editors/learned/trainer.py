"""Training of a learned editor on episodes: optimiser, validation, early stop, and checkpoints that go on exactly."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import EditingError
from . import checkpoint
from .averages import Averages, EarlyStop
from .editable import Editable, forward
from .episode import Batch, Episode, joined
from .low_rank import LowRankEditable
from .losses import IGNORED, Scores, locality_kl, locality_mask, retained, row_log_probs, score, sentiment_nll, sentiment_scores
from .options import Options

BEST, LAST, LOG = "best.safetensors", "last.safetensors", "log.jsonl"
DEBUG_STEPS = 200
"""Episodes of the final evaluation in debug mode."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """The trainer's part of the configuration; keys and defaults are those published."""

    lr: float = 1e-5
    lr_lr: float = 1e-3
    """Learning rate of the learned step sizes."""
    max_iters: int = 1_000_000
    log_interval: int = 100
    val_interval: int = 5000
    val_steps: int = 500
    """Edits of a validation."""
    accumulate_bs: int = 10
    """Episodes per optimiser step."""
    parallel: int = 1
    """Episodes that go through the model side by side, where the algorithm can: the same gradients in less time."""
    cedit: float = 0.1
    cloc: float = 1.0
    cbase: float = 1.0
    opt: str = "Adam"
    grad_clip: float = 100.0
    """Largest norm of all outer gradients together."""
    train_base: bool = True
    """Hold the trained model to the original one (ENN)."""
    early_stop_patience: int = 20_000
    """Iterations without a better validation."""
    early_stop_key: str = "loss/total_edit_val"
    save: bool = True
    """Keep checkpoints."""
    eval_only: bool = False
    final_steps: int | None = None
    """Edits of the final evaluation; None: all."""
    unlikelihood: bool = True
    """Edits of opinions: responses of the wrong sentiment shall become unlikely, too."""
    accumulate_first_step_plus_one: bool = False
    """As published: the first optimiser step is of one episode more, still divided by accumulate_bs."""
    lr_lr_without_effect: bool = False
    """As published by MEND: learned step sizes move at lr."""
    cbase_not_in_gradient: bool = False
    """As published: cbase scales what is reported only."""

    def __post_init__(self):
        for name in (
            "max_iters",
            "log_interval",
            "val_interval",
            "val_steps",
            "accumulate_bs",
            "early_stop_patience",
            "parallel",
        ):
            if getattr(self, name) < (name != "max_iters"):
                raise EditingError(f"{name}: {getattr(self, name)} is too small")
        for name in ("lr", "lr_lr", "cedit", "cloc", "cbase", "grad_clip"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise EditingError(f"{name}: {getattr(self, name)} must be a finite number, not below 0")
        if not isinstance(getattr(torch.optim, self.opt, None), type):
            raise EditingError(f"opt: torch.optim has no {self.opt!r}")


class Source(Protocol):
    """Where episodes come from; the same number gives the same episode, always, so a resumed run needs no more than that."""

    def __len__(self) -> int: ...

    def episode(self, number: int) -> Episode: ...


class Trainer:
    """Trains `alg`, keeps the best networks, and evaluates them at the end.

    SERAC's supervision is a subclass with another `step`.
    """

    def __init__(
        self,
        alg: Editable,
        config: TrainConfig,
        train: Source | None,
        validation: Source,
        folder: Path,
        original: nn.Module | None = None,
        identity: Mapping[str, Any] | None = None,
        progress: bool = True,
        report: Callable[[str], None] = tqdm.write,
    ):
        """folder: of checkpoints and log. original: the model before any training, for the base loss of `train_base`.
        identity: what a run that goes on must agree on besides `config` (data, seed)."""
        self.alg, self.config, self.train, self.validation, self.folder = alg, config, train, validation, folder
        self.original = original if config.train_base else None
        self.identity = json.loads(json.dumps({**asdict(config), **(identity or {})}))
        self.progress, self.report = progress, report
        self.iteration, self.skipped, self.elapsed = 0, 0, 0.0
        self.averages, self.early = Averages(), EarlyStop(config.early_stop_patience)
        self.groups = {name: list(params) for name, params in alg.outer_groups().items()}
        rates = {"lr": config.lr, "lr_lr": config.lr if config.lr_lr_without_effect else config.lr_lr}
        self.optimiser = None
        if any(self.groups.values()) and not config.eval_only:
            groups = [{"params": params, "lr": rates[name]} for name, params in self.groups.items() if params]
            self.optimiser = getattr(torch.optim, config.opt)(groups)

    # One episode

    def step(self, episode: Episode, training: bool) -> dict[str, float]:
        """Runs an episode; in training its gradient is added to the outer parameters' `.grad`. Returns what to report."""
        alg, config, segments = self.alg, self.config, episode.segments
        alg.train(training)
        with torch.no_grad():
            before = alg(episode.loc)
        started = time.perf_counter()
        with torch.set_grad_enabled(training):
            options = {"segments": segments} if segments > 1 else {}
            edited, _ = alg.edit(episode.edit_inner, episode.cond, **options)
            seconds = (time.perf_counter() - started) / segments
            after = edited(episode.loc)
            l_loc = locality_kl(before, after, locality_mask(episode.loc), segments)
            stats = {"kl/edit": l_loc, "loss/loc": l_loc}
            l_edit = after.new_zeros(())
            if episode.edit_outer is not None:
                logits = edited(episode.edit_outer)
                scores = self.outer_scores(episode, logits)
                l_edit = scores.nll if segments == 1 else segment_nll(logits, episode.edit_outer, alg.kind.shift, segments)
                stats |= {
                    "loss/edit": l_edit,
                    "edit/acc": scores.acc,
                    "edit/log_prob": scores.log_prob,
                    "edit/prob": scores.prob,
                }
                stats |= self._flips(episode, logits)
                if not training:
                    stats |= self._opinions(episode, logits)
            total = config.cedit * l_edit + config.cloc * l_loc
        stats["loss/total_edit"] = total
        if training:
            self.safe_backward(total, segments)
        if (episode.loc["labels"] != IGNORED).any():
            pre, post = alg.score(before, episode.loc), alg.score(after, episode.loc)
            for name in ("acc", "token_acc", "nll", "n_tokens"):
                stats |= {f"{name}/pre": getattr(pre, name), f"{name}/post": getattr(post, name)}
        stats["retain/edit"] = retained(before, after, episode.loc["labels"], alg.kind.shift)
        if self.original is not None:
            l_base, base_stats = self._base_loss(episode, before, after, training)
            stats |= base_stats
            total = total + config.cbase * l_base
        stats["loss/total"] = total
        return {name: value.item() for name, value in stats.items()} | {"time/edit": seconds}

    def _base_loss(self, episode: Episode, before: Tensor, after: Tensor, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """KL(original || current) on the unrelated inputs: what holds the trained model in place."""
        loc, shift = episode.loc, self.alg.kind.shift
        with torch.no_grad():
            original = forward(self.original.train(training), {}, loc)
        with torch.set_grad_enabled(training):
            l_base = locality_kl(original, self.alg(loc), locality_mask(loc), episode.segments)
        if training:
            self.safe_backward(l_base if self.config.cbase_not_in_gradient else self.config.cbase * l_base, episode.segments)
        scores = score(original, loc["labels"], shift)
        return l_base.detach(), {
            "loss/base": l_base,
            "nll/original": scores.nll,
            "acc/original": scores.acc,
            "n_tokens/original": scores.n_tokens,
            "kl/orig_post": locality_kl(original, after, locality_mask(loc)),
            "retain/orig_pre": retained(original, before, loc["labels"], shift),
            "retain/orig_post": retained(original, after, loc["labels"], shift),
        }

    def outer_scores(self, episode: Episode, logits: Tensor) -> Scores:
        """Of the equivalents; where the edits are of opinions, of those of the edit's sentiment: with `unlikelihood` the loss
        holds down the others."""
        same = same_sentiment(episode)
        if same is None:
            return self.alg.score(logits, episode.edit_outer)
        return sentiment_nll(logits, episode.edit_outer["labels"], same, self.alg.kind.shift, self.config.unlikelihood)

    def _opinions(self, episode: Episode, logits: Tensor) -> dict[str, Tensor]:
        """SERAC's success of edited opinions, where both sentiments are there to be told apart."""
        same = same_sentiment(episode)
        if same is None or same.all() or not same.any():
            return {}
        before = self.alg(episode.edit_outer)
        scores = sentiment_scores(before, logits, episode.edit_outer["labels"], same, self.alg.kind.shift)
        return {f"edit/{name}": value for name, value in scores.items()}

    def _flips(self, episode: Episode, logits: Tensor) -> dict[str, Tensor]:
        """Success on edits that really change the answer, where the data says which do."""
        flips = [getattr(item, "flip", None) for item in episode.extras.get("items", ())]
        rows = [row for row, edit in episode.pos_pairs.tolist() if flips and flips[edit]]
        if not rows:
            return {}
        return {"edit/acc_flip": self.alg.score(logits[rows], {"labels": episode.edit_outer["labels"][rows]}).acc}

    def safe_backward(self, loss: Tensor, episodes: int = 1) -> None:
        """Adds d loss / d outer parameters, divided by the episodes per step, to `.grad`; the loss is the mean of so many.

        A gradient that is not finite is left out and counted. Raises EditingError for a loss that is not finite.
        """
        if not torch.isfinite(loss):
            kept = self.folder / BEST
            raise EditingError(
                f"the loss is {loss.item()} in iteration {self.iteration + 1}, so training stops; lower lr or edit_lr"
                + (f"; the best networks so far are in {kept}" if kept.is_file() else "")
            )
        params = [p for group in self.groups.values() for p in group]
        grads = torch.autograd.grad(loss, params, allow_unused=True)
        if not all(torch.isfinite(g).all() for g in grads if g is not None):
            self.skipped += episodes
            return
        for p, g in zip(params, grads):
            if g is not None:
                g = g * (episodes / self.config.accumulate_bs)
                p.grad = g if p.grad is None else p.grad + g

    # The loop

    def run(self) -> None:
        """Trains, if there is anything to train; the networks are afterwards those of the best validation."""
        if self.optimiser is None:
            return
        self._loop()
        best = self.folder / BEST
        if self.config.save and best.is_file():
            checkpoint.load(best, self.alg)

    def _loop(self) -> None:
        config = self.config
        bar = tqdm(total=config.max_iters, initial=self.iteration, desc=self.alg.name, unit="ep", disable=not self.progress)
        started = time.perf_counter() - self.elapsed
        while self.iteration < config.max_iters and not self.early.stopped:
            for episode in self._episodes(self.train, self.iteration, self._until_next()):
                self.averages.add(self.step(episode, training=True), len(episode.pos_pairs), episode.segments)
                self.iteration += episode.segments
                bar.update(episode.segments)
            if self._step_is_due():
                self.averages.add(self._optimise())
            self.elapsed = time.perf_counter() - started
            if self.iteration % config.log_interval == 0:
                means = self.averages.means("_train") | {"train/skipped": self.skipped, **self._rates()}
                self.log(means)
                bar.set_postfix_str(summary(means, "_train"))
                self.averages = Averages()
            if self.iteration % config.val_interval == 0 or self.iteration == config.max_iters:
                self._validation()
        bar.close()

    def _until_next(self) -> int:
        """Episodes up to whatever is due next, at most those that go side by side."""
        config, done = self.config, self.iteration
        early = config.accumulate_first_step_plus_one
        due = [every - done % every for every in (config.log_interval, config.val_interval)]
        due.append(config.accumulate_bs - (done - early) % config.accumulate_bs if done else config.accumulate_bs + early)
        return min(*due, config.max_iters - done, self.side_by_side)

    @property
    def side_by_side(self) -> int:
        """Episodes that go through the model together."""
        return self.config.parallel if isinstance(self.alg, LowRankEditable) else 1

    def _episodes(self, source: Source, first: int, count: int) -> list[Episode]:
        """The next episodes, as one where they can be joined."""
        episodes = [source.episode(number) for number in range(first, first + count)]
        one = joined(episodes)
        return [episode.to(self.device) for episode in (episodes if one is None else [one])]

    def _step_is_due(self) -> bool:
        done, every = self.iteration, self.config.accumulate_bs
        if self.config.accumulate_first_step_plus_one:
            done -= 1
        return done > 0 and done % every == 0

    def _optimise(self) -> dict[str, float]:
        params = self.alg.outer_parameters()
        norm = torch.nn.utils.clip_grad_norm_(params, self.config.grad_clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return {"grad": float(norm)}

    def _rates(self) -> dict[str, float]:
        return {
            f"lr/lr{i}": float(a) for group in [self.groups.get("lr_lr", [])] for p in group for i, a in enumerate(p.detach())
        }

    def _validation(self) -> None:
        means = self.validate(self.validation, self.config.val_steps)
        self.log(means)
        self.report(f"{self.iteration}/{self.config.max_iters} {summary(means, '_val')}")
        key = self.early_stop_key
        if key not in means:
            raise EditingError(f"early_stop_key: a validation reports no {key!r}; it reports {', '.join(sorted(means))}")
        if self.early.update(self.iteration, means[key]) and self.config.save:
            checkpoint.save(self.folder / BEST, self.alg, {"iteration": self.iteration, "validation": means})
        if self.config.save:
            self.save(self.folder / LAST)

    @property
    def early_stop_key(self) -> str:
        return self.config.early_stop_key

    @property
    def device(self) -> torch.device:
        return next(self.alg.model.parameters()).device

    def validate(self, source: Source, edits: int | None, suffix: str = "_val") -> dict[str, float]:
        """Means over the first episodes of `source` that hold so many edits (None: all)."""
        averages, started, number, seen = Averages(), time.perf_counter(), 0, 0
        while number < len(source) and (edits is None or seen < edits):
            for episode in self._episodes(source, number, min(self.side_by_side, len(source) - number)):
                averages.add(self.step(episode, training=False), len(episode.pos_pairs), episode.segments)
                number, seen = number + episode.segments, seen + len(episode.edit_inner["input_ids"])
        if not number:
            raise EditingError(
                "the validation data has no episode: fewer examples than a batch holds; make val_batch_size smaller"
            )
        seconds = time.perf_counter() - started
        return averages.means(suffix) | {"eval_time/elapsed": seconds, "eval_time/average": seconds / number}

    def log(self, stats: Mapping[str, float]) -> None:
        """One line of the run's log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.iteration, **stats}) + "\n")

    # Checkpoints

    def save(self, path: Path) -> None:
        """All that a run needs to go on as if it had never stopped."""
        state, tensors, scalars = self.optimiser.state_dict(), {}, {}
        for number, entry in state["state"].items():
            for key, value in entry.items():
                if isinstance(value, Tensor):
                    tensors[f"opt/{number}/{key}"] = value.detach().cpu()
                else:
                    scalars[f"{number}/{key}"] = value
        for i, p in enumerate(self.alg.outer_parameters()):
            if p.grad is not None:
                tensors[f"grad/{i}"] = p.grad.detach().cpu()
        tensors["rng/cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["rng/cuda"] = torch.cuda.get_rng_state()
        checkpoint.save(
            path,
            self.alg,
            {
                "iteration": self.iteration,
                "skipped": self.skipped,
                "elapsed": self.elapsed,
                "early": self.early.state(),
                "averages": asdict(self.averages),
                "identity": self.identity,
                "opt": scalars,
            },
            tensors,
        )

    def restore(self, path: Path) -> None:
        """Go on from what `save` wrote. Raises EditingError if that is of another configuration, model or data."""
        info, tensors = checkpoint.load(path, self.alg)
        if "identity" not in info:
            raise EditingError(f"{path}: holds networks, but no state of a training to go on with (that is in {LAST})")
        free = {"max_iters", "log_interval", "eval_only", "final_steps"}
        differing = sorted(
            k
            for k in (info["identity"].keys() | self.identity.keys()) - free
            if info["identity"].get(k) != self.identity.get(k)
        )
        if differing:
            raise EditingError(f"{path}: a run with another {', '.join(differing)}; use the same, or start a new run")
        state = self.optimiser.state_dict()
        state["state"] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "opt":
                number, _, key = rest.partition("/")
                state["state"].setdefault(int(number), {})[key] = tensor
            elif kind == "grad":
                p = self.alg.outer_parameters()[int(rest)]
                p.grad = tensor.to(p.device)
        for name, value in info["opt"].items():
            number, _, key = name.partition("/")
            state["state"].setdefault(int(number), {})[key] = value
        self.optimiser.load_state_dict(state)
        torch.set_rng_state(tensors["rng/cpu"])
        if "rng/cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng/cuda"])
        self.iteration, self.skipped, self.elapsed = info["iteration"], info["skipped"], info["elapsed"]
        self.early.restore(info["early"])
        self.averages = Averages(**info["averages"])
        self._cut_log()

    def _cut_log(self) -> None:
        """Drops what a killed run logged after its last checkpoint."""
        path = self.folder / LOG
        if path.is_file():
            lines = [
                line for line in path.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= self.iteration
            ]
            path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def segment_nll(logits: Tensor, batch: Batch, shift: bool, segments: int) -> Float[Tensor, ""]:
    """The mean over segments of the mean of their labels' -log p."""
    log_p, n = (rows.reshape(segments, -1).sum(-1) for rows in row_log_probs(logits, batch["labels"], shift))
    return -(log_p / n).mean()


def same_sentiment(episode: Episode) -> Bool[Tensor, "outer"] | None:
    """Whether each equivalent has the sentiment of its edit; None where the edits are not of opinions."""
    items = episode.extras.get("items", ())
    if not items or getattr(items[0], "sentiment", None) is None:
        return None
    signs = [sign for item in items for sign in item.outer_sentiments]
    same = [signs[row] == items[edit].sentiment for row, edit in episode.pos_pairs.tolist()]
    return torch.tensor(same, dtype=torch.bool, device=episode.pos_pairs.device)


def summary(stats: Mapping[str, float], suffix: str) -> str:
    """The few numbers of a progress line."""
    parts = [
        ("edit", "edit/acc"),
        ("acc_pre", "token_acc/pre"),
        ("acc_post", "token_acc/post"),
        ("kl", "kl/edit"),
        ("loss", "loss/total_edit"),
    ]
    return " ".join(f"{name}: {stats[key + suffix]:.4g}" for name, key in parts if key + suffix in stats)
