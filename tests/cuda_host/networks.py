"""Whole networks on the emulated CUDA kernels: the ops `kan_network` and `kan_network_backward`."""

from __future__ import annotations

import copy
import ctypes
from typing import Any

import torch
from torch import Tensor

import cuda_host
from cuda_host import DTYPES, PATHS, _empty, _options, _View, _view
from kan_kernels import KAN, use_backend
from kan_kernels._core.bases import BASE_CODES

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
PRODUCTS: list[dict[str, Any]] = [
    {"widths": [3, (2, 2), (0, 1)], "mult_arity": [[], [2, 3], 2], "batch": 400, "bias": True},
    {"widths": [4, (1, 3), 2], "mult_arity": [[], [2, 5, 2], []], "batch": 77, "dtype": F64, "base": None},
    {"widths": [2, (0, 2), (3, 1), 1], "mult_arity": 3, "batch": 100, "dtype": BF16},
    {"widths": [20, (14, 10), 8], "batch": 300},  # a block takes several tiles
    {"widths": [2, (5, 1)], "batch": 33, "dtype": F16, "spline_order": 2},
]
CASES: list[dict[str, Any]] = [
    {"widths": [2, 5, 1], "batch": 1000},
    {"widths": [2, 5, 5, 1], "batch": 77, "bias": True},
    {"widths": [16, 32, 8], "batch": 1300, "bias": True},  # a block takes several tiles
    {"widths": [3, 1], "batch": 1, "dtype": F64, "base": None},
    {"widths": [7, 20, 9, 2], "batch": 33, "dtype": BF16, "bias": True},
    {"widths": [4, 3, 2], "batch": 40, "dtype": F16, "spline_order": 2},
    {"widths": [4, 9, 8, 3], "batch": 40, "dtype": F64, "spline_order": 5, "base": "identity"},
    {"widths": [1, 1, 1, 1, 1, 1, 1, 1, 1], "batch": 9, "spline_order": 0},
    {"widths": [3, 17, 2], "batch": 65, "grid_size": 20, "spline_order": 1, "base": None, "bias": True},
    {"widths": [64, 8, 64], "batch": 21},
    *PRODUCTS,
]

Sums = list[tuple[int, tuple[int, ...]]]  # of each layer, and the arities of its products
EPS = {F32: 2.0**-24, F64: 2.0**-53, BF16: 2.0**-8, F16: 2.0**-11}

MOST = 9  # layers of a call
_NUMBERS = ("count", "order", "base", "batch", "weight_dtype", "path")
_GIVEN = ("grid", "spline_weight", "base_weight", "bias")
_MADE = ("d_spline", "d_base", "d_bias")


def names(cases: list[dict[str, Any]]) -> list[str]:
    """Each case's widths, for the tests' names."""
    return ["-".join(map(str, case["widths"])) for case in cases]


class _NetworkCall(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _NUMBERS),
        *((f"{name}{n}", ctypes.c_int64) for name in ("in", "out", "functions") for n in range(MOST)),
        *((f"{name}{n}", ctypes.c_void_p) for name in (*_GIVEN, *_MADE) for n in range(MOST)),
        *((name, _View) for name in ("x", "g")),
        *((name, ctypes.c_void_p) for name in ("hidden", "y", "input")),
        *((name, ctypes.c_int64 * MOST) for name in ("sums", "groups")),
        ("arities", ctypes.c_int64 * 64 * MOST),
    )


def run(
    layers: list[dict[str, Any]], order: int, base: int, x: Tensor, g: Tensor | None, products: Sums,
    **tensors: Tensor,
) -> str:  # fmt: skip
    """Return why one launch does not serve, or "" and the results in y and hidden, or input and d_....

    layers: spline_weight, base_weight, bias and grid of each, and backward the tensors d_... to fill.
    """
    weight = layers[0]["spline_weight"]
    call = _NetworkCall(len(layers), order, base, x.shape[0], DTYPES[weight.dtype], PATHS[_options["path"]])
    given: dict[str, Tensor | None] = {"x": x, "g": g}
    made: dict[str, Tensor] = {name: t for name, t in tensors.items() if name != "hidden" or g is None}
    if g is not None:
        given["hidden"] = tensors["hidden"]
    for n, layer in enumerate(layers):
        for name, size in zip(("in", "functions", "out"), layer["spline_weight"].shape, strict=True):
            setattr(call, f"{name}{n}", size)
        for name, tensor in layer.items():
            (made if name in _MADE else given)[f"{name}{n}"] = tensor
    for n, (sums, arities) in enumerate(products):
        call.sums[n], call.groups[n] = sums, len(arities)
        call.arities[n][: len(arities)] = arities
    call.x, call.g = _view(x), _view(g)
    for name, tensor in (*given.items(), *made.items()):
        if tensor is not None and name not in ("x", "g"):
            setattr(call, name, tensor.data_ptr())
    if cuda_host.runner is not None:
        cuda_host.runner(call, given, made)
        return ""
    library = cuda_host.library(flags=_options["flags"])
    library.kan_cuda_host_network.restype = ctypes.c_char_p
    return library.kan_cuda_host_network(ctypes.byref(call)).decode()


