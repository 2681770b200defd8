"""The same function in another codebase's model: exact, or an error that names the part that cannot be held.

    from_efficient_kan(model), to_efficient_kan(model)
    from_pykan(model), to_pykan(model), load_checkpoint(path)
    from_jaxkan(layers, spline_order)

A conversion copies: the models share no tensor. From pykan to efficient-kan is two conversions. What a layout
writes as a product, such as a spline's scale, is multiplied out in the model's own dtype.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import checks
from ..activations import layers_of
from ..compat import efficient_kan as drop_in
from ..compat import efficient_kan_core
from ..contract import MAX_SPLINE_ORDER
from ..nn import KAN, KANLinear
from . import efficient_kan
from ._shared import probe
from .convert_pykan import from_pykan, load_checkpoint, to_pykan
from .layers import filled, require, stacked

__all__ = [
    "from_efficient_kan",
    "from_jaxkan",
    "from_pykan",
    "load_checkpoint",
    "to_efficient_kan",
    "to_pykan",
]


def from_efficient_kan(model: nn.Module) -> KAN | KANLinear:
    """efficient-kan's KAN as a kan_kernels.KAN, its KANLinear as a KANLinear.

    Args:
        model: the peer's own classes or copies of them, accelerated or not, or kan_kernels.compat's. A
            network runs once on a float64 copy of itself, in training and in evaluation mode; hooks are not
            run, and not carried over.

    Raises:
        TypeError: `model` is something else.
        ValueError: its base activation is neither SiLU nor Identity, knots coincide where the peer divides by
            zero, a layer or the network has more than the peer's, or the network is no plain stack of its
            `layers`.
    """
    if _is_layer(model):
        return _from_layer(model, "model")
    layers = getattr(model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not layers or not all(map(_is_layer, layers)):
        raise TypeError(
            f"model: got {type(model).__name__}, expected efficient-kan's KANLinear, or its KAN with "
            "them in `layers`"
        )
    more = {*model._modules, *model._parameters, *model._buffers} - {"layers"}
    require(not more, f"model: {type(model).__name__} has {', '.join(sorted(more))} beside its layers")
    made = [_from_layer(layer, f"model: layer {n}") for n, layer in enumerate(layers)]
    _chain(made, "model: layer {}")
    _check_stack(model)
    return stacked(made)


def _check_stack(model: Any) -> None:
    """Raise ValueError unless the model's forward is that of its layers one after the other, on a probe."""
    clone = copy.deepcopy(model).double().cpu()
    ours = stacked([_held(layer) for layer in clone.layers])
    for module in clone.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            getattr(module, hooks).clear()
    knots: Any = ours.layers[0].grid
    low, high = knots[:, :1], knots[:, -1:]
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(len(knots), 64, generator=generator, dtype=torch.float64, device="cpu")
    x = (low + (high - low) * (1.2 * x - 0.1)).t()  # a little beyond the knots too
    x[:8] *= (
        10.0 ** torch.arange(1, 25, 3, dtype=torch.float64, device="cpu")[:, None]
    )  # and far: code may clamp
    name = type(model).__name__
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        want = ours(x)
        for training in (True, False):
            try:
                got = clone.train(training)(x.clone())
            except Exception as error:  # whatever code the model has
                what = f"{type(error).__name__}: {error}"
                raise ValueError(f"model: {name} could not be run on a probe: {what}") from error
            require(
                isinstance(got, Tensor) and probe.same_rows(got, want),
                f"model: {name} computes something else than its layers one after the other",
            )


def _chain(layers: Sequence[KANLinear], name: str) -> None:
    """Raise ValueError unless each layer has as many inputs as the one before has outputs."""
    for n, (before, after) in enumerate(pairwise(layers)):
        require(
            before.out_features == after.in_features,
            f"{name.format(n + 1)}: has {after.in_features} inputs, expected {before.out_features} like "
            "the outputs before it",
        )


