"""Penalties of a layer's edges by their sizes, each with its gradient."""

import math

import torch

from .._core.function import ComposedFunction


class Penalty(ComposedFunction):
    """A Function of the sizes v (in, out) of a layer's edges: lamb_l1 sum(v) + lamb_entropy entropy(v).

    `forward` returns the gradient beside the value. A subclass has `add_entropy` and `entropy`.
    """

    INPUTS = 1

    @classmethod
    def add_entropy(cls, v, lamb, total, slope):
        """Add lamb times the entropy to total and its gradient to slope, in place."""
        raise NotImplementedError

    @classmethod
    def entropy(cls, v):
        """Return the entropy, differentiable to any order."""
        raise NotImplementedError

    @classmethod
    def forward(cls, v, lamb_l1, lamb_entropy):
        total, slope = lamb_l1 * v.sum(), torch.full_like(v, lamb_l1)
        if lamb_entropy:
            cls.add_entropy(v, lamb_entropy, total, slope)
        return total, slope

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ComposedFunction.keep(ctx, inputs, output[1])

    @classmethod
    def compose(cls, v, lamb_l1, lamb_entropy):
        total = lamb_l1 * v.sum()
        return total + lamb_entropy * cls.entropy(v) if lamb_entropy else total, None

    @classmethod
    def plain(cls, *args):  # `forward` works in place
        return cls.compose(*args)

    @classmethod
    def gradients(cls, ctx, g, *_):
        _, (slope,) = cls.kept(ctx)
        return (g * slope,)


class EdgePenalty(Penalty):
    """The entropy of the shares of the edges: arXiv 2404.19756, eq. 2.19. An edge of size 0 adds 0."""

    @classmethod
    def add_entropy(cls, v, lamb, total, slope):
        inverse = 1.0 / v.sum().clamp_min(torch.finfo(v.dtype).tiny)
        share = v * inverse
        zero = share == 0
        log = share.masked_fill(zero, 1.0).log_()
        total.add_((share * log).sum(), alpha=-lamb)
        by_share = log.add_(1.0).neg_().masked_fill_(zero, 0.0)
        slope.addcmul_(by_share - (by_share * share).sum(), inverse, value=lamb)

    @classmethod
    def entropy(cls, v):
        share = v / v.sum().clamp_min(torch.finfo(v.dtype).tiny)
        return -(share * torch.where(share == 0, 1.0, share).log()).sum()


class RowColumnPenalty(Penalty):
    """The entropy of pykan, of the rows and of the columns, with its constants 1 and 1e-4."""

    @classmethod
    def add_entropy(cls, v, lamb, total, slope):
        for dim in (0, 1):
            inverse = 1.0 / (v.sum(dim, keepdim=True) + 1.0)
            p = v * inverse
            shifted = p + 1e-4
            h = shifted.log2()
            factor = -lamb / v.shape[1 - dim]
            total.add_((p * h).sum(), alpha=factor)
            h.addcdiv_(p, shifted, value=1.0 / math.log(2.0))  # the derivative of p log2(p + 1e-4)
            slope.addcmul_(h - (h * p).sum(dim, keepdim=True), inverse, value=factor)

    @classmethod
    def entropy(cls, v):
        shares = [v / (v.sum(dim, keepdim=True) + 1) for dim in (0, 1)]
        return -sum((p * (p + 1e-4).log2()).sum(dim).mean() for dim, p in enumerate(shares))
