"""The mean squared error of a KAN and its gradient by calls of kernels: what autograd does, without it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from operator import itemgetter
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


class Task(NamedTuple):
    """What the error is of. places: where the gradient of each tensor begins in the vector of all."""

    x: Tensor
    y: Tensor
    layers: network.Layers
    backend: ModuleType
    weights: Weights | None
    places: list[int]


class SquaredError:
    """The error mean((model(x) - y)^2), the regularisation, and on demand the gradient of their sum."""

    def __init__(self, task: Task) -> None:
        x, y, layers, backend, weights, places = self._task = task
        self.penalty: Tensor | None = None
        self._vector: Tensor | None = None
        self.value: Tensor
        if weights is None and x.device.type == "cpu":
            call = x, y, layers.tensors, *layers.numbers, places
            self.value, self._vector = backend.kan_network_error(*call)
            return
        prediction, self._hidden = network.forward(x, layers, backend)
        # nn.functional.mse_loss without its broadcast, which costs 10 us; 1: the mean, whatever the stub says
        self.value = torch._C._nn.mse_loss(prediction, y, 1)  # type: ignore[arg-type]
        self._cotangent = prediction.sub_(y).mul_(2 / max(1, prediction.numel()))
        if weights is None:
            return
        self._slopes = []
        self._numbers = layers.order, BASE_CODES[layers.base]
        self._inputs = network.inputs(x, self._hidden, layers)
        for n, inside in enumerate(self._inputs):
            norm = backend.edge_l1(inside, *layers.of(n), *self._numbers)
            value, slope = EdgePenalty.forward(norm, *weights[1:])
            self.penalty = value if self.penalty is None else self.penalty + value
            self._slopes.append(slope.mul_(weights.lamb))

    @property
    def total(self) -> Tensor:
        """Return what is minimised."""
        weights = self._task.weights
        if self.penalty is None or weights is None:
            return self.value
        return self.value + weights.lamb * self.penalty

    def gradient(self) -> Tensor:
        """Return the gradient by all parameters, in one vector: see `Task`."""
        if self._vector is None:
            layers, backend, places = self._task[2:4] + self._task[5:]
            if self.penalty is None:
                found = network.weight_gradients(self._task.x, self._hidden, self._cotangent, layers, backend)
            else:
                found = self._with_penalty(self._cotangent)
            parts = zip(places, found, strict=True)
            self._vector = torch.cat([part.reshape(-1) for _, part in sorted(parts, key=itemgetter(0))])
        return self._vector

    def backward(self, scale: float) -> None:
        """Add `scale` times the gradient to that of the parameters, in their `grad`."""
        vector, layers = self.gradient(), self._task.layers
        if scale != 1.0:
            vector = vector * scale
        for parameter, place in zip(layers.tensors, self._task.places, strict=False):
            part = vector[place : place + parameter.numel()].view(parameter.shape)
            parameter.grad = part if parameter.grad is None else parameter.grad + part

    def _with_penalty(self, g: Tensor) -> list[Tensor]:
        """Return the gradients, layer by layer: what a layer reads is part of its penalty too."""
        layers, backend, (order, base) = self._task.layers, self._task.backend, self._numbers
        made: list[list[Tensor]] = [[], [], []]  # last layer first
        for n in reversed(range(layers.count)):
            x, (weight, base_weight, grid) = self._inputs[n], layers.of(n)
            numbers = weight.shape[1], order, base, 0, BSPLINE.code
            if n:
                dx, d_spline, d_base = backend.kan_linear_backward(x, weight, base_weight, g, grid, *numbers)
            else:
                d_spline, d_base = backend.kan_linear_grad_weight(x, None, g, grid, *numbers, None)
            of_edges = backend.edge_l1_backward(
                x, weight, base_weight, self._slopes[n], grid, *self._numbers, n > 0, True
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
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    weights: Weights | None = None,
    vector: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> Callable[[], SquaredError] | None:
    """Return what evaluates the error, as often as only the parameters' numbers have changed; or None where
    it is a case for autograd: where somebody else has a part in it.

    What it returns raises RuntimeError where a layer cannot run, which the layers explain.

    Args:
        vector: every parameter of the model, and the part of a vector that is read in its stead; the gradient
            lies as they do.
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
    parameters = layers.tensors[: -layers.count]
    ends = list(accumulate(t.numel() for t in parameters))
    places = [0, *ends[:-1]]
    if vector is not None:
        starts = accumulate((part.numel() for _, part in vector), initial=0)
        parts = {id(t): (part, start) for (t, part), start in zip(vector, starts, strict=False)}
        if len(vector) != len(parameters) or {id(t) for t in parameters} != parts.keys():
            return None
        places = [parts[id(t)][1] for t in parameters]
        read = [parts[id(t)][0] for t in parameters]
        layers = replace(layers, tensors=read + layers.tensors[-layers.count :])
    return partial(SquaredError, Task(x, y, layers, backend, weights, places))


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