def forward(
    layers: list[dict[str, Any]], order: int, base: int, x: Tensor, products: Sums
) -> tuple[Tensor, Tensor]:
    """Return y and hidden, poisoned before."""
    first = layers[0]["spline_weight"]
    outputs = [layer["spline_weight"].shape[2] for layer in layers]
    nodes = [
        sums + len(arities) if arities else o for o, (sums, arities) in zip(outputs, products, strict=True)
    ]
    between = sum(nodes[:-1]) + sum(o for o, (_, arities) in zip(outputs, products, strict=True) if arities)
    y, hidden = _empty(first, x.shape[0], nodes[-1]), _empty(first, x.shape[0] * between)
    reason = run(layers, order, base, x, None, products, y=y, hidden=hidden)
    if reason:
        raise RuntimeError(reason)
    return y, hidden


def backward(
    layers: list[dict[str, Any]], order: int, base: int, x: Tensor, hidden: Tensor, g: Tensor, products: Sums,
    need_x: bool = True, need_weight: bool = True,
) -> tuple[Tensor | None, list[dict[str, Tensor]]]:  # fmt: skip
    """Return dx, and the gradients d_spline, d_base, d_bias of each layer, poisoned before."""
    made = []
    for layer in layers if need_weight else ():
        names = {"spline_weight": "d_spline", "base_weight": "d_base", "bias": "d_bias"}
        made.append({names[k]: _empty(t, *t.shape) for k, t in layer.items() if k in names and t is not None})
    dx = _empty(x, *x.shape) if need_x else None
    pieces = [{**layer, **own} for layer, own in zip(layers, made, strict=True)] if made else layers
    reason = run(pieces, order, base, x, g, products, hidden=hidden, **({} if dx is None else {"input": dx}))
    if reason:
        raise RuntimeError(reason)
    return dx, made


def make(case: dict[str, Any], special: bool = False) -> tuple[KAN, Tensor, Tensor]:
    """A KAN on knots of its own, x, a cotangent; special: with NaN and infinities in x."""
    torch.manual_seed(0)
    options = dict(case)
    batch = options.pop("batch")
    net = KAN(**options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.5)
        for layer in net.layers:
            layer.grid.copy_(layer.grid + 0.3 * layer.grid.sin())
    x = torch.randn(batch, case["widths"][0]).to(case.get("dtype", F32))
    for row, value in ((3, float("nan")), (5, float("inf")), (7, -float("inf"))) if special else ():
        x[row : row + 1, 0] = value
    last = case["widths"][-1]
    return net, x, torch.randn(batch, last if isinstance(last, int) else sum(last)).to(x.dtype)


def products_of(net: KAN) -> Sums:
    return (
        [(0, ())] * len(net.layers) if net.products is None else [(p.sums, p.arities) for p in net.products]
    )


def tensors_of(net: KAN) -> list[dict[str, Any]]:
    layers = []
    for layer in net.layers:
        named = {
            "spline_weight": layer.spline_weight,
            "base_weight": layer.base_weight,
            "bias": layer.bias,
            "grid": layer.grid,
        }
        layers.append({name: None if t is None else t.detach().contiguous() for name, t in named.items()})
    return layers


def emulated(net: KAN, x: Tensor, g: Tensor) -> list[Tensor]:
    """y, dx, and every parameter's gradient in the order of parameters(), by one launch each way."""
    layers, first = tensors_of(net), net.layers[0]
    numbers, products = (first.spline_order, BASE_CODES[first.base]), products_of(net)
    y, hidden = forward(layers, *numbers, x, products)
    if cuda_host.recording():  # what the recorded call is given
        with cuda_host.played(None):
            hidden = forward(layers, *numbers, x, products)[1]
    dx, made = backward(layers, *numbers, x, hidden, g, products)
    assert dx is not None
    gradients = []
    for layer, own in zip(net.layers, made, strict=True):
        gradients += [own[f"d_{name.removesuffix('_weight')}"] for name, _ in layer.named_parameters()]
    return [y, dx, *gradients]


