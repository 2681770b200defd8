"""Penalties of a layer's edges by their sizes, each with its gradient."""

import math

import torch

from .._core.function import ComposedFunction


class Penalty(ComposedFunction):
    """A Function of the sizes v (in, out) of a layer's edges: lamb_l1 sum(v) + lamb_entropy entropy(v).

    `forward` returns the gradient beside the value.
    """

    INPUTS = 1

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ComposedFunction.keep(ctx, inputs, output[1])

    @classmethod
    def plain(cls, *args):  # `forward` works in place
        return cls.compose(*args)

    @classmethod
    def gradients(cls, ctx, g, *_):
        _, (slope,) = cls.kept(ctx)
        return (g * slope,)


class EdgePenalty(Penalty):
    """Take the entropy of the shares of the edges: arXiv 2404.19756, eq. 2.19. An edge of size 0 adds 0."""

    @staticmethod
    def forward(v, lamb_l1, lamb_entropy):
        total, slope = lamb_l1 * v.sum(), torch.full_like(v, lamb_l1)
        if not lamb_entropy:
            return total, slope
        inverse = 1.0 / v.sum().clamp_min(torch.finfo(v.dtype).tiny)
        share = v * inverse
        zero = share == 0
        log = share.masked_fill(zero, 1.0).log_()
        entropy = -(share * log).sum()
        by_share = log.add_(1.0).neg_().masked_fill_(zero, 0.0)
        slope.addcmul_(by_share - (by_share * share).sum(), inverse, value=lamb_entropy)
        return total + lamb_entropy * entropy, slope

    @classmethod
    def compose(cls, v, lamb_l1, lamb_entropy):
        total = lamb_l1 * v.sum()
        if not lamb_entropy:
            return total, None
        share = v / v.sum().clamp_min(torch.finfo(v.dtype).tiny)
        zero = share == 0
        return total - lamb_entropy * (share * torch.where(zero, 1.0, share).log()).sum(), None


class RowColumnPenalty(Penalty):
    """Take pykan's entropy, of the rows and of the columns, with its constants 1 and 1e-4."""

    @staticmethod
    def forward(v, lamb_l1, lamb_entropy):
        total, slope = lamb_l1 * v.sum(), torch.full_like(v, lamb_l1)
        for dim in (0, 1):
            inverse = 1.0 / (v.sum(dim, keepdim=True) + 1.0)
            p = v * inverse
            shifted = p + 1e-4
            h = shifted.log2()
            factor = -lamb_entropy / v.shape[1 - dim]
            total = total.add_((p * h).sum(), alpha=factor)
            h.addcdiv_(p, shifted, value=1.0 / math.log(2.0))  # the derivative of p log2(p + 1e-4)
            slope.addcmul_(h - (h * p).sum(dim, keepdim=True), inverse, value=factor)
        return total, slope

    @classmethod
    def compose(cls, v, lamb_l1, lamb_entropy):
        total = lamb_l1 * v.sum()
        for dim in (0, 1):
            share = v / (v.sum(dim, keepdim=True) + 1)
            total = total - lamb_entropy * (share * (share + 1e-4).log2()).sum(dim).mean()
        return total, None
