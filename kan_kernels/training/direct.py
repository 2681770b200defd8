"""The mean squared error of a KAN and its gradient by calls of kernels: what autograd does, without it."""

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._core.bases import BASE_CODES, BSPLINE
from .._engine import network
from .._engine.edges_autograd import backend_of
from .._engine.penalties import EdgePenalty
from ..nn.network import KAN, gather, hooked

_CALL, _FORWARD = KAN.__call__, KAN.forward


class Weights(NamedTuple):
    """The weights of the regularisation as a whole, of a layer's L1 norm, and of its entropy."""

    lamb: float
    l1: float
    entropy: float


def weights_of(lamb: float, options: Mapping[str, Any]) -> Weights | None:
    """Return the weights of a regularisation of kind "l1" by the edges' norms alone; None for any other."""
    known = {"kind": "l1", "lamb_l1": 1.0, "lamb_entropy": 2.0, "lamb_coef": 0.0, "lamb_coefdiff": 0.0}
    if not options.keys() <= known.keys():
        return None
    given = {**known, **options}
    numbers = [given[name] for name in known if name != "kind"]
    plain = all(type(value) in (int, float) and 0 <= value < float("inf") for value in numbers)
    if given["kind"] != "l1" or not plain or any(numbers[2:]):
        return None
    return Weights(lamb, float(numbers[0]), float(numbers[1]))


class SquaredError:
    """The error mean((model(x) - y)^2), the regularisation, and on demand the gradient of their sum, in the
    `grad` of the parameters.
    """

    def __init__(
        self, x: Tensor, y: Tensor, layers: network.Layers, backend: ModuleType, weights: Weights | None
    ) -> None:
        prediction, self._hidden = network.forward(x, layers, backend)
        # nn.functional.mse_loss without its broadcast, which costs 10 us; 1: the mean, whatever the stub says
        self.value: Tensor = torch._C._nn.mse_loss(prediction, y, 1)  # type: ignore[arg-type]
        self.penalty: Tensor | None = None
        self._x, self._layers, self._residual = x, layers, prediction.sub_(y)
        self._backend = backend
        if weights is None:
            return
        self._lamb, self._slopes = weights.lamb, []
        self._numbers = layers.order, BASE_CODES[layers.base]
        self._inputs = network.inputs(x, self._hidden, layers)
        for n, inside in enumerate(self._inputs):
            norm = backend.edge_l1(inside, *layers.of(n), *self._numbers)
            value, slope = EdgePenalty.forward(norm, *weights[1:])
            self.penalty = value if self.penalty is None else self.penalty + value
            self._slopes.append(slope)

    @property
    def total(self) -> Tensor:
        """Return what is minimised."""
        return self.value if self.penalty is None else self.value + self._lamb * self.penalty

    def backward(self, scale: float) -> None:
        """Add `scale` times the gradient to that of the parameters."""
        cotangent = self._residual.mul(2 * scale / max(1, self._residual.numel()))
        if self.penalty is None:
            gradients = network.weight_gradients(
                self._x, self._hidden, cotangent, self._layers, self._backend
            )
        else:
            gradients = self._with_penalty(cotangent, scale * self._lamb)
        for parameter, gradient in zip(self._layers.tensors, gradients, strict=False):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def _with_penalty(self, g: Tensor, scale: float) -> list[Tensor]:
        """Return the gradients, layer by layer: what a layer reads is part of its penalty too."""
        layers, backend, (order, base) = self._layers, self._backend, self._numbers
        made: list[list[Tensor]] = [[], [], []]  # last layer first
        for n in reversed(range(layers.count)):
            x, (weight, base_weight, grid) = self._inputs[n], layers.of(n)
            numbers = weight.shape[1], order, base, 0, BSPLINE.code
            if n:
                dx, d_spline, d_base = backend.kan_linear_backward(x, weight, base_weight, g, grid, *numbers)
            else:
                d_spline, d_base = backend.kan_linear_grad_weight(x, None, g, grid, *numbers, None)
            slope = self._slopes[n] * scale
            of_edges = backend.edge_l1_backward(
                x, weight, base_weight, slope, grid, *self._numbers, n > 0, True
            )
            made[0].append(d_spline.add_(of_edges[1]))
            if base:
                made[1].append(d_base.add_(of_edges[2]))
            if layers.biased:
                made[2].append(g.sum(0))
            if n:
                g = dx.add_(of_edges[0])
        return [gradient for kind in made for gradient in reversed(kind)]


@torch.no_grad()
def squared_errors(
    model: nn.Module, x: Tensor, y: Tensor, weights: Weights | None = None
) -> Callable[[], SquaredError] | None:
    """Return what evaluates the error, as often as only the parameters' numbers have changed; or None where
    it is a case for autograd: where somebody else has a part in it.

    What it returns raises RuntimeError where a layer cannot run, which the layers explain.
    """
    if type(model) is not KAN or "forward" in model.__dict__ or hooked(model):
        return None
    if KAN.forward is not _FORWARD or KAN.__call__ is not _CALL or x.requires_grad or y.requires_grad:
        return None
    layers = gather(model)
    if isinstance(layers, str) or isinstance(backend := network.backend_of(x, layers), str) or x.dim() != 2:
        return None
    if not all(_is_plain_leaf(t) for t in layers.tensors[: -layers.count]):
        return None
    weight = layers.tensors[layers.count - 1]
    if y.shape != (x.shape[0], layers.nodes) or y.dtype != weight.dtype or y.device != weight.device:
        return None
    if weights is not None and (layers.products or not _has_edge_kernels(x, layers, backend)):
        return None
    return partial(SquaredError, x, y, layers, backend, weights)


def _has_edge_kernels(x: Tensor, layers: network.Layers, backend: ModuleType) -> bool:
    """Return whether the backend of the layers has the norms of the edges, in the dtype of the weights."""
    if x.dtype not in (torch.float32, torch.float64) or len(x) == 0:
        return False
    base = BASE_CODES[layers.base]
    return all(
        backend_of("edge_l1", x, weight.dtype, weight.shape[1], layers.order, base) is backend
        for weight in layers.tensors[: layers.count]
    )


def _is_plain_leaf(t: Any) -> bool:
    """Return whether autograd would put the gradient into `grad` as it is."""
    return bool(t.requires_grad and t.is_leaf and not t._backward_hooks and not t._post_accumulate_grad_hooks)
