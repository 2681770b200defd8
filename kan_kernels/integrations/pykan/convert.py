"""pykan's models and checkpoint files to kan_kernels.KAN and back; pykan itself is needed only to make one.

Facts of pykan 0.2.8 (MIT). One layer of its MultKAN computes, with nodes a scale and shift of each other,

    z[o] = sum_i mask[i,o] (scale_base[i,o] base(x[i]) + scale_sp[i,o] sum_r coef[i,o,r] B_r(x[i]))
         + sum_i smask[o,i] (c f(a x[i] + b) + d)
    y[o] = node_scale[o] (subnode_scale[o] z[o] + subnode_bias[o]) + node_bias[o]

The scale of a node is multiplied into the weights of the edges that end there, its shift is the layer's bias.
A multiplication node takes the product of neighbouring subnodes, subnode_scale[s] z[s] + subnode_bias[s], in
their place; its scale goes into the first of them, and a shift behind the product has no place here.
"""

import contextlib
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...composition import check_chain, layers_of, products_of
from ...nn import KAN, KANLinear
from .. import Accelerated
from .._shared.converted import filled, regular_inputs, require, stacked
from .code import why_not_its_code, why_not_its_functions
from .layer import base_of
from .nodes import affine_of, products_of_widths

_BASES: dict[str, str | None] = {"silu": "silu", "identity": "identity", "zero": None}
_TO_PYKAN = {"1/sqrt": "1/sqrt(x)"}  # names of functions that differ; kan_kernels knows pykan's as aliases


@dataclass
class _Layer:
    """The facts that pykan holds for one layer, its names, its layout. affine: (out, in, 4), or None."""

    coef: Tensor
    grid: Tensor
    scale_base: Tensor
    scale_sp: Tensor
    mask: Tensor
    order: int
    symbolic_mask: Tensor | None = None
    affine: Tensor | None = None
    names: list[list[str]] | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None


def from_pykan(model: nn.Module) -> KAN | KANLinear:
    """Return pykan's MultKAN (KAN) as a kan_kernels.KAN, its KANLayer as a KANLinear.

    Edges with a formula become symbolic edges; the affine parameters of nodes are multiplied out;
    multiplication nodes stay what they are.

    Args:
        model: of pykan 0.2.8, accelerated or not.

    Raises:
        TypeError: `model` is something else.
        ValueError: naming the part that cannot be held: a multiplication node whose node_bias is not 0, a
            base function that is no silu, identity or zero, selected inputs (prune_input), an unknown
            formula, knots of an input of which some coincide, a forward of its own.

    Example:
        >>> peer = to_pykan(KAN([2, 5, 1]))
        >>> [layer.out_features for layer in from_pykan(peer).layers]
        [5, 1]
    """
    kind = {cls.__name__ for cls in type(model).__mro__ if cls.__module__.partition(".")[0] == "kan"}
    any_model: Any = model
    if "MultKAN" in kind:
        return _from_network(any_model)
    if "KANLayer" in kind:
        _check_forward(model, "KANLayer", "model")
        return _made(_numbers(any_model), _base_of(any_model.base_fun, "model"), "model")
    raise TypeError(f"model: got {type(model).__name__}, expected pykan's MultKAN or KANLayer")


def _from_network(model: Any) -> KAN:
    _check_forward(model, "MultKAN", "model")
    products = products_of_widths(model.width, model.mult_arity)
    selected = getattr(model, "input_id", None)
    count = model.width[0][0]
    require(
        selected is None or torch.equal(selected.cpu().long(), torch.arange(count)),
        "model: input_id selects some of the inputs, which kan_kernels cannot hold; set model.input_id = "
        f"torch.arange({count}) and select them before the model",
    )
    layers = []
    for n, layer in enumerate(model.act_fun):
        where = f"model: layer {n}"
        _check_forward(layer, "KANLayer", where)
        facts = _numbers(layer)
        affine = model.node_scale[n], model.node_bias[n], model.subnode_scale[n], model.subnode_bias[n]
        facts.scale, facts.shift = affine_of(products[n], *affine, where)
        if model.symbolic_enabled:
            symbolic = model.symbolic_fun[n]
            _check_forward(symbolic, "Symbolic_KANLayer", where)
            facts.symbolic_mask, facts.affine, facts.names = (
                symbolic.mask,
                symbolic.affine,
                symbolic.funs_name,
            )
            why = why_not_its_functions(symbolic)
            require(why is None, f"{where}: {why}")
        layers.append(_made(facts, _base_of(layer.base_fun, where), where))
    return stacked(layers, products)


