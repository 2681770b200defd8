"""FastKAN's FastKANLayer (arXiv 2405.06721, github.com/ZiyaoLi/fast-kan), recognised by its structure and its
code.

A layer has the children rbf, whose grid holds the centres, spline_linear and perhaps base_linear, and a
forward that names the first two. Older revisions have an argument `time_benchmark` in place of
`use_layernorm`.
"""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from ..._core import checks
from ..._core.bases import MAX_FUNCTIONS, RBF
from .._shared import eligible, probe
from .._shared.accelerated import Accelerated, overrides
from .._shared.judge import judge
from .._shared.probe import Probe
from .._shared.subject import Subject
from . import layers

NAME = "FastKAN"

_CODE = ("rbf", "spline_linear")

SUBJECT = Subject(
    NAME,
    "forward",
    tensors=frozenset(),
    options=frozenset({"use_base_update"}),
    extents=frozenset({"input_dim", "output_dim"}),
    callables=frozenset({"base_activation", "layernorm", "spline_linear", "base_linear"}),
    parts={
        "rbf": Subject(
            f"{NAME} rbf",
            "forward",
            tensors=frozenset({"grid"}),
            options=frozenset({"grid_min", "grid_max", "num_grids", "denominator"}),
        )
    },
)


class FastKANLayer(Accelerated):
    """A mixin with forward on the kernels."""

    _kan_kernels_watched = frozenset({"forward", "rbf"})
    _kan_kernels_reads = ("rbf", "spline_linear", "base_linear", "layernorm")

    def forward(self: Any, x: Tensor) -> Tensor:
        rows = _prepared(self, x)
        if isinstance(rows, str):
            return super().forward(x)  # type: ignore[misc]
        return _evaluate(self, x, rows, True)

    def _kan_kernels_options(self: Any) -> tuple[Any, ...]:
        rbf, state = self._modules["rbf"], self.__dict__
        if self._kan_kernels_known:
            return (type(rbf),)
        activation = state.get("base_activation") or self._modules.get("base_activation")
        switches = state.get("use_base_update"), self._modules.get("layernorm")
        return type(rbf), activation, *switches, *map(rbf.__dict__.get, _RANGES)

    def _kan_kernels_judge(self) -> tuple[str | None, frozenset[int] | None]:
        return _examine(self)

    def _kan_kernels_fallback(self) -> str | None:
        rows = _prepared(self)
        return rows if isinstance(rows, str) else None

    def _kan_kernels_path(self) -> str:
        if getattr(self, "layernorm", None) is None:
            return ""
        features = self.spline_linear.weight.shape[1] // len(self.rbf.grid)
        return "" if isinstance(layers.one_op(self, features), str) else ", all of the layer in one op"

    _kan_kernels_note = Accelerated._kan_kernels_for_now


class FastKANLayerWithSwitch(FastKANLayer):
    """A mixin with forward(x, use_layernorm) on the kernels."""

    _kan_kernels_only_x = False

    def forward(self: Any, x: Tensor, use_layernorm: bool = True) -> Tensor:
        rows = _prepared(self, x)
        if isinstance(rows, str):
            return super(FastKANLayer, self).forward(x, use_layernorm)  # type: ignore[misc]
        return _evaluate(self, x, rows, use_layernorm)


def claims(module: nn.Module) -> bool:
    """Return whether the children and the switch of the base branch are there."""
    return all(name in module._modules for name in _CODE) and hasattr(module, "use_base_update")


def lacks(module: nn.Module) -> str | None:
    """Return what a layer with the peer's children lacks of the peer's, or None."""
    if not all(name in module._modules for name in _CODE) or hasattr(module, "use_base_update"):
        return None
    return f"{NAME}: lacks use_base_update, which {NAME}'s layers have"


def reason(module: nn.Module) -> str | None:
    """Return why this layer is left alone, or None."""
    if isinstance(module, layers.FastKANLayer):
        return "is the drop-in of kan_kernels and runs the kernels already"
    owner = probe.owner_by_code(module, _CODE)
    if owner is None:
        return "no class of it has a forward that names rbf and spline_linear"
    return overrides(module, owner, ("forward",)) or _why_other(module) or _examine(module)[0]


def mixin(module: nn.Module) -> type[Accelerated]:
    return FastKANLayerWithSwitch if _has_switch(module) else FastKANLayer


def _has_switch(module: nn.Module) -> bool:
    names = list(inspect.signature(probe.own_class(module).forward).parameters)
    return names[1:] == ["x", "use_layernorm"]


def _evaluate(layer: Any, x: Tensor, rows: Tensor, use_layernorm: bool) -> Tensor:
    normalise = bool(use_layernorm) and getattr(layer, "layernorm", None) is not None
    return layers.evaluate(layer, x, rows, normalise)


_NOTHING = object()


