"""What an episode reports besides its losses, and the few numbers of a progress line."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .editable import Editable
from .episode import Batch, Episode
from .losses import IGNORED, Scores, locality_kl, locality_mask, retained, row_log_probs, score, sentiment_scores


def segment_nll(logits: Tensor, batch: Batch, shift: bool, segments: int) -> Float[Tensor, ""]:
    """The mean over segments of the mean of their labels' -log p."""
    log_p, n = (rows.reshape(segments, -1).sum(-1) for rows in row_log_probs(logits, batch["labels"], shift))
    return -(log_p / n).mean()


def of_segments(alg: Editable, logits: Tensor, batch: Batch, segments: int) -> dict[str, Tensor]:
    """Means over segments of what is a mean over tokens, so that episodes count the same whether they are joined or not."""
    parts = zip(logits.chunk(segments), batch["labels"].chunk(segments))
    scores = [alg.score(part, {"labels": labels}) for part, labels in parts if (labels != IGNORED).any()]
    return {name: torch.stack([getattr(s, name) for s in scores]).mean() for name in ("token_acc", "prob", "log_prob")}


@torch.no_grad()
def of_equivalents(alg: Editable, episode: Episode, logits: Tensor, scores: Scores, training: bool) -> dict[str, Tensor]:
    """Success of the edits, of those alone that really change the answer, and on implied and true-or-false questions alone,
    where the data says which these are. In validation of opinions SERAC's success, too, where both sentiments are there."""
    means = vars(scores) if episode.segments == 1 else of_segments(alg, logits, episode.edit_outer, episode.segments)
    stats = {"edit/acc": scores.acc, "edit/log_prob": means["log_prob"], "edit/prob": means["prob"]}
    items = episode.extras.get("items", ())
    flips = [getattr(item, "flip", None) for item in items]
    hard = [implied for item in items for implied in getattr(item, "hard", ())]
    for name, rows in (("flip", [row for row, edit in episode.pos_pairs.tolist() if flips and flips[edit]]),
                       ("hard", [row for row, implied in enumerate(hard) if implied])):
        if rows:
            stats[f"edit/acc_{name}"] = alg.score(logits[rows], {"labels": episode.edit_outer["labels"][rows]}).acc
            stats[f"n_rows/edit/acc_{name}"] = torch.tensor(float(len(rows)))
    same = same_sentiment(episode)
    if not training and same is not None and same.any() and not same.all():
        before = alg(episode.edit_outer)
        sentiments = sentiment_scores(before, logits, episode.edit_outer["labels"], same, alg.kind.shift)
        stats |= {f"edit/{name}": value for name, value in sentiments.items()}
    return stats


@torch.no_grad()
def of_unrelated(alg: Editable, loc: Batch, before: Tensor, after: Tensor, segments: int = 1) -> dict[str, Tensor]:
    """How unrelated inputs are answered before and after the edit."""
    stats = {"retain/edit": retained(before, after, loc["labels"], alg.kind.shift)}
    if (loc["labels"] != IGNORED).any():
        for when, logits in (("pre", before), ("post", after)):
            scores = alg.score(logits, loc)
            stats |= {f"{name}/{when}": getattr(scores, name) for name in ("acc", "token_acc", "nll", "n_tokens")}
            if segments > 1:
                stats[f"token_acc/{when}"] = of_segments(alg, logits, loc, segments)["token_acc"]
    return stats


@torch.no_grad()
def of_original(alg: Editable, loc: Batch, original: Tensor, before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """How the model before any training answers unrelated inputs, and how far the trained one is from that."""
    shift, scores = alg.kind.shift, score(original, loc["labels"], alg.kind.shift)
    return {
        **{f"{name}/original": getattr(scores, name) for name in ("nll", "acc", "n_tokens")},
        "kl/orig_post": locality_kl(original, after, locality_mask(loc)),
        "retain/orig_pre": retained(original, before, loc["labels"], shift),
        "retain/orig_post": retained(original, after, loc["labels"], shift),
    }


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
    keys = {
        "edit": "edit/acc",
        "acc_pre": "token_acc/pre",
        "acc_post": "token_acc/post",
        "kl": "kl/edit",
        "loss": "loss/total_edit",
    }
    return " ".join(f"{name}: {stats[key + suffix]:.4g}" for name, key in keys.items() if key + suffix in stats)