def load_checkpoint(path: str | os.PathLike[str], *, device: torch.device | str | None = None) -> KAN:
    """Return the model of a checkpoint that pykan's `saveckpt(path)` wrote: PATH_config.yml and PATH_state.

    Both are read as plain data: yaml.safe_load, and torch.load with weights_only. pykan is not needed.

    Args:
        path: what was given to saveckpt, without _config.yml.
        device: of the model; None means the CPU.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the files hold other things than plain values and tensors, or something is missing in
            them; or a part of the model cannot be held, see `from_pykan`.
        ModuleNotFoundError: pyyaml is not installed.

    Example:
        >>> to_pykan(KAN([2, 5, 1])).saveckpt("model")
        >>> [layer.out_features for layer in load_checkpoint("model").layers]
        [5, 1]
    """
    config = _config(Path(f"{os.fspath(path)}_config.yml"))
    state = _state(Path(f"{os.fspath(path)}_state"), device)

    def tensor(key: str) -> Tensor:
        value = state.get(key)
        require(isinstance(value, Tensor), f"path: {path}_state has no tensor {key!r}")
        return value  # type: ignore[return-value]

    def setting(key: str) -> Any:
        require(key in config, f"path: {path}_config.yml has no {key!r}")
        return config[key]

    width = setting("width")
    products = products_of_widths(width, setting("mult_arity"))
    name = setting("base_fun_name")
    known = isinstance(name, str) and name in _BASES
    require(known, f"path: base_fun is {name!r}, expected silu, identity or zero")
    base = _BASES[name]
    layers = []
    for n in range(len(width) - 1):
        at, order = f"act_fun.{n}.", setting("k")
        facts = _Layer(
            coef=tensor(at + "coef"),
            grid=tensor(at + "grid"),
            scale_base=tensor(at + "scale_base"),
            scale_sp=tensor(at + "scale_sp"),
            mask=tensor(at + "mask"),
            order=order[n] if isinstance(order, list) else order,
        )
        names = ("node_scale", "node_bias", "subnode_scale", "subnode_bias")
        scale, bias, sub_scale, sub_bias = (tensor(f"{name}_{n}") for name in names)
        facts.scale, facts.shift = affine_of(
            products[n], scale, bias, sub_scale, sub_bias, f"path: layer {n}"
        )
        if setting("symbolic_enabled"):
            facts.symbolic_mask = tensor(f"symbolic_fun.{n}.mask")
            facts.affine = tensor(f"symbolic_fun.{n}.affine")
            facts.names = setting(f"symbolic.funs_name.{n}")
        layers.append(_made(facts, base, f"path: layer {n}"))
    return stacked(layers, products)


def _config(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("load_checkpoint needs pyyaml: pip install pyyaml") from error
    try:
        config = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"path: {path} does not hold plain values: {error}") from error
    require(isinstance(config, dict), f"path: {path} is no mapping of settings")
    return config