def expected(net: KAN, x: Tensor, g: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The same by the reference, each layer's results rounded to the storage type where that has 16 bits."""
    wide = copy.deepcopy(net).to(dtype)
    inputs = x.to(dtype).requires_grad_()
    y = inputs

    def stored(y: Tensor) -> Tensor:
        return y + (y.to(x.dtype).to(dtype) - y).detach() if x.dtype in (BF16, F16) else y

    with use_backend("reference"):
        for n, layer in enumerate(wide.layers):
            multiplied = wide.products is not None and wide.products[n].arities
            y = layer(y)
            if multiplied:
                y = wide.products[n](stored(y))
            if n + 1 < len(wide.layers):
                y = stored(y)
    return [y, *torch.autograd.grad(y, [inputs, *wide.parameters()], g.to(dtype))]


def check(net: KAN, x: Tensor, g: Tensor, got: list[Tensor]) -> None:
    truth = expected(net, x, g, F64)
    plain = expected(net, x, g, F64 if x.dtype == F64 else F32)
    for ours, true, same in zip(got, truth, plain, strict=True):
        scale = true.abs().max() if true.numel() else 0.0
        allowed = (
            4.0 * (same.double() - true).abs().max() + (64 if x.dtype == F64 else 16) * EPS[x.dtype] * scale
        )
        error = (ours.double() - true).abs().max()
        assert float(error) <= float(allowed), (float(error), float(allowed))


def multiplied(outputs: Tensor, product: tuple[int, tuple[int, ...]], g: Tensor | None = None) -> Tensor:
    """The nodes of outputs, or with g the cotangent of the outputs, by the kernels for one layer."""
    sums, arities = product
    if not arities:
        return outputs if g is None else g
    made = (
        _empty(outputs, len(outputs), sums + len(arities)) if g is None else _empty(outputs, *outputs.shape)
    )
    numbers = ctypes.c_int64(sums), ctypes.c_int64(len(arities)), (ctypes.c_int64 * len(arities))(*arities)
    cuda_host.library(flags=_options["flags"]).kan_cuda_host_multiply(
        *numbers, ctypes.c_int64(DTYPES[outputs.dtype]), ctypes.c_int64(len(outputs)),
        ctypes.c_void_p(outputs.data_ptr()), ctypes.byref(_view(g)), ctypes.c_void_p(made.data_ptr()),
    )  # fmt: skip
    return made


def one_by_one(net: KAN, x: Tensor, g: Tensor) -> list[Tensor]:
    """The same by the kernels of the layers."""
    layers, first = tensors_of(net), net.layers[0]
    inputs, gradients = [x], []
    order, base = first.spline_order, BASE_CODES[first.base]
    products, outputs = products_of(net), []
    for layer, product in zip(layers, products, strict=True):
        weight = layer["spline_weight"]
        given = inputs[-1], None, weight, layer["base_weight"], layer["bias"], layer["grid"]
        outputs.append(cuda_host.kan_linear(*given, weight.shape[1], order, base, 0, 0))
        inputs.append(multiplied(outputs[-1], product))
    backwards = zip(layers, inputs[:-1], outputs, products, strict=True)
    for layer, inside, outside, product in reversed(list(backwards)):
        g = multiplied(outside, product, g)
        weight = layer["spline_weight"]
        numbers = weight.shape[1], order, base, 0, 0
        bias = [] if layer["bias"] is None else [g.sum(0)]
        given = inside, weight, layer["base_weight"], g, layer["grid"]
        g, d_spline, d_base = cuda_host.kan_linear_backward(*given, *numbers)
        gradients[:0] = [d_spline, *([d_base] if base else []), *bias]
    return [inputs[-1], g, *gradients]


def check_special(case: dict[str, Any]) -> None:
    """NaN and infinities reach what they reach layer by layer."""
    net, x, g = make(case, special=True)
    truth = one_by_one(net, x, g)
    for ours, true in zip(emulated(net, x, g), truth, strict=True):
        assert torch.equal(ours.isnan(), true.isnan()) and torch.equal(ours.isinf(), true.isinf())
    assert case["batch"] == 1 or all(bool(t.isnan().any()) for t in truth[:4])


def check_products(case: dict[str, Any]) -> None:
    """The kernels that multiply between two launches are torch's products to the bit, and their gradients."""
    net, x, _ = make(case)
    for layer in net.products or ():
        y = torch.randn(50, layer.subnodes).to(x.dtype).requires_grad_()
        product = layer.sums, layer.arities
        nodes = layer(y)
        assert torch.equal(multiplied(y.detach(), product), nodes)
        for g in (torch.randn_like(nodes), torch.randn_like(nodes.t()).t()):
            (expected,) = torch.autograd.grad(nodes, y, g, retain_graph=True)
            assert torch.equal(multiplied(y.detach(), product, g), expected)
