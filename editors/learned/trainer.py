"""Training of a learned editor on episodes: optimiser steps, validation, early stop, and checkpoints that go on exactly."""

import json
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.errors import UserError
from . import checkpoint, episode_stats, optimisers, run_log
from .averages import Averages, EarlyStop
from .editable import Editable, forward
from .episode import Episode, joined
from .losses import Scores, locality_kl, locality_mask, sentiment_nll
from .train_config import TrainConfig

BEST, LAST = "best.safetensors", "last.safetensors"
DEBUG_STEPS = 200
"""Episodes of the final evaluation in debug mode."""
FREE = {"max_iters", "log_interval", "eval_only", "final_steps"}
"""Keys that may differ between a run and what it goes on from."""
REHEARSED = 8
"""Episodes of validation among which a rehearsal looks for the quantity that stops the run."""


class Source(Protocol):
    """Where episodes come from; the same number gives the same episode, always, so a resumed run needs no more than that."""

    def __len__(self) -> int: ...

    def episode(self, number: int) -> Episode:
        """The episode of that number."""


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
    ):
        """folder: of checkpoints and log. original: the model before any training, for the base loss of `train_base`.
        identity: what a run that goes on must agree on besides `config` (data, seed). progress: whether there is a bar."""
        self.alg, self.config, self.train, self.validation, self.folder = alg, config, train, validation, folder
        self.original = original if config.train_base else None
        self.identity = _flat(json.loads(json.dumps({**asdict(config), **(identity or {})})))
        self.progress = progress
        self.iteration, self.skipped, self.elapsed = 0, 0, 0.0
        self.averages, self.early = Averages(), EarlyStop(config.early_stop_patience)
        self.groups = {name: list(params) for name, params in alg.outer_groups().items()}
        rates = {"lr": config.lr, "lr_lr": config.lr if config.lr_lr_without_effect else config.lr_lr}
        self.optimiser = None
        if any(self.groups.values()) and not config.eval_only:
            groups = [{"params": params, "lr": rates[name]} for name, params in self.groups.items() if params]
            self.rates = [group["lr"] for group in groups]
            self.optimiser = optimisers.build(config.opt, groups, alg.net)

    # One episode

    def step(self, episode: Episode, training: bool) -> dict[str, float]:
        """Runs an episode; in training its gradient is added to the outer parameters' `.grad`. Returns what to report."""
        alg, config, segments = self.alg, self.config, episode.segments
        alg.train(training)
        with torch.no_grad():
            before = alg(episode.loc)
        started = time.perf_counter()
        with torch.set_grad_enabled(training):
            edited, _ = alg.edit(episode.edit_inner, episode.cond, **({"segments": segments} if segments > 1 else {}))
            seconds = (time.perf_counter() - started) / segments
            after = edited(episode.loc)
            l_loc = locality_kl(before, after, locality_mask(episode.loc), segments)
            stats = {"kl/edit": l_loc, "loss/loc": l_loc}
            stats |= episode_stats.of_unrelated(alg, episode.loc, before, after, segments)
            l_edit = after.new_zeros(())
            if episode.edit_outer is not None:
                logits = edited(episode.edit_outer)
                scores = self.outer_scores(episode, logits)
                outer, shift = episode.edit_outer, alg.kind.shift
                l_edit = scores.nll if segments == 1 else episode_stats.segment_nll(logits, outer, shift, segments)
                stats |= {"loss/edit": l_edit} | episode_stats.of_equivalents(alg, episode, logits, scores, training)
            stats["loss/total_edit"] = loss = total = config.cedit * l_edit + config.cloc * l_loc
            if self.original is not None:
                with torch.no_grad():
                    original = forward(self.original.train(training), {}, episode.loc)
                l_base = locality_kl(original, alg(episode.loc), locality_mask(episode.loc), segments)
                stats |= {"loss/base": l_base} | episode_stats.of_original(alg, episode.loc, original, before, after)
                loss = total + (1 if config.cbase_not_in_gradient else config.cbase) * l_base
                total = total + config.cbase * l_base
        stats["loss/total"] = total
        if training:
            self.safe_backward(loss, segments)
        return {name: value.item() for name, value in stats.items()} | {"time/edit": seconds}

    def outer_scores(self, episode: Episode, logits: Tensor) -> Scores:
        """Of the equivalents; where the edits are of opinions, of those of the edit's sentiment: with `unlikelihood` the loss
        holds down the others."""
        same = episode_stats.same_sentiment(episode)
        if same is None:
            return self.alg.score(logits, episode.edit_outer)
        return sentiment_nll(logits, episode.edit_outer["labels"], same, self.alg.kind.shift, self.config.unlikelihood)

    def safe_backward(self, loss: Tensor, episodes: int = 1) -> None:
        """Adds d loss / d outer parameters, divided by the episodes per step, to `.grad`; the loss is the mean of so many.

        A gradient that is not finite is left out and counted. Raises UserError for a loss that is not finite.
        """
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss is {loss.item()} in iteration {self.iteration + 1}")
        params = [p for group in self.groups.values() for p in group]
        grads = torch.autograd.grad(loss, params, allow_unused=True)
        if not all(torch.isfinite(g).all() for g in grads if g is not None):
            self.skipped += episodes
            return
        for p, g in zip(params, grads):
            if g is not None:
                g = g * (episodes / self.config.accumulate_bs)
                p.grad = g if p.grad is None else p.grad + g

    def _diverged(self, problem: str) -> UserError:
        hint = f"; the best networks so far are in {self.folder / BEST}" if self.has_best else ""
        return UserError(f"{problem}, so the run stops; lower lr or edit_lr{hint}")

    # The loop

    def rehearse(self) -> None:
        """Episodes of training and of validation that leave nothing behind.

        Raises UserError for what is wrong with data or configuration, before the run begins.
        """
        if self.optimiser is None or not self.config.max_iters:
            return
        buffers = {name: buffer.clone() for name, buffer in self.alg.net.named_buffers()}
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            for episode in self._episodes(self.train, self.iteration, self._until_next()):
                self.step(episode, training=True)
            averages = Averages()
            for number in range(min(REHEARSED, len(self.validation))):
                for episode in self._episodes(self.validation, number, 1):
                    averages.add(self.step(episode, training=False))
        self._check_early_stop_key(averages.means("_val"))
        for name, buffer in self.alg.net.named_buffers():
            buffer.copy_(buffers[name])
        self.optimiser.zero_grad()
        self.skipped = 0

    def run(self) -> None:
        """Trains, if there is anything to train; the networks are afterwards those of the best validation."""
        if self.optimiser is None:
            return
        run_log.cut(self.folder, self.iteration)
        self._loop()
        if self.has_best:
            checkpoint.load(self.folder / BEST, self.alg)

    @property
    def has_best(self) -> bool:
        """Whether this run has kept its best networks."""
        return self.config.save and self.early.best_iteration is not None

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
                bar.set_postfix_str(episode_stats.summary(means, "_train"))
                self.averages = Averages()
            if self.iteration % config.val_interval == 0 or self.iteration == config.max_iters:
                self._validation()
        bar.close()

    def _until_next(self) -> int:
        """Episodes up to whatever is due next, at most those that go side by side."""
        config, iteration = self.config, self.iteration
        early = config.accumulate_first_step_plus_one
        due = [every - iteration % every for every in (config.log_interval, config.val_interval)]
        since_step = (iteration - early) % config.accumulate_bs if iteration else -early
        due.append(config.accumulate_bs - since_step)
        return min(*due, config.max_iters - iteration, self.side_by_side)

    @property
    def side_by_side(self) -> int:
        """Episodes that go through the model together."""
        return self.config.parallel if self.alg.parallel else 1

    def _episodes(self, source: Source, first: int, count: int) -> list[Episode]:
        """The next episodes, as one where they can be joined."""
        episodes = [source.episode(number) for number in range(first, first + count)]
        joint_episode = joined(episodes)
        return [episode.to(self.device) for episode in (episodes if joint_episode is None else [joint_episode])]

    def _step_is_due(self) -> bool:
        iteration, every = self.iteration, self.config.accumulate_bs
        if self.config.accumulate_first_step_plus_one:
            iteration -= 1
        return iteration > 0 and iteration % every == 0

    def _optimise(self) -> dict[str, float]:
        params = self.alg.outer_parameters()
        norm = torch.nn.utils.clip_grad_norm_(params, self.config.grad_clip)
        falling = self.config.lr_decay * self.config.max_iters
        for group, rate in zip(self.optimiser.param_groups, self.rates):
            group["lr"] = rate * min(1.0, (self.config.max_iters - self.iteration + 1) / falling) if falling else rate
        self.optimiser.step()
        self.optimiser.zero_grad()
        return {"grad": float(norm)}

    def _rates(self) -> dict[str, float]:
        return {
            f"lr/lr{i}": float(a) for group in [self.groups.get("lr_lr", [])] for p in group for i, a in enumerate(p.detach())
        }

    def _validation(self) -> None:
        means = self.validate(self.validation, self.config.val_steps)
        self._check_early_stop_key(means)
        value = means[self.early_stop_key]
        if math.isnan(value):
            raise self._diverged(f"{self.early_stop_key} is nan after iteration {self.iteration}")
        self.log(means)
        tqdm.write(f"{self.iteration}/{self.config.max_iters} {episode_stats.summary(means, '_val')}")
        if self.early.update(self.iteration, value) and self.config.save:
            checkpoint.save(self.folder / BEST, self.alg, {"iteration": self.iteration, "validation": means})
        if self.config.save:
            self.save(self.folder / LAST)

    def _check_early_stop_key(self, reported: Collection[str]) -> None:
        if self.early_stop_key not in reported:
            raise UserError(
                f"early_stop_key: a validation reports no {self.early_stop_key!r}; it reports {', '.join(sorted(reported))}"
            )

    @property
    def early_stop_key(self) -> str:
        """The quantity of a validation whose lowest value is the best."""
        return self.config.early_stop_key

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.alg.model.parameters()).device

    def validate(self, source: Source, edits: int | None, suffix: str = "_val") -> dict[str, float]:
        """Means over the first episodes of `source` that hold so many edits (None: all).

        Raises UserError for a loss that is not finite.
        """
        averages, started, number, edits_seen = Averages(), time.perf_counter(), 0, 0
        while number < len(source) and (edits is None or edits_seen < edits):
            for episode in self._episodes(source, number, min(self.side_by_side, len(source) - number)):
                averages.add(self.step(episode, training=False), len(episode.pos_pairs), episode.segments)
                number, edits_seen = number + episode.segments, edits_seen + len(episode.edit_inner["input_ids"])
        if not number:
            raise UserError(
                "the validation data has no episode: fewer examples than a batch holds; make val_batch_size smaller"
            )
        means = averages.means(suffix)
        for key, value in means.items():
            if key.startswith("loss/") and not math.isfinite(value):
                raise self._diverged(f"{key} is {value} after iteration {self.iteration}")
        seconds = time.perf_counter() - started
        return means | {"eval_time/elapsed": seconds, "eval_time/average": seconds / number}

    def log(self, stats: Mapping[str, float]) -> None:
        """One line of the run's log."""
        run_log.append(self.folder, self.iteration, stats)

    # Checkpoints

    def save(self, path: Path) -> None:
        """All that a run needs to go on as if it had never stopped."""
        scalars, tensors = optimisers.state_of(self.optimiser, self.alg.outer_parameters())
        info = {
            "iteration": self.iteration,
            "skipped": self.skipped,
            "elapsed": self.elapsed,
            "early": self.early.state(),
            "averages": asdict(self.averages),
            "identity": self.identity,
            "opt": scalars,
        }
        checkpoint.save(path, self.alg, info, tensors)

    def restore(self, path: Path) -> None:
        """Go on from what `save` wrote. Raises UserError if that is of another configuration, model or data."""
        info, tensors = checkpoint.load(path, self.alg)
        if "identity" not in info:
            raise UserError(f"{path}: holds networks, but no state of a training to go on with (that is in {LAST})")
        # An older run did without the trainer's keys that it did not know.
        saved = {field.name: field.default for field in fields(TrainConfig)} | _flat(info["identity"])
        free = FREE - {"max_iters"} if self.config.lr_decay else FREE  # there the rates go by it
        differing = [key for key in (saved.keys() | self.identity.keys()) - free if saved.get(key) != self.identity.get(key)]
        if differing:
            keys = ", ".join(sorted(differing, key=lambda key: (key.count("."), key))[:5])
            raise UserError(f"{path}: a run with another {keys}; use the same, or start a new run")
        optimisers.restore(self.optimiser, self.alg.outer_parameters(), info["opt"], tensors)
        self.iteration, self.skipped, self.elapsed = info["iteration"], info["skipped"], info["elapsed"]
        self.early.restore(info["early"])
        self.averages = Averages(**info["averages"])
        if self.has_best and not (self.folder / BEST).is_file():
            raise UserError(f"{self.folder / BEST}: no such file; a run goes on from {LAST} with its best networks beside it")


def _flat(identity: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value}."""
    flat = {}
    for key, value in identity.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
