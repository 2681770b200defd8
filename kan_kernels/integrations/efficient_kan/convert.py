"""efficient-kan's models to kan_kernels.KAN and back: exact, or an error that names what cannot be held."""

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from ...composition import check_chain, layers_of, products_of
from ...nn import KAN, KANLinear
from .._shared import probe
from .._shared.converted import chain, filled, require, stacked
from . import adapter, core
from . import layers as drop_in


def from_efficient_kan(model: nn.Module) -> KAN | KANLinear:
    """Return efficient-kan's KAN as a kan_kernels.KAN, its KANLinear as a KANLinear.

    Args:
        model: the peer's own classes or copies of them, accelerated or not, or this package's. A network runs
            once on a float64 copy of itself, in training and in evaluation mode; hooks are not run, and not
            carried over.

    Raises:
        TypeError: `model` is something else.
        ValueError: its base activation is neither SiLU nor Identity, knots coincide where the peer divides by
            zero, a layer or the network has more than the peer's, or the network is no plain stack of its
            `layers`.

    Example:
        >>> from_efficient_kan(drop_in.KANLinear(2, 3)).spline_weight.shape
        torch.Size([2, 8, 3])
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
    chain(made, "model: layer {}")
    _check_stack(model)
    return stacked(made)


_MOST_NUMBERS = 2**19  # of a large batch, of which the peer makes all bases


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
    many = x.repeat(max(1, min(40, _MOST_NUMBERS // x.numel())), 1)  # code may look at how many, or at NaN
    row = torch.arange(min(many.shape), device="cpu")
    many[row, row] = torch.nan
    name = type(model).__name__
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        for training, rows in itertools.product((True, False), (x, many)):
            want = ours(rows)
            try:
                got = clone.train(training)(rows.clone())
            except Exception as error:  # whatever code the model has
                what = f"{type(error).__name__}: {error}"
                raise ValueError(f"model: {name} could not be run on a probe: {what}") from error
            require(
                isinstance(got, Tensor) and probe.same_rows(got, want),
                f"model: {name} computes something else than its layers one after the other",
            )


def _is_layer(module: object) -> bool:
    return isinstance(module, nn.Module) and adapter.claims(module)


@torch.no_grad()
def _from_layer(layer: Any, name: str) -> KANLinear:
    if not isinstance(layer, drop_in.KANLinear):
        taken = hasattr(type(layer), "_kan_kernels_original")
        why = layer._kan_kernels_why_own() if taken else adapter.reason(layer)
        require(why is None, f"{name}: {why}")
        require(
            core.increasing(layer.grid),
            f"{name}: knots coincide, decrease or are not finite, where efficient-kan divides by zero",
        )
    base = core.kernel_base(layer.base_activation)
    require(
        base is not None,
        f"{name}: base_activation {layer.base_activation!r} cannot be held, expected SiLU or Identity",
    )
    return _held(layer)


@torch.no_grad()
def _held(layer: Any) -> KANLinear:
    return filled(
        core.kernel_weight(layer),
        layer.grid,
        layer.spline_order,
        base=core.kernel_base(layer.base_activation),
        base_weight=layer.base_weight.t(),
    )


@torch.no_grad()
def to_efficient_kan(model: nn.Module) -> drop_in.KAN | drop_in.KANLinear:
    """Return a KAN or KANLinear in efficient-kan's layout, scalers 1.

    Its state dict loads into the peer's own. Masked edges, and base weights without a base, are zeros.

    Args:
        model: a KAN or KANLinear.

    Raises:
        TypeError: `model` is no KAN or KANLinear.
        ValueError: a layer has multiplication nodes, symbolic edges, a bias that is not zero, spline order 0
            or 16-bit weights.

    Example:
        >>> to_efficient_kan(KANLinear(2, 3)).spline_weight.shape
        torch.Size([3, 2, 8])
    """
    sources = layers_of(model)
    check_chain(model)
    for n, products in enumerate(products_of(model)):
        require(
            not products.arities,
            f"model: layer {n} has multiplication nodes, which efficient-kan cannot hold",
        )
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
