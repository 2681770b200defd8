"""jaxKAN's spline layers, given as arrays, as a kan_kernels.KAN: exact, or an error."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._core import checks
from ..._core.bases import MAX_SPLINE_ORDER
from ...nn import KAN, KANLinear
from .._shared.converted import chain, filled, require, stacked


@torch.no_grad()
def from_jaxkan(layers: Iterable[Mapping[str, Any]], spline_order: int, *, base: str | None = "silu") -> KAN:
    """Return a stack of jaxKAN's spline layers, given as arrays, as a KAN.

    Without jax: whatever numpy can read goes.
    Facts of github.com/srigas/jaxKAN (MIT): y = c_res residual(x) + (c_basis c_spl) B(x) + bias.

    Args:
        layers: for each layer a mapping with
            "c_basis" (out, in, G+k), of its SplineLayer, or (out in, G+k), of its BaseLayer;
            "grid" (in, G+2k+1), or (out in, G+2k+1) of a BaseLayer: layer.grid.item;
            "c_res" (out, in), where there is a residual; "c_spl" (out, in), with external_weights;
            "bias" (out,), where there is one. None counts as absent.
        spline_order: k, 0 to 10.
        base: what the residual is: "silu", "identity", or None without one.

    Returns:
        A KAN, float64 if c_basis or c_spl is and else float32: the same for every layer.

    Raises:
        TypeError, ValueError: naming the layer and the array. A BaseLayer whose outputs have different knots
            for one input cannot be held, nor can layers of different dtypes, nor knots that are only apart in
            a wider dtype than their layer's.

    Example:
        >>> arrays = {"c_basis": np.ones((3, 2, 3)), "grid": np.tile(np.linspace(-2, 2, 5), (2, 1))}
        >>> from_jaxkan([arrays], 1, base=None).layers[0].spline_weight.shape
        torch.Size([2, 3, 3])
    """
    spline_order = checks.integer("spline_order", spline_order, 0, MAX_SPLINE_ORDER)
    checks.base(base)
    if isinstance(layers, Mapping):
        raise TypeError("layers: got a mapping, expected a sequence with one for each layer")
    made = [_from_jax(arrays, spline_order, base, f"layers[{n}]") for n, arrays in enumerate(layers)]
    require(bool(made), "layers: got none, expected at least one")
    chain(made, "layers[{}]")
    first = made[0].spline_weight.dtype
    for n, layer in enumerate(made):
        got = layer.spline_weight.dtype
        require(got == first, f"layers[{n}]: is {got}, expected {first} like layers[0]")
    return stacked(made)


_JAX_ARRAYS = ("c_basis", "grid", "c_res", "c_spl", "bias")


def _from_jax(arrays: Mapping[str, Any], order: int, base: str | None, name: str) -> KANLinear:
    if not isinstance(arrays, Mapping):
        raise TypeError(f"{name}: got {type(arrays).__name__}, expected a mapping of arrays")
    unknown = sorted(set(arrays) - set(_JAX_ARRAYS))
    require(not unknown, f"{name}: got {', '.join(unknown)}, expected {', '.join(_JAX_ARRAYS)}")
    t = {key: _tensor(f"{name}[{key!r}]", value) for key, value in arrays.items() if value is not None}
    for key in ("c_basis", "grid", *(["c_res"] if base else [])):
        require(key in t, f"{name}: has no {key}")
    require(base is not None or "c_res" not in t, f"{name}: has c_res, but base is None")
    basis, grid = t["c_basis"], t["grid"]
    sizes = next((tuple(t[key].shape) for key in ("c_res", "c_spl") if key in t), None)
    if basis.dim() == 2:  # edge (i, o) is row o in + i
        require(
            sizes is not None and len(sizes) == 2,
            f"{name}: c_basis is 2-D, so c_res or c_spl must say (out, in)",
        )
        _expect(f"{name}['c_basis']", basis, (sizes[0] * sizes[1], basis.shape[1]))  # type: ignore[index]
        _expect(f"{name}['grid']", grid, (sizes[0] * sizes[1], basis.shape[1] + order + 1))  # type: ignore[index]
        basis, grid = basis.unflatten(0, sizes), grid.unflatten(0, sizes)  # type: ignore[arg-type]
        require(
            bool((grid == grid[:1]).all()),
            f"{name}['grid']: the outputs have different knots for one input, which kan_kernels cannot hold",
        )
        grid = grid[0]
    require(basis.dim() == 3, f"{name}['c_basis']: got shape {tuple(basis.shape)}, expected (out, in, G+k)")
    fan_out, fan_in, rows = basis.shape
    require(
        rows > order, f"{name}['c_basis']: got {rows} coefficients, expected more than spline_order {order}"
    )
    _expect(f"{name}['grid']", grid, (fan_in, rows + order + 1))
    for key, shape in (("c_res", (fan_out, fan_in)), ("c_spl", (fan_out, fan_in)), ("bias", (fan_out,))):
        if key in t:
            _expect(f"{name}[{key!r}]", t[key], shape)
    if "c_spl" in t:
        basis = basis * t["c_spl"].unsqueeze(-1)
    apart, still = grid.diff(dim=1) > 0, grid.to(basis.dtype).diff(dim=1) > 0
    require(
        bool((still | ~apart).all()),
        f"{name}['grid']: knots that are apart in {grid.dtype} coincide in {basis.dtype}, the layer's dtype",
    )
    base_weight = t["c_res"].t() if base else None
    return filled(basis.permute(1, 2, 0), grid, order, base=base, base_weight=base_weight, bias=t.get("bias"))


def _tensor(name: str, value: object) -> Tensor:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: got {array.dtype}, expected an array of numbers")
    dtype = np.float64 if array.dtype.itemsize > 4 and array.dtype.kind == "f" else np.float32
    return torch.from_numpy(np.array(array, dtype))


def _expect(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    require(
        tuple(tensor.shape) == tuple(shape),
        f"{name}: got shape {tuple(tensor.shape)}, expected {tuple(shape)}",
    )