def _prepared(layer: Any, x: object = _NOTHING) -> Tensor | str:
    """Return the kernels' grid; or why they cannot run it as it is now, or for this x."""
    why: str | None
    why = layer._kan_kernels_why_own() if x is _NOTHING else layer._kan_kernels_why_own_for(x)
    if why is not None:
        return why
    rbf, spline, with_base = layer.rbf, layer.spline_linear, layer.use_base_update
    linear = [spline, layer.base_linear] if with_base else [spline]
    if eligible.watched(rbf):
        return "rbf has hooks or another forward"
    for child in linear:
        if not layers.is_linear(child):
            name = "spline_linear" if child is spline else "base_linear"
            return f"{name} has hooks or another forward than Linear's"
    weight, grid = spline.weight, rbf.grid
    tensors = [weight, grid]
    for base in linear[1:]:
        tensors += [base.weight] if base.bias is None else [base.weight, base.bias]
    why = eligible.why_not_tensors(weight, tensors)
    if why is not None:
        return why
    if grid.requires_grad:
        return "the centres ask for a gradient, which the kernels do not compute"
    if grid.dim() != 1 or (with_base and layer.base_linear.weight.shape[0] != weight.shape[0]):
        return "its centres are no row of numbers, or its two branches have other outputs"
    features, rest = divmod(weight.shape[1], len(grid))
    if rest or spline.bias is not None:
        return "spline_linear has a bias, or no whole number of weights for each centre"
    why = _why_attributes(layer)
    if why is None and x is not _NOTHING:
        why = eligible.why_not_rows(x, weight, features)
    if why is not None:
        return why
    rows = layers.kernel_rows(rbf, features)
    try:
        checks.grid_values(rows, RBF)
    except ValueError:
        return "centres are not finite"
    return rows


def _why_centres(rbf: Any) -> str | None:
    """Return what is against the tensor of centres."""
    grid = getattr(rbf, "grid", None)
    if isinstance(grid, Tensor) and grid.dim() == 1 and 1 <= len(grid) <= MAX_FUNCTIONS:
        return None
    got = tuple(grid.shape) if isinstance(grid, Tensor) else type(grid).__name__
    return f"rbf.grid is {got}, expected (num_grids,) with at most {MAX_FUNCTIONS}"


def _why_attributes(layer: Any) -> str | None:
    """Return what the kernels do not have of what is no tensor."""
    width = getattr(layer.rbf, "denominator", None)
    if not isinstance(width, (int, float)) or not 0 < width < math.inf:
        return f"the Gaussians' width is {width!r}, the kernels have finite positive numbers"
    if layer.use_base_update and probe.in_place(layer.base_activation):
        return "its base activation works in place"
    return None


