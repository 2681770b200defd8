"""The mean squared error of a KAN and its gradient by calls of kernels: what autograd does, without it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._core import library
from .._core.bases import BASE_CODES, BSPLINE
from .._engine import network
from .._engine.edges_autograd import backend_of
from .._engine.penalties import EdgePenalty
from ..nn.network import KAN, gather, hooked
from .lbfgs import Vector
from .lbfgs_memory import Iterations

_CALL, _FORWARD = KAN.__call__, KAN.forward
ONE_CALL = library.devices_of("kan_network_error")
"""Devices on which error, penalty and gradient are one call, and the iterations of an LBFGS step another."""

MOST_WORK = 1 << 21
"""Rows times edges times functions of a cell, thrice with a penalty: LBFGS takes an evaluation of more, which
lasts some 10 ms, in a call of its own.
"""


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
    """The model and the rows that an error is of.

    layers: with the tensors that are read. parameters: those that have the gradient, in the order of the
    tensors; places: where that of each begins in the vector of all. masked: of edges, or None. vector: what
    is read instead of the parameters, or None.
    """

    x: Tensor
    y: Tensor
    layers: network.Layers
    backend: ModuleType
    weights: Weights | None
    parameters: list[Tensor]
    places: list[int]
    masked: "Masked | None"
    vector: Tensor | None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Return those that the ops of the whole have in common."""
        weights = self.weights or (0.0, 0.0, 0.0)
        return self.x, self.y, self.layers.tensors, *self.layers.numbers, self.places, *weights


class Masked(NamedTuple):
    """A product of weights and the masks of their edges: numbers times mask is written into `read`.

    numbers: None, where they are those of the parameters.
    """

    numbers: Tensor | None
    mask: Tensor
    read: Tensor


class SquaredError:
    """The error mean((model(x) - y)^2), the regularisation, and the gradient of their sum."""

    def __init__(self, task: Task) -> None:
        x, y, layers, backend, weights, parameters, _, masked, _ = self._task = task
        if masked is not None:
            numbers = _numbers_of(parameters) if masked.numbers is None else masked.numbers
            torch.mul(numbers, masked.mask, out=masked.read)
        self.penalty: Tensor | None = None
        self._vector: Tensor | None = None
        self.value: Tensor
        if x.device.type in ONE_CALL:
            self.value, penalty, self._vector = backend.kan_network_error(*task.arguments)
            if weights is not None:
                self.penalty = penalty
            if masked is not None:
                self._vector.mul_(masked.mask)
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
            task, g = self._task, self._cotangent
            if self.penalty is None:
                found = network.weight_gradients(task.x, self._hidden, g, task.layers, task.backend)
            else:
                found = self._with_penalty(g)
            self._vector = g.new_empty(sum(part.numel() for part in found))
            torch._foreach_copy_(_parts(self._vector, task.parameters, task.places), found)
            if task.masked is not None:
                self._vector.mul_(task.masked.mask)
        return self._vector

    @property
    def iterate(self) -> Callable[..., Iterations] | None:
        """Return the call that takes iterations of LBFGS from the vector, or None: see `lbfgs.Function`."""
        task = self._task
        if task.vector is None or task.x.device.type not in ONE_CALL:
            return None
        layers, passes = task.layers, 1 if task.weights is None else 3
        edges = sum(weight.shape[0] * weight.shape[2] for weight in layers.tensors[: layers.count])
        if len(task.x) * edges * (layers.order + 1) * passes > MOST_WORK:
            return None
        read, mask = (None, None) if task.masked is None else (task.masked.read, task.masked.mask)
        given = *task.arguments, task.vector, read, mask
        return lambda *state: Iterations(*task.backend.kan_network_lbfgs(*given, *state))

    def backward(self, scale: float) -> None:
        """Add `scale` times the gradient to that of the parameters, in their `grad`."""
        vector = self.gradient()
        if scale != 1.0:
            vector = vector * scale
        parameters = self._task.parameters
        for parameter, part in zip(parameters, _parts(vector, parameters, self._task.places), strict=True):
            if not parameter.is_contiguous():  # fused optimizers read both in the order of memory
                part = torch.empty_like(parameter).copy_(part)
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
    vector: Vector | None = None,
) -> Callable[[], SquaredError] | None:
    """Return what evaluates the error, as often as only the parameters' numbers have changed; or None where
    it is a case for autograd: where somebody else has a part in it.

    What it returns raises RuntimeError where a layer cannot run, which the layers explain.

    Args:
        vector: of all parameters of the model, read in their stead; the gradient lies as it does.
    """
    if type(model) is not KAN or "forward" in model.__dict__ or hooked(model):
        return None
    if KAN.forward is not _FORWARD or KAN.__call__ is not _CALL or x.requires_grad or y.requires_grad:
        return None
    layers = gather(model, plain=True)
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
    if weights is not None and len({id(t) for t in parameters}) < len(parameters):
        return None  # a layer that is there twice has one penalty, of the rows of both
    if vector is not None and _overlap(parameters):
        return None  # one number of the parameters would be two of the vector
    if any(mask is not None and mask.requires_grad for mask in layers.masks):
        return None
    if vector is None:
        places = list(accumulate((t.numel() for t in parameters), initial=0))[:-1]
    else:
        starts = accumulate((t.numel() for t in vector.parameters), initial=0)
        start_of = {id(t): start for t, start in zip(vector.parameters, starts, strict=False)}
        if start_of.keys() != {id(t) for t in parameters}:
            return None
        places = [start_of[id(t)] for t in parameters]
    masked, numbers = None, None if vector is None else vector.numbers
    if any(mask is not None for mask in layers.masks):
        masked = _masked(layers, parameters, places, numbers)
    read = numbers if masked is None else masked.read
    if read is not None:
        grids = layers.tensors[-layers.count :]
        layers = replace(layers, tensors=_parts(read, parameters, places) + grids)
    return partial(SquaredError, Task(x, y, layers, backend, weights, parameters, places, masked, numbers))


