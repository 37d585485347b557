"""From logits to the two losses of the value optimisation, in one buffer.

At a vocabulary of 50,000 the temporaries that autograd would allocate on the way back take longer than the arithmetic.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def target_losses(
    logits: Float[Tensor, "rows vocabulary"], token: Int[Tensor, " n"], initial: Float[Tensor, "rows-n vocabulary"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " rows-n"]]:
    """log p(token) in the first n rows, and KL(p || initial) in the others; initial: log-probabilities of the unedited model.

    Differentiable once, with respect to the logits.
    """
    return _TargetLosses.apply(logits, token, initial)


class _TargetLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, token, initial):
        log_p = logits.log_softmax(-1)
        n = len(token)
        edited = log_p[n:]
        kl = (edited.exp() * (edited - initial)).sum(-1)
        ctx.log_p, ctx.token, ctx.initial, ctx.kl = log_p, token, initial, kl
        return log_p[:n].gather(1, token[:, None])[:, 0], kl

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, toward_log_p, toward_kl):
        gradient, n = ctx.log_p, len(ctx.token)  # the buffer becomes the gradient
        del ctx.log_p
        edited = gradient[n:]
        edited.copy_(edited.exp() * (edited - ctx.initial - ctx.kl[:, None]) * toward_kl[:, None])
        gradient[:n].exp_().mul_(-toward_log_p[:, None])
        gradient[torch.arange(n, device=gradient.device), ctx.token] += toward_log_p
        return gradient, None, None
