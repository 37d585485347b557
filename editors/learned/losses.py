"""Losses and statistics of episodes, all in float32 or wider (Mitchell et al. 2022a, 2022b)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

IGNORED = -100
"""A label that is not scored."""


def first_scored(labels: Int[Tensor, " pos"]) -> int:
    """The position of the first label that is scored, at least 1; all of them if none is."""
    places = (labels != IGNORED).nonzero()
    return max(1, int(places[0])) if len(places) else len(labels)


@dataclass(frozen=True)
class Scores:
    """How well logits agree with labels; all scalars, differentiable where the logits are."""

    nll: Float[Tensor, ""]
    acc: Float[Tensor, ""]
    """Share of rows that are right at every label."""
    token_acc: Float[Tensor, ""]
    """Share of labels that are right."""
    prob: Float[Tensor, ""]
    log_prob: Float[Tensor, ""]
    n_tokens: Float[Tensor, ""]


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in its own dtype where that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def score(logits: Tensor, labels: Tensor, shift: bool, geometric: bool = False) -> Scores:
    """The scores of one batch.

    logits: (batch, pos, vocabulary), (batch, classes) or, binary, (batch, 1); labels: as many as rows or positions, IGNORED
    where nothing is scored. shift: position t predicts label t + 1. geometric: `prob` is exp of the mean log-probability
    (SERAC) instead of the mean probability (MEND).
    """
    if logits.shape[-1] == 1:
        return _binary(wide(logits), labels)
    log_p, right, mask = token_log_probs(logits, labels, shift)
    n = mask.sum()
    log_prob = (log_p * mask).sum() / n
    token_acc = (right & mask).sum() / n
    right = right | ~mask
    acc = (right.all(-1) if logits.dim() == 3 else right).float().mean()
    prob = log_prob.exp() if geometric else (log_p.exp() * mask).sum() / n
    return Scores(-log_prob, acc, token_acc, prob, log_prob, n.float())


def token_log_probs(
    logits: Float[Tensor, "batch *pos vocabulary"], labels: Int[Tensor, "batch *pos"], shift: bool
) -> tuple[Float[Tensor, "batch *scored"], Bool[Tensor, "batch *scored"], Bool[Tensor, "batch *scored"]]:
    """(log-probability of each label, whether it is the most probable, whether it is scored); 0 where it is not scored."""
    if shift and logits.dim() == 3:
        logits, labels = logits[:, : labels.shape[1] - 1], labels[:, 1:]  # what the last token predicts need not be there
    mask = labels != IGNORED
    targets = labels.masked_fill(~mask, 0)
    log_p = wide(logits).log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return log_p.masked_fill(~mask, 0.0), logits.argmax(-1) == targets, mask


def row_log_probs(logits: Tensor, labels: Tensor, shift: bool) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
    """(sum of the log-probabilities of each row's labels, how many labels it has)."""
    if logits.shape[-1] == 1:
        log_p, mask = _binary_log_probs(wide(logits), labels)
    else:
        log_p, _, mask = token_log_probs(logits, labels, shift)
    n = mask.to(log_p.dtype)
    return (log_p.sum(-1), n.sum(-1)) if log_p.dim() == 2 else (log_p, n)


def _binary_log_probs(logits: Float[Tensor, "batch 1"], labels: Tensor) -> tuple[Float[Tensor, "batch"], Bool[Tensor, "batch"]]:
    """(log-probability of each label, whether it is scored); 0 where it is not."""
    flat_labels = labels.reshape(-1)
    mask = flat_labels != IGNORED
    if not ((flat_labels == 0) | (flat_labels == 1) | ~mask).all():
        raise ValueError("binary labels must be 0 or 1")
    return logsigmoid(logits.reshape(-1) * (2 * flat_labels - 1)).masked_fill(~mask, 0.0), mask


def _binary(logits: Float[Tensor, "batch 1"], labels: Tensor) -> Scores:
    log_p, mask = _binary_log_probs(logits, labels)
    log_p = log_p[mask]
    mean, acc = log_p.mean(), (log_p.exp() > 0.5).float().mean()
    return Scores(-mean, acc, acc, log_p.exp().mean(), mean, log_p.new_tensor(len(log_p)))


def locality_kl(
    pre: Tensor, post: Tensor, mask: Int[Tensor, "batch pos"] | None = None, segments: int = 1
) -> Float[Tensor, ""]:
    """KL(pre || post): the mean over the positions of `mask` (sequences), or over rows (one binary logit each).

    segments: the mean of the divergences of so many groups of rows.
    """
    pre, post = wide(pre), wide(post)
    if pre.shape[-1] == 1:
        return (
            pre.sigmoid() * (logsigmoid(pre) - logsigmoid(post)) + (-pre).sigmoid() * (logsigmoid(-pre) - logsigmoid(-post))
        ).mean()
    if pre.dim() != 3 or mask is None:
        raise NotImplementedError(f"no divergence for logits of shape {tuple(pre.shape)}")
    before, after = pre.log_softmax(-1), post.log_softmax(-1)
    divergences = (before.exp() * (before - after)).sum(-1) * mask
    return (divergences.reshape(segments, -1).sum(-1) / mask.reshape(segments, -1).sum(-1)).mean()


def locality_mask(batch: dict[str, Tensor]) -> Tensor | None:
    """The positions that `locality_kl` averages over: those the decoder reads, where there is one."""
    mask = batch.get("decoder_attention_mask")
    return batch.get("attention_mask") if mask is None else mask


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, accurate at both ends."""
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-x.exp()))


def balanced_bce(log_p: Float[Tensor, "n"], positive: Bool[Tensor, "n"]) -> Float[Tensor, ""]:
    """Binary cross-entropy with both sides weighted alike: mean(-log p) of positives + mean(-log(1 - p)) of negatives.

    An absent side is 0. log_p above -1e-6 is taken as that, so the gradient stays finite.
    """
    log_p = wide(log_p).clamp(max=-1e-6)
    loss = log_p.new_zeros(())
    if positive.any():
        loss = loss - log_p[positive].mean()
    if not positive.all():
        loss = loss - log1mexp(log_p[~positive]).mean()
    return loss


def retained(pre: Tensor, post: Tensor, labels: Tensor, shift: bool) -> Float[Tensor, ""]:
    """Share of rows whose answer an edit leaves: the same most probable token at every label, or the same sign."""
    if pre.shape[-1] == 1:
        return ((pre > 0) == (post > 0)).float().mean()
    if shift:
        pre, post, labels = pre[:, :-1], post[:, :-1], labels[:, 1:]
    return ((pre.argmax(-1) == post.argmax(-1)) | (labels == IGNORED)).all(-1).float().mean()


def sentiment_nll(
    logits: Float[Tensor, "batch pos vocabulary"],
    labels: Int[Tensor, "batch pos"],
    same: Bool[Tensor, "batch"],
    shift: bool,
    unlikelihood: bool,
) -> Scores:
    """-log p of the tokens of rows of the edit's sentiment (`same`), and with `unlikelihood` also -log(1 - p) of the others'.

    A side without rows adds nothing. log_prob, prob and n_tokens are those of the `same` rows.
    """
    log_p, right, mask = token_log_probs(logits, labels, shift)
    good, bad = mask & same[:, None], mask & ~same[:, None]
    log_prob = _mean(log_p, good)
    nll = -log_prob
    if unlikelihood:
        eps = torch.finfo(torch.float32).eps
        nll = nll - _mean((1 - log_p.exp() + eps).log(), bad)
    acc = (right | ~mask).all(-1).float().mean()
    return Scores(nll, acc, (right & mask).sum() / mask.sum(), log_prob.exp(), log_prob, good.sum().float())


def sentiment_scores(
    pre: Tensor, post: Tensor, labels: Int[Tensor, "batch pos"], same: Bool[Tensor, "batch"], shift: bool
) -> dict[str, Float[Tensor, ""]]:
    """SERAC's success of an edited opinion: z_sent (right rather than wrong sentiment), z_topic (no less fluent than before),
    acc_sent, their product; with the mean log-probabilities they come from. NaN where a side has no rows."""
    before, _, mask = token_log_probs(pre, labels, shift)
    after, _, _ = token_log_probs(post, labels, shift)
    good, bad = mask & same[:, None], mask & ~same[:, None]
    correct, wrong = (after * good).sum() / good.sum(), (after * bad).sum() / bad.sum()
    z_sent = (correct - wrong).sigmoid()
    raw = (correct - (before * good).sum() / good.sum()).exp()
    z_topic = raw.clamp(max=1)
    return {
        "acc_sent": z_sent * z_topic,
        "z_sent": z_sent,
        "z_topic": z_topic,
        "z_topic_raw": raw,
        "correct_probs": correct,
        "wrong_probs": wrong,
    }


def _mean(values: Tensor, mask: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean over the mask; 0 where it is empty."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