def _state(path: Path, device: torch.device | str | None) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"path: {path} does not exist")
    try:
        state = torch.load(path, map_location=device or "cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are no checkpoints
        raise ValueError(f"path: {path} is no file of tensors: {error}") from error
    require(isinstance(state, dict), f"path: {path} is no state dict")
    return state


def _check_forward(module: Any, name: str, where: str) -> None:
    """Raise ValueError unless a call runs pykan's forward to the letter, or `accelerate`'s in its place."""
    cls: Any = module._kan_kernels_original if isinstance(module, Accelerated) else type(module)
    why = "forward was replaced on this instance" if "forward" in module.__dict__ else None
    why = why or why_not_its_code(cls, name, "forward")
    own = f"{where}: {cls.__qualname__} has a forward of its own, expected that of pykan's {name}"
    require(why is None, f"{own} ({why})")


def _base_of(function: object, where: str) -> str | None:
    """Return kan_kernels' name of a base function that pykan gave a layer."""
    base = base_of(function)
    require(
        base is not None, f"{where}: base_fun is {function!r}, expected silu, identity or zero without hooks"
    )
    name, factor = base  # type: ignore[misc]
    return name if factor else None


def _numbers(layer: Any) -> _Layer:
    return _Layer(layer.coef, layer.grid, layer.scale_base, layer.scale_sp, layer.mask, layer.k)


@torch.no_grad()
def _made(p: _Layer, base: str | None, where: str) -> KANLinear:
    """Return the KANLinear that computes the same."""
    fan_in, _, rows = p.coef.shape
    expected = (fan_in, rows + p.order + 1)
    require(tuple(p.grid.shape) == expected, f"{where}: grid is {tuple(p.grid.shape)}, expected {expected}")
    weight, base_weight = p.coef * p.scale_sp.unsqueeze(-1), p.scale_base
    switch = bool(((p.mask == 0) | (p.mask == 1)).all())
    if not switch:
        weight, base_weight = weight * p.mask.unsqueeze(-1), base_weight * p.mask
    if p.scale is not None and bool((p.scale != 1).any()):
        weight, base_weight = weight * p.scale[:, None], base_weight * p.scale
    try:
        layer = filled(
            weight.transpose(1, 2),
            p.grid,
            p.order,
            base=base,
            base_weight=base_weight if base else None,
            bias=p.shift,
            edge_mask=p.mask if switch and bool((p.mask == 0).any()) else None,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    good = regular_inputs(layer.grid, flat=True)  # as rounded to the layer's dtype
    require(
        bool(good.all()),
        f"{where}: grid: knots of feature {int((~good).int().argmax())} do not increase in "
        f"{layer.grid.dtype}: other codebases divide by zero where knots coincide, kan_kernels does not",
    )
    if p.symbolic_mask is not None and bool(p.symbolic_mask.any()):
        layer.set_symbolic(_edges(p, layer, where))
    return layer


def _edges(p: _Layer, layer: KANLinear, where: str) -> Any:
    from ...nn.function_library import get
    from ...symbolic import Edge, SymbolicEdges, names

    assert p.symbolic_mask is not None and p.affine is not None and p.names is not None
    mask, affine = p.symbolic_mask.double().cpu(), p.affine.double().cpu()
    scale = torch.ones(layer.out_features) if p.scale is None else p.scale.double().cpu()
    edges = []
    for o, i in mask.nonzero().tolist():
        name = p.names[o][i]
        try:
            get(name)
        except (TypeError, ValueError):
            raise ValueError(
                f"{where}: edge {i} -> {o} has the formula {name!r}, expected one of {names()}; "
                "kan_kernels.symbolic.register adds one"
            ) from None
        a, b, c, d = affine[o, i].tolist()
        factor = float(mask[o, i] * scale[o])
        edges.append(Edge(i, o, name, (a, b, c * factor, d * factor), 1.0))
    weight = layer.spline_weight
    return SymbolicEdges(
        layer.in_features, layer.out_features, edges, device=weight.device, dtype=weight.dtype
    )


def to_pykan(model: nn.Module) -> Any:
    """Return a KAN or KANLinear as pykan's MultKAN, without checkpoints on disk (auto_save=False).

    scale_sp becomes 1, scale_base the base weight, a bias the node_bias of its layer, or before products its
    subnode_bias, products, edge mask and symbolic edges pykan's. pykan's constructor sets the seeds of torch,
    numpy and random; they are put back.

    Args:
        model: a KAN or KANLinear.

    Raises:
        TypeError: `model` is no KAN or KANLinear.
        ValueError: a layer has another base than the first, spline order 0, 16-bit weights, or a formula that
            pykan does not have.
        ModuleNotFoundError: pykan is not installed.

    Example:
        >>> to_pykan(KAN([2, 5, 1])).width
        [[2, 0], [5, 0], [1, 0]]
    """
    layers, products = layers_of(model), products_of(model)
    check_chain(model)
    arities = {arity for p in products for arity in p.arities}
    try:
        kan = import_module("kan")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"to_pykan needs pykan ({error}): pip install '.[pykan]' in a clone of kan_kernels"
        ) from error
    known = import_module("kan.utils").SYMBOLIC_LIB
    for n, layer in enumerate(layers):
        _check_layer(layer, layers[0].base, known, f"model: layer {n}")
    with _seeds_kept():
        made = kan.MultKAN(
            width=[layers[0].in_features, *([p.sums, len(p.arities)] for p in products)],
            mult_arity=[[], *(list(p.arities) for p in products)]
            if len(arities) > 1
            else max(arities, default=2),
            grid=[layer.grid_size for layer in layers],
            k=[layer.spline_order for layer in layers],
            base_fun=layers[0].base or "zero",
            grid_range=list(layers[0].grid_range),
            auto_save=False,
        )
    weight = layers[0].spline_weight
    made.to(weight.dtype)
    made.to(weight.device)
    for n, layer in enumerate(layers):
        _fill(made, n, layer)
        if layer.bias is not None:
            place = made.subnode_bias if products[n].arities else made.node_bias
            place[n].data = layer.bias.detach().clone()
    return made


def _check_layer(layer: KANLinear, base: str | None, known: Any, where: str) -> None:
    require(
        layer.base == base, f"{where} has the base {layer.base!r}, layer 0 {base!r}: pykan has one for all"
    )
    require(layer.spline_order > 0, f"{where} has spline_order 0, which pykan cannot hold")
    dtype = layer.spline_weight.dtype
    require(
        dtype == layer.grid.dtype, f"{where} has {dtype} weights beside {layer.grid.dtype} knots: use float32"
    )
    for edge in layer.symbolic.edges() if layer.symbolic is not None else ():
        name = _TO_PYKAN.get(edge.name, edge.name)
        require(
            name in known,
            f"{where}: edge {edge.input} -> {edge.output} has the formula {name!r}, which pykan does not "
            "have; kan.add_symbolic adds one",
        )


@torch.no_grad()
def _fill(made: Any, n: int, layer: KANLinear) -> None:
    """Set values through `.data`: pykan's own code keeps references to the parameters."""
    numeric, symbolic = made.act_fun[n], made.symbolic_fun[n]
    numeric.grid.data = layer.grid.clone()
    numeric.coef.data = layer.spline_weight.transpose(1, 2).contiguous()
    numeric.scale_sp.data = torch.ones_like(numeric.scale_sp)
    base = layer.base_weight
    numeric.scale_base.data = torch.zeros_like(numeric.scale_base) if base is None else base.detach().clone()
    if layer.edge_mask is not None:
        numeric.mask.data = layer.edge_mask.clone()
    for edge in layer.symbolic.edges() if layer.symbolic is not None else ():
        i, o = edge.input, edge.output
        symbolic.fix_symbolic(i, o, _TO_PYKAN.get(edge.name, edge.name))
        symbolic.mask.data[o, i] = 1
        symbolic.affine.data[o, i] = torch.tensor(edge.affine, dtype=torch.float64).to(symbolic.affine)


@contextlib.contextmanager
def _seeds_kept() -> Iterator[None]:
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
