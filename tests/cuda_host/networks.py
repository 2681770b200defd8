"""Whole networks on the emulated CUDA kernels: the ops `kan_network` and `kan_network_backward`."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

import cuda_host
from cuda_host import DTYPES, PATHS, _empty, _options, _View, _view
from kan_kernels import KAN, use_backend
from kan_kernels._core.bases import BASE_CODES

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
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
]
IDS = ["-".join(map(str, case["widths"])) for case in CASES]
EPS = {F32: 2.0**-24, F64: 2.0**-53, BF16: 2.0**-8, F16: 2.0**-11}

MOST = 9  # layers of a call
_NUMBERS = ("count", "order", "base", "batch", "weight_dtype", "path")
_GIVEN = ("grid", "spline_weight", "base_weight", "bias")
_MADE = ("d_spline", "d_base", "d_bias")


class _NetworkCall(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _NUMBERS),
        *((f"{name}{n}", ctypes.c_int64) for name in ("in", "out", "functions") for n in range(MOST)),
        *((f"{name}{n}", ctypes.c_void_p) for name in (*_GIVEN, *_MADE) for n in range(MOST)),
        *((name, _View) for name in ("x", "g")),
        *((name, ctypes.c_void_p) for name in ("hidden", "y", "input")),
    )


def run(
    layers: list[dict[str, Any]], order: int, base: int, x: Tensor, g: Tensor | None, **tensors: Tensor
) -> str:
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


def forward(layers: list[dict[str, Any]], order: int, base: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return y and hidden, poisoned before."""
    weights = [layer["spline_weight"] for layer in layers]
    y = _empty(weights[0], x.shape[0], weights[-1].shape[2])
    hidden = _empty(weights[0], x.shape[0] * sum(weight.shape[2] for weight in weights[:-1]))
    reason = run(layers, order, base, x, None, y=y, hidden=hidden)
    if reason:
        raise RuntimeError(reason)
    return y, hidden


def backward(
    layers: list[dict[str, Any]], order: int, base: int, x: Tensor, hidden: Tensor, g: Tensor,
    need_x: bool = True, need_weight: bool = True,
) -> tuple[Tensor | None, list[dict[str, Tensor]]]:  # fmt: skip
    """Return dx, and the gradients d_spline, d_base, d_bias of each layer, poisoned before."""
    made = []
    for layer in layers if need_weight else ():
        names = {"spline_weight": "d_spline", "base_weight": "d_base", "bias": "d_bias"}
        made.append({names[k]: _empty(t, *t.shape) for k, t in layer.items() if k in names and t is not None})
    dx = _empty(x, *x.shape) if need_x else None
    pieces = [{**layer, **own} for layer, own in zip(layers, made, strict=True)] if made else layers
    reason = run(pieces, order, base, x, g, hidden=hidden, **({} if dx is None else {"input": dx}))
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
    return net, x, torch.randn(batch, case["widths"][-1]).to(x.dtype)


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
    numbers = first.spline_order, BASE_CODES[first.base]
    y, hidden = forward(layers, *numbers, x)
    if cuda_host.recording():  # what the recorded call is given
        with cuda_host.played(None):
            hidden = forward(layers, *numbers, x)[1]
    dx, made = backward(layers, *numbers, x, hidden, g)
    assert dx is not None
    gradients = []
    for layer, own in zip(net.layers, made, strict=True):
        gradients += [own[f"d_{name.removesuffix('_weight')}"] for name, _ in layer.named_parameters()]
    return [y, dx, *gradients]


def expected(net: KAN, x: Tensor, g: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The same by the reference, each layer's results rounded to the storage type where that has 16 bits."""
    wide = KAN(
        [net.layers[0].in_features, *(layer.out_features for layer in net.layers)],
        net.layers[0].spline_weight.shape[1] - net.layers[0].spline_order,
        net.layers[0].spline_order,
        base=net.layers[0].base,
        bias=net.layers[0].bias is not None,
        dtype=dtype,
    )
    wide.load_state_dict({name: t.to(dtype) for name, t in net.state_dict().items()})
    inputs = x.to(dtype).requires_grad_()
    y = inputs
    with use_backend("reference"):
        for n, layer in enumerate(wide.layers):
            y = layer(y)
            if x.dtype in (BF16, F16) and n + 1 < len(wide.layers):
                y = y + (y.to(x.dtype).to(dtype) - y).detach()
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


def one_by_one(net: KAN, x: Tensor, g: Tensor) -> list[Tensor]:
    """The same by the kernels of the layers."""
    layers, first = tensors_of(net), net.layers[0]
    inputs, gradients = [x], []
    order, base = first.spline_order, BASE_CODES[first.base]
    for layer in layers:
        weight = layer["spline_weight"]
        given = inputs[-1], None, weight, layer["base_weight"], layer["bias"], layer["grid"]
        inputs.append(cuda_host.kan_linear(*given, weight.shape[1], order, base, 0, 0))
    for layer, inside in zip(layers[::-1], inputs[-2::-1], strict=True):
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
