"""SERAC's supervision: what the counterfactual model should answer with the right edit, and what is in scope."""

import torch
from torch import Tensor

from editors.learned.episode import Batch, Episode
from editors.learned.losses import balanced_bce
from editors.learned.trainer import Trainer
from .serac import SERAC
from .texts import with_texts


class SupervisedTrainer(Trainer):
    """Trains a SERAC: loss = cedit * L_cntr + cloc * L_cls, both from the data's knowledge of what belongs to which edit.

    L_cntr: of the equivalents, each behind its own edit; L_cls: balanced cross-entropy of equivalents (in scope) and unrelated
    inputs (not). With `supervised: false` the loss is that of other editors, on softly mixed answers. Validation reports both.
    """

    alg: SERAC

    def step(self, episode: Episode, training: bool) -> dict[str, float]:
        episode = with_texts(episode)
        options = self.alg.options
        if not options.supervised:
            return super().step(episode, training)
        self.alg.train(training)
        with torch.set_grad_enabled(training):
            stats, loss = self._supervised(episode)
        if training:
            self.safe_backward(loss)
        values = {name: value.item() for name, value in stats.items()}
        return values if training else super().step(episode, False) | values

    def _supervised(self, episode: Episode) -> tuple[dict[str, Tensor], Tensor]:
        edited, _ = self.alg.edit(episode.edit_inner)
        options, columns = self.alg.options, torch.tensor(edited.placed, device=episode.pos_pairs.device)
        parts, positive, stats = [], [], {}
        l_cntr = next(iter(self.alg.outer_parameters())).new_zeros(())
        if episode.edit_outer is not None:
            owners = columns[episode.pos_pairs[:, 1]]
            sims = self._similarities(edited, episode.edit_outer, owners)
            right = torch.zeros_like(sims, dtype=torch.bool).scatter_(1, owners[:, None], True)
            parts, positive = [sims[right]], [True] * len(owners)
            others = sims.masked_fill(right, -torch.inf).amax(1) if options.nearest_negatives else sims[~right]
            if (options.other_edits_negative or options.nearest_negatives) and sims.shape[1] > 1:
                parts.append(others)
                positive += [False] * len(others)
            logits = edited.counterfactual(episode.edit_outer, edited.queries(episode.edit_outer), owners.tolist())
            scores = self.outer_scores(episode, logits)
            l_cntr = scores.nll
            stats |= {"cntr/acc": scores.acc, "cntr/log_prob": scores.log_prob, "cntr/prob": scores.prob, "loss/cntr": l_cntr}
            stats |= _similar(sims, "edit") | {"cls/pos_acc": (sims[right].exp() > options.threshold).float().mean()}
        sims = self._similarities(edited, episode.loc, columns)
        n = min(len(sims), len(columns))
        if options.nearest_negatives:
            negatives = sims.amax(1)
        else:
            negatives = sims.flatten() if options.use_all_negatives else sims[torch.arange(n), columns[:n]]
        parts.append(negatives)
        positive += [False] * len(negatives)
        l_cls = balanced_bce(torch.cat(parts), torch.tensor(positive, device=negatives.device))
        stats |= _similar(sims, "loc") | {"loss/cls": l_cls}
        stats["cls/neg_acc"] = (negatives.exp() <= options.threshold).float().mean()
        stats["cls/acc"] = (stats.get("cls/pos_acc", stats["cls/neg_acc"]) + stats["cls/neg_acc"]) / 2
        stats["loss/total_supervised"] = loss = self.config.cedit * l_cntr + self.config.cloc * l_cls
        return stats, loss

    def _similarities(self, edited: SERAC, batch: Batch, owners: Tensor) -> Tensor:
        """log p of each input under each edit; in training, with `pairs`, under its owner's and the next ones only."""
        queries, edits, pairs = edited.queries(batch), len(edited.memory), self.alg.options.pairs
        if pairs is None or pairs >= edits or not self.alg.net.training:
            return edited.log_similarities(queries)
        first = owners[torch.arange(len(queries), device=owners.device) % len(owners)]
        columns = (first[:, None] + torch.arange(pairs, device=owners.device)) % edits
        return edited.scope.some(queries, list(edited.memory), columns)

    @property
    def early_stop_key(self) -> str:
        """The published runs stop by the supervised loss."""
        usual = super().early_stop_key
        return "loss/total_supervised_val" if self.alg.options.supervised and usual == "loss/total_edit_val" else usual


def _similar(sims: Tensor, kind: str) -> dict[str, Tensor]:
    """What the nearest edit's probability is like, over a batch."""
    nearest = sims.max(1).values.exp()
    return {f"sims/mean_{kind}": nearest.mean(), f"sims/pos_{kind}": (nearest >= 0.5).float().mean(),
            f"sims/neg_{kind}": (nearest < 0.5).float().mean()}
