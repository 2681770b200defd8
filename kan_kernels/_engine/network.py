"""All layers of a KAN in one call: when they are taken, and what autograd knows of it.

The op runs the kernels of the layers with nothing of torch or Python between them, so every number is that of
the layers one by one. Beyond the first derivative, under torch.func and in forward mode they are just that.
"""

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .._core import checks
from .._core.bases import BASE_CODES, BSPLINE
from .._core.function import ComposedFunction, func_or_forward_mode
from .._core.problem import Problem, Spec
from .._core.products import by_layer, multiply
from .._core.tracing import tracing
from ..backends import with_op
from . import autograd, cost_model, dispatch
from .layer import work

Numbers = tuple[int, int, int, tuple[int, ...]]
NUMBERS = 4
CONSTANTS = NUMBERS + 1  # of the Function, behind its tensors: the backend too


@dataclass(slots=True)
class Layers:
    """The arguments of a call, of all layers, first to last.

    tensors: their spline_weights, base_weights where there is a base, biases or none, grids, kind by kind.
    products: of each layer's outputs, which are multiplied: see `by_layer`; empty, where none are.
    masks: of each layer's edges, (in, out) or None, where the weights are not multiplied by them already.
    """

    count: int
    tensors: list[Tensor]
    order: int
    base: str | None
    backend: str | None
    products: tuple[int, ...] = ()
    masks: tuple[Tensor | None, ...] = ()

    def of(self, n: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return spline_weight, base_weight and grid of a layer."""
        base = self.tensors[self.count + n] if self.base is not None else None
        return self.tensors[n], base, self.tensors[n - self.count]

    @property
    def biased(self) -> bool:
        """Return whether the layers have a bias."""
        return len(self.tensors) == (3 + (self.base is not None)) * self.count

    @property
    def numbers(self) -> Numbers:
        """Return the constants of the op, in the order of its schema."""
        return self.count, self.order, BASE_CODES[self.base], self.products

    @property
    def nodes(self) -> int:
        """Return how many numbers a row of the last layer has."""
        sums, arities = by_layer(self.products, self.count)[-1]
        return sums + len(arities) if arities else self.tensors[self.count - 1].shape[2]


_found: dict[tuple[Any, ...], ModuleType | str] = {}
_FOUND_LIMIT = 4096


def backend_of(x: Any, layers: Layers) -> ModuleType | str:
    """Return the backend that runs the op for this call, or why it is no case for the op.

    What is wrong with an argument the layers say.
    """
    if type(x) is not Tensor or x.is_nested or x.layout is not torch.strided or x.dim() == 0:
        return "x is no plain tensor"
    compiling = torch.compiler.is_compiling()
    if func_or_forward_mode():
        return "torch.func or forward mode"
    if torch._C._is_any_autocast_enabled():
        return "there is autocast"
    if compiling:
        return _chosen(x, layers)
    if tracing():
        return "a trace holds the layers"
    if x.requires_grad and torch.is_grad_enabled():
        return "x needs a gradient, whose derivatives cost less by the layers"
    count, tensors = layers.count, layers.tensors
    key = (
        x.device,
        x.dtype,
        layers.order,
        layers.base,
        layers.backend,
        bool(layers.products),
        dispatch.forced_backend(),
        (torch.backends.cuda.matmul.fp32_precision, *work(x, *tensors)) if x.is_cuda else None,
        torch.is_grad_enabled(),
        *[(t.shape, t.dtype, t.device) for t in tensors[:count]],
        *[t.requires_grad for t in tensors],
        *[t.dtype for t in tensors[-count:]],
    )
    try:
        return _found[key]
    except KeyError:
        if len(_found) >= _FOUND_LIMIT:
            _found.clear()
        found = _found[key] = _chosen(x, layers)
        return found


def _chosen(x: Tensor, layers: Layers) -> ModuleType | str:
    """Return the backend for all calls with tensors like these, or why they are no case for the op."""
    weights, first = layers.tensors[: layers.count], layers.tensors[0]
    if torch.is_grad_enabled():
        trained = {t.requires_grad for t in layers.tensors[: -layers.count]}
        if len(trained) > 1:
            return "some of the weights are frozen"
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    if any(grid.dtype != wide for grid in layers.tensors[-layers.count :]):
        return "the knots have another dtype than the op takes"
    if x.dtype != first.dtype and not (first.dtype in checks.HALF_DTYPES and x.dtype == torch.float32):
        return "x has another dtype"
    if x.device.type == "meta":
        return "meta tensors"
    backends: list[ModuleType] = []
    for n, weight in enumerate(weights):
        if weight.dim() != 3 or weight.dtype != first.dtype or weight.device != x.device:
            return f"layers[{n}] has other weights than layers[0]"
        fan_in, functions, fan_out = weight.shape
        facts = fan_in, fan_out, functions, layers.order, layers.base
        rows, training = work(x, *layers.tensors) if x.is_cuda else (0, False)
        device = x.device
        problem = Problem(
            device.type, weight.dtype, weight.dtype, *facts, index=device.index, rows=rows, training=training
        )
        for op in ("kan_linear", "kan_network"):  # what another backend runs faster stays with it
            module, composed = dispatch.run_on(replace(problem, op=op), layers.backend)
            backends.append(module)
            if composed or module is not backends[0]:
                return f"the backend {module.NAME!r} calls them one by one"
    return backends[0]


def call(x: Tensor, layers: Layers, backend: ModuleType) -> Tensor:
    """Return what the layers return (..., out), by the op of the backend that `backend_of` returned.

    Raises:
        RuntimeError: of shapes, dtypes and knots; the layers, called one by one, say it better.
    """
    rank = x.dim()
    rows = x if rank == 2 else x.unsqueeze(0) if rank == 1 else x.flatten(0, -2)
    if torch.is_grad_enabled() and (x.requires_grad or layers.tensors[0].requires_grad):
        run = Network.plain if torch.compiler.is_compiling() else Network.apply
        y: Tensor = run(rows, *layers.tensors, *layers.numbers, backend)[0]
    else:
        y = forward(rows, layers, backend)[0]
    return y if rank == 2 else y.reshape(*x.shape[:-1], y.shape[1])


def forward(x: Tensor, layers: Layers, backend: ModuleType) -> tuple[Tensor, Tensor]:
    """Return y (B, out) and what `weight_gradients` needs, of x (B, in): `call` without autograd."""
    y, hidden = backend.kan_network(x, layers.tensors, *layers.numbers)
    return y, hidden


def weight_gradients(
    x: Tensor, hidden: Tensor, g: Tensor, layers: Layers, backend: ModuleType
) -> list[Tensor]:
    """Return the gradients of all tensors but the grids for the cotangent g (B, out), without autograd."""
    return _gradients(x, layers.tensors, hidden, g, (layers.numbers, backend), False, True)[1:]


def inputs(x: Tensor, hidden: Tensor, layers: Layers) -> list[Tensor]:
    """Return what each layer reads (B, in): x, and what `forward` says lies between the layers."""
    read, at = [x], 0
    groups = by_layer(layers.products, layers.count)
    for weight, (sums, arities) in zip(layers.tensors[1 : layers.count], groups, strict=False):
        at += x.shape[0] * (sums + sum(arities)) if arities else 0
        size = x.shape[0] * weight.shape[0]
        read.append(hidden[at : at + size].view(x.shape[0], weight.shape[0]))
        at += size
    return read


def _gradients(
    x: Tensor, tensors: list[Tensor], hidden: Tensor, g: Tensor, made_by: tuple[Numbers, ModuleType],
    need_x: bool, need_weight: bool,
) -> list[Any]:  # fmt: skip
    """Return the gradients of x and of all tensors but the grids, None where they are not needed."""
    (count, order, base, products), backend = made_by
    needs = need_x, need_weight
    dx, *made = backend.kan_network_backward(x, hidden, tensors, count, g, order, base, *needs, products)
    return [dx if need_x else None, *(made if need_weight else [None] * (len(tensors) - count))]


def launches(layers: Layers, batch: int = 1024) -> str:
    """Return how many CUDA launches a call takes, for `explain`."""
    weights = layers.tensors[: layers.count]
    shapes = [(w.shape[0], w.shape[1], w.shape[2]) for w in weights]
    major = torch.cuda.get_device_capability(weights[0].device)[0]
    facts = layers.order, layers.base, weights[0].dtype, layers.biased
    return cost_model.network_launches(batch, shapes, *facts, major)


class Network(ComposedFunction):
    """The op on x (B, in), tensors and numbers of `Layers`, and a backend: y and what is between layers."""

    @classmethod
    def inputs_of(cls, ctx):
        return len(ctx.constants) - CONSTANTS - ctx.constants[-CONSTANTS]

    @staticmethod
    def forward(x, *rest):
        *given, backend = rest
        return backend.kan_network(x, list(given[:-NUMBERS]), *given[-NUMBERS:])

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:-CONSTANTS], output[1])
        ctx.constants = *[None] * (len(inputs) - CONSTANTS), *inputs[-CONSTANTS:]

    @staticmethod
    def kept(ctx):
        *tensors, hidden = ctx.saved_tensors
        return (*tensors, *ctx.constants[-CONSTANTS:]), (hidden,)

    @classmethod
    def compose(cls, x, *rest):
        *tensors, count, order, base, products, backend = rest
        groups = by_layer(products, count)
        kinds = [tensors[n * count : (n + 1) * count] for n in range(len(tensors) // count)]
        for n, weight in enumerate(kinds[0]):
            spec = Spec(weight.shape[1], order, base, 0, BSPLINE.code, backend)
            bias = kinds[-2][n] if len(kinds) == 3 + bool(base) else None
            x = autograd.kan_linear(x, weight, kinds[1][n] if base else None, bias, kinds[-1][n], spec)
            if groups[n][1]:
                x = multiply(x, *groups[n])
        return x, None

    @classmethod
    def gradients(cls, ctx, g, _):
        x, *tensors, hidden = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad[:2]
        if need_x and need_weight:  # autograd.grad(inputs=...) often asks for less
            edges = ctx.next_functions
            need_x = autograd.runs(edges[0][0])
            need_weight = any(autograd.runs(node) for node, _ in edges[1 : cls.inputs_of(ctx)])
        *numbers, backend = ctx.constants[-CONSTANTS:]
        return _gradients(x, tensors, hidden, g, (numbers, backend), need_x, need_weight)


def _register(backend: ModuleType) -> None:
    """Give the op of a backend the same first gradients, for torch.compile and torch.export."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        Network.setup_context(ctx, (inputs[0], *inputs[1], *inputs[2:], backend), output)

    def backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
        x, *tensors, hidden = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1])
        *numbers, _ = ctx.constants[-CONSTANTS:]
        dx, *found = _gradients(x, tensors, hidden, g, (numbers, backend), need_x, need_weight)
        products: list[None] | None = None if numbers[-1] else []  # to torch an empty list is one of tensors
        return dx, [*found, *[None] * (len(tensors) - len(found))], None, None, None, products

    op = f"{backend.NAMESPACE}::kan_network"
    torch.library.register_autograd(op, backward, setup_context=setup_context)


for _backend in with_op("kan_network"):
    _register(_backend)