def _parts(vector: Tensor, parameters: list[Tensor], places: list[int]) -> list[Tensor]:
    """Return the parts of a vector that stand for parameters."""
    ranges = zip(parameters, places, strict=True)
    return [vector[place : place + t.numel()].view(t.shape) for t, place in ranges]


def _overlap(tensors: list[Tensor]) -> bool:
    """Return whether tensors may share memory."""
    ranges = []
    for t in tensors:
        last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        ranges.append((t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()))
    ranges.sort()
    return any(end > start for (_, end), (start, _) in pairwise(ranges))


def _masked(
    layers: network.Layers, parameters: list[Tensor], places: list[int], numbers: Tensor | None
) -> Masked:
    """Return what multiplies weights by the masks. numbers: the vector of the parameters, if there is one."""
    mask = torch.ones_like(_numbers_of(parameters) if numbers is None else numbers)
    parts = _parts(mask, parameters, places)
    kinds = 1 if layers.base is None else 2  # biases have none
    for n, own in enumerate(layers.masks):
        for kind in range(kinds if own is not None else 0):
            assert own is not None
            parts[kind * layers.count + n].copy_(own if kind else own.unsqueeze(1))
    return Masked(numbers, mask, torch.empty_like(mask))


def _numbers_of(parameters: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in parameters])


def _has_edge_kernels(x: Tensor, layers: network.Layers, backend: ModuleType) -> bool:
    """Return whether the backend of the layers has the norms of the edges, in the dtype of the weights."""
    wide = x.dtype in (torch.float32, torch.float64) and layers.tensors[0].dtype == x.dtype
    if not wide or len(x) == 0:
        return False
    base = BASE_CODES[layers.base]
    return all(
        backend_of("edge_l1", x, weight.dtype, weight.shape[1], layers.order, base) is backend
        for weight in layers.tensors[: layers.count]
    )


def _is_plain_leaf(t: Any) -> bool:
    """Return whether autograd would put the gradient into `grad` as it is."""
    return bool(t.requires_grad and t.is_leaf and not t._backward_hooks and not t._post_accumulate_grad_hooks)
