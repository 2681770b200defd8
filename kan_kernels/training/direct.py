"""The mean squared error of a KAN and its gradient, each in one call: what autograd would do, without it."""

from typing import Any

import torch
from torch import Tensor, nn

from .._engine import network
from ..nn.network import KAN, gather, hooked

_CALL, _FORWARD = KAN.__call__, KAN.forward


class SquaredError:
    """The error mean((model(x) - y)^2), and on demand its gradient, in the `grad` of the parameters."""

    def __init__(self, x: Tensor, y: Tensor, layers: network.Layers) -> None:
        prediction, self._hidden = network.forward(x, layers)
        self.value = nn.functional.mse_loss(prediction, y)
        self._x, self._layers, self._residual = x, layers, prediction.sub_(y)

    def backward(self, scale: float) -> None:
        """Add `scale` times the gradient to that of the parameters."""
        cotangent = self._residual.mul(2 * scale / max(1, self._residual.numel()))
        gradients = network.weight_gradients(self._x, self._hidden, cotangent, self._layers)
        for parameter, gradient in zip(self._layers.tensors, gradients, strict=False):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


@torch.no_grad()
def squared_error(model: nn.Module, x: Tensor, y: Tensor) -> SquaredError | None:
    """Return the error, or None where it is a case for autograd: where somebody else has a part in it."""
    if type(model) is not KAN or "forward" in model.__dict__ or hooked(model):
        return None
    if KAN.forward is not _FORWARD or KAN.__call__ is not _CALL or x.requires_grad or y.requires_grad:
        return None
    layers = gather(model)
    if isinstance(layers, str) or network.why_not(x, layers) is not None or x.dim() != 2:
        return None
    if not all(_is_plain_leaf(t) for t in layers.tensors[: -layers.count]):
        return None
    weight = layers.tensors[layers.count - 1]
    if y.shape != (x.shape[0], weight.shape[2]) or y.dtype != weight.dtype or y.device != weight.device:
        return None
    try:
        return SquaredError(x, y, layers)
    except RuntimeError:  # the layers say what is wrong
        return None


def _is_plain_leaf(t: Any) -> bool:
    """Return whether autograd would put the gradient into `grad` as it is."""
    return bool(t.requires_grad and t.is_leaf and not t._backward_hooks and not t._post_accumulate_grad_hooks)