def _why_other(module: Any) -> str | None:
    """Return what does not fit the peer's tensors and children."""
    rbf, spline, norm = module.rbf, module.spline_linear, getattr(module, "layernorm", None)
    known = {"layernorm", "rbf", "spline_linear", "base_linear", "base_activation"}
    children: list[tuple[str, Any]] = [("", module), ("rbf.", rbf), ("spline_linear.", spline)]
    if module.use_base_update:
        children.append(("base_linear.", getattr(module, "base_linear", None)))
    for name, child in children:
        if not isinstance(child, nn.Module):
            return f"{name[:-1]} is {type(child).__name__}, expected a module"
        if "parametrizations" in child._modules:
            return f"{name[:-1] or 'it'} is parametrized; accelerate first, then parametrize"
    why = _why_centres(rbf)
    if why is not None:
        return why
    grid = rbf.grid
    weight = getattr(spline, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or weight.shape[1] % len(grid):
        return f"spline_linear.weight is no matrix with a multiple of {len(grid)} columns"
    fan_out, fan_in = weight.shape[0], weight.shape[1] // len(grid)
    why = probe.more_than(module, known) or probe.more_than(rbf, {"grid"})
    why = why or probe.more_than(spline, {"weight", "bias"})
    normal = norm is None or (type(norm) is nn.LayerNorm and norm.normalized_shape == (fan_in,))
    if why is None and not normal:
        return f"layernorm is {norm}, expected None or LayerNorm(({fan_in},))"
    if why is None and module.use_base_update:
        why = probe.wrong_shape(module.base_linear, {"weight": (fan_out, fan_in)}, "base_linear.")
        if why is None and not callable(getattr(module, "base_activation", None)):
            why = "base_activation is missing or cannot be called"
    return why or _why_attributes(module)


_IN, _OUT = 7, 5  # at most, of a probe


def _clone(module: Any, generator: torch.Generator) -> tuple[Any, Tensor, Tensor]:
    """Make a layer with few features, on uneven centres; inputs around these; and the centres themselves."""
    rbf, spline, norm = module.rbf, module.spline_linear, getattr(module, "layernorm", None)
    count, width = len(rbf.grid), float(rbf.denominator)
    fan_out, fan_in = spline.weight.shape
    fan_out, fan_in = min(_OUT, fan_out), min(_IN, fan_in // count)
    steps = 0.5 + torch.rand(count, generator=generator, dtype=torch.float64)
    centres = width * (steps.cumsum(0) - steps.sum() / 2)
    children = {
        "rbf": probe.clone(rbf, {}, generator, {"grid": centres}),
        "spline_linear": _linear(spline, fan_in * count, fan_out, generator),
    }
    if norm is not None:
        affine = dict.fromkeys(norm._parameters, (fan_in,)) if norm.elementwise_affine else {}
        affine = {name: shape for name, shape in affine.items() if norm._parameters[name] is not None}
        children["layernorm"] = probe.clone(norm, affine, generator, {})
        children["layernorm"]._parameters |= {n: None for n in norm._parameters if n not in affine}
        children["layernorm"].normalized_shape = (fan_in,)
    if module.use_base_update:
        children["base_linear"] = _linear(module.base_linear, fan_in, fan_out, generator)
    others = {name: child for name, child in module._modules.items() if name not in children}
    children |= probe.copied(others)
    clone = probe.clone(module, {}, generator, {}, children)
    clone.input_dim, clone.output_dim = fan_in, fan_out
    low, high = centres.min().expand(fan_in), centres.max().expand(fan_in)
    x = probe.inputs(low - width, high + width, generator)
    places = centres.unsqueeze(1).repeat(1, fan_in) + 1e-3 * probe.random((count, fan_in), generator)
    return clone, x, places


def _linear(module: Any, fan_in: int, fan_out: int, generator: torch.Generator) -> Any:
    shapes: dict[str, tuple[int, ...]] = {"weight": (fan_out, fan_in)}
    if module.bias is not None:
        shapes["bias"] = (fan_out,)
    made = probe.clone(module, shapes, generator, {})
    made._parameters.setdefault("bias", None)
    made.in_features, made.out_features = fan_in, fan_out
    return made


def _examine(module: Any) -> tuple[str | None, frozenset[int] | None]:
    """Return what is against the layer's code, by reading and running it, or None; and the dims of x it is
    for.

    It runs with and without the layernorm where the layer can be asked for both.
    """
    verdict = judge(module, SUBJECT)
    if isinstance(module, Accelerated):
        module.__dict__["_kan_kernels_judged"] = module._kan_kernels_options()
    why = verdict.why or _why_centres(module.rbf) or _why_attributes(module)
    if why is not None:
        return why, None
    own, norm = probe.own_class(module).forward, getattr(module, "layernorm", None)

    def ours(clone: Any, x: Tensor, use_layernorm: bool = True) -> Tensor:
        return _evaluate(clone, x, layers.kernel_rows(clone.rbf, x.shape[-1]), use_layernorm)

    def without(clone: Any, x: Tensor) -> Tensor:
        return own(clone, x, use_layernorm=False)

    probes = [Probe(NAME, lambda g: _clone(module, g), own, ours)]
    if _has_switch(module) and norm is not None:
        probes.append(Probe(NAME, lambda g: _clone(module, g), without, lambda c, x: ours(c, x, False)))

    def work() -> tuple[str | None, frozenset[int] | None]:
        answers = [probe.compare(each, verdict.known) for each in probes]
        dims = [answer[1] for answer in answers if answer[1] is not None]
        why = next((answer[0] for answer in answers if answer[0] is not None), None)
        return why, frozenset.intersection(*dims) if dims else None

    options = _options(module)
    if verdict.known:  # the activation is called in one way, and the width is an argument of the kernels
        options = (
            *options[:_KNOWN],
            *probe.kind_of(module.base_activation if module.use_base_update else None),
        )
    return probe.stored((verdict.token, *options), work)


_RANGES = ("grid_min", "grid_max", "num_grids", "denominator")
_KNOWN = 5  # the first of `_options` are all that counts of the peer's own code, but for the activation


def _options(module: Any) -> tuple[Any, ...]:
    """Return all that a clone is made of."""
    rbf, norm, base = module.rbf, getattr(module, "layernorm", None), module.use_base_update
    norms = tuple(getattr(norm, name, None) for name in ("elementwise_affine", "eps"))
    biased = getattr(norm, "bias", None) is None, bool(base) and module.base_linear.bias is None
    grid, weight = getattr(rbf, "grid", None), module.spline_linear.weight
    count = len(grid) if isinstance(grid, Tensor) and grid.dim() else 0
    sizes = min(_IN, weight.shape[1] // max(count, 1)), min(_OUT, weight.shape[0]), count, bool(base)
    ranges = tuple(getattr(rbf, name, None) for name in _RANGES)
    activation = probe.identity_of(module.base_activation) if base else None
    return type(rbf), type(norm), norms, biased, sizes, ranges, activation
