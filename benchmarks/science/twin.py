"""The same network in kan_kernels and in pykan, and what pykan is asked to do with it."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

PYKAN = "pykan"
DTYPE = torch.float64


def pykan() -> Any:
    """The package; untyped on purpose."""
    return importlib.import_module("kan")


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """pykan prints, and shows a progress bar."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def twin(model: Any) -> Any:
    """A MultKAN that computes what a ``kan_kernels.KAN`` does, of the same trainable numbers.

    pykan's scale_sp multiplies the coefficients, so it is 1 and fixed. Its symbolic branch stays enabled, as
    pykan's own functions ask for it, and switches itself off in ``fit``.
    """
    first = model.layers[0]
    widths = [first.in_features, *(layer.out_features for layer in model.layers)]
    with silent():
        network = pykan().MultKAN(
            width=widths, grid=first.grid_size, k=first.spline_order, sp_trainable=False, auto_save=False
        )
    with torch.no_grad():
        for theirs, ours in zip(network.act_fun, model.layers, strict=True):
            theirs.grid.copy_(ours.grid)
            theirs.coef.copy_(ours.spline_weight.permute(0, 2, 1))
            theirs.scale_base.copy_(ours.base_weight)
            theirs.scale_sp.fill_(1.0)
    return network


def seen(model: Any, x: Tensor) -> Any:
    """The twin after it saw x: pykan refines, and finds formulas, on the data that it saw last."""
    network = twin(model)
    network.get_act(x)
    return network


def distance(model: Any, network: Any, x: Tensor) -> float:
    """The largest difference of their outputs, in units of the largest output."""
    with torch.no_grad():
        a, b = model(x), network(x)
    return float((a - b).abs().max() / a.abs().max())


def counted(network: Any) -> Callable[[], int]:
    """Count calls of forward from here on."""
    calls, forward = 0, network.forward

    def count(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return forward(*args, **options)

    network.forward = count
    return lambda: calls


def fit(network: Any, data: dict[str, tuple[Tensor, Tensor]], steps: int) -> None:
    """LBFGS as pykan runs it, without grid updates."""
    dataset = {
        f"{part}_{kind}": tensor
        for part, pair in data.items()
        for kind, tensor in zip(("input", "label"), pair, strict=True)
    }
    with silent():
        network.fit(dataset, opt="LBFGS", steps=steps, update_grid=False)


def library() -> dict[str, Any]:
    """pykan's functions, {its name: function of torch}."""
    utils = importlib.import_module("kan.utils")
    return {name: entry[0] for name, entry in utils.SYMBOLIC_LIB.items()}


Fits = dict[tuple[int, int, int], dict[str, tuple[float, ...]]]


def auto_symbolic(network: Any, names: list[str] | None) -> tuple[Fits, dict[tuple[int, int, int], str]]:
    """``auto_symbolic``: (a, b, c, d) of every function that it fitted to an edge, and the one it chose."""
    fits: Fits = {}
    fix = network.fix_symbolic

    def recording(layer: int, i: int, o: int, name: str, *args: Any, **options: Any) -> Any:
        result = fix(layer, i, o, name, *args, **options)
        affine = network.symbolic_fun[layer].affine.detach()[o, i]
        fits.setdefault((layer, i, o), {})[name] = tuple(affine.tolist())
        return result

    network.fix_symbolic = recording
    with silent():
        network.auto_symbolic(lib=names)
    chosen = {
        (n, i, o): layer.funs_name[o][i]
        for n, layer in enumerate(network.symbolic_fun)
        for i in range(layer.in_dim)
        for o in range(layer.out_dim)
    }
    return fits, chosen


def explained(function: Any, affine: tuple[float, ...], x: Tensor, y: Tensor) -> float:
    """r2 of c f(a x + b) + d on a curve, the same formula for both; 0 where it is not finite."""
    a, b, c, d = affine
    error = (y - (c * function(a * x + b) + d)).square().sum()
    value = float(1 - error / (y - y.mean()).square().sum())
    return value if math.isfinite(value) else 0.0