def _is_layer(module: object) -> bool:
    return isinstance(module, nn.Module) and efficient_kan.claims(module)


@torch.no_grad()
def _from_layer(layer: Any, name: str) -> KANLinear:
    if not isinstance(layer, drop_in.KANLinear):
        taken = hasattr(type(layer), "_kan_kernels_original")
        why = layer._kan_kernels_left if taken else efficient_kan.reason(layer)
        require(why is None, f"{name}: {why}")
        require(
            efficient_kan_core.increasing(layer.grid),
            f"{name}: knots coincide, decrease or are not finite, where efficient-kan divides by zero",
        )
    base = efficient_kan_core.kernel_base(layer.base_activation)
    require(
        base is not None,
        f"{name}: base_activation {layer.base_activation!r} cannot be held, expected SiLU or Identity",
    )
    return _held(layer)


@torch.no_grad()
def _held(layer: Any) -> KANLinear:
    return filled(
        efficient_kan_core.kernel_weight(layer),
        layer.grid,
        layer.spline_order,
        base=efficient_kan_core.kernel_base(layer.base_activation),
        base_weight=layer.base_weight.t(),
    )


@torch.no_grad()
def to_efficient_kan(model: nn.Module) -> drop_in.KAN | drop_in.KANLinear:
    """A KAN or KANLinear in efficient-kan's layout, scalers 1. Its state dict loads into the peer's own.

    Masked edges become zeros; without a base the base weights are zeros.

    Raises:
        TypeError: `model` is no KAN or KANLinear.
        ValueError: a layer has symbolic edges, a bias that is not zero, spline order 0 or 16-bit weights.
    """
    sources = layers_of(model)
    with torch.random.fork_rng(devices=[]):  # the constructors draw numbers
        layers = [_to_layer(layer, n) for n, layer in enumerate(sources)]
        if isinstance(model, KANLinear):
            return layers[0]
        made = drop_in.KAN([1, 1], layers[0].grid_size, layers[0].spline_order)
    made.layers = nn.ModuleList(layers)
    return made


def _to_layer(layer: KANLinear, n: int) -> drop_in.KANLinear:
    name, weight = f"model: layer {n}", layer.spline_weight
    peer = "which efficient-kan cannot hold"
    require(layer.symbolic is None, f"{name} has symbolic edges, {peer}")
    require(layer.bias is None or not bool(layer.bias.any()), f"{name} has a bias that is not zero, {peer}")
    require(layer.spline_order > 0, f"{name} has spline_order 0, {peer}")
    require(
        layer.grid.dtype == weight.dtype,
        f"{name} has {weight.dtype} weights and {layer.grid.dtype} knots, {peer}: convert in float32",
    )
    spline_weight, base_weight = layer.masked_weights()
    made = drop_in.KANLinear(
        layer.in_features,
        layer.out_features,
        layer.grid_size,
        layer.spline_order,
        base_activation=nn.Identity if layer.base == "identity" else nn.SiLU,
        grid_range=layer.grid_range,
    ).to(device=weight.device, dtype=weight.dtype)
    made.grid.copy_(layer.grid)
    made.spline_weight.copy_(spline_weight.movedim(-1, 0))
    made.spline_scaler.fill_(1)
    if base_weight is None:
        made.base_weight.zero_()
    else:
        made.base_weight.copy_(base_weight.t())
    return made


@torch.no_grad()
def from_jaxkan(layers: Iterable[Mapping[str, Any]], spline_order: int, *, base: str | None = "silu") -> KAN:
    """A stack of jaxKAN's spline layers, given as arrays: jax is not needed, whatever numpy can read goes.

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
    """
    spline_order = checks.integer("spline_order", spline_order, 0, MAX_SPLINE_ORDER)
    checks.base(base)
    made = [_from_jax(arrays, spline_order, base, f"layers[{n}]") for n, arrays in enumerate(layers)]
    require(bool(made), "layers: got none, expected at least one")
    _chain(made, "layers[{}]")
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
