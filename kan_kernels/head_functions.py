"""The functions of heads: seen as a KANLinear, untied into one, and pruned."""

import copy
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import functional as F
from . import replicas
from ._core import checks
from .composition import check_plain, spline_layers
from .inspection import edge_arguments, edge_magnitudes, inputs_of
from .nn import KANLinear, MultiHeadKANLinear
from .nn.heads import HeadFunctions

__all__ = ["FunctionReport", "functions_of", "prune_functions", "untied"]
Model = TypeVar("Model", bound=nn.Module)


def functions_of(layer: HeadFunctions) -> KANLinear:
    """Return a KANLinear whose edges (i, h) are a layer's functions f[h,i], with the very same parameters.

    What looks at the edges of a KANLinear sees the functions: pictures, scores, suggestions of formulas,
    penalties, whose gradients reach the layer. Its outputs, sums over the inputs, are nothing that the layer
    computes. Whatever replaces a parameter, such as `grids.refine` or a formula, parts the two.

    Args:
        layer: a KANActivation or a MultiHeadKANLinear.

    Returns:
        KANLinear(functions of a head, heads).

    Raises:
        TypeError: naming the argument.

    Example:
        >>> layer = MultiHeadKANLinear(3, 8, heads=2)
        >>> functions_of(layer).spline_weight is layer.spline_weight
        True
    """
    if not isinstance(layer, HeadFunctions):
        expected = "a KANActivation or a MultiHeadKANLinear"
        raise TypeError(f"layer: got {type(layer).__name__}, expected {expected}")
    seen = _empty(layer, layer.heads, False)
    seen.spline_weight = layer.spline_weight
    if layer.base_weight is not None:
        seen.base_weight = layer.base_weight
    seen.place_grid(layer.grid)
    return seen


@torch.no_grad()
def untied(layer: MultiHeadKANLinear) -> KANLinear:
    """Return the KANLinear that computes the same, with parameters of its own for every edge.

    All that is for a KANLinear then holds: edges are pruned one by one, get formulas, are written as one.
    It has about (G+k+1) / (1 + (G+k+1) heads / out) times the parameters.

    Args:
        layer: a MultiHeadKANLinear.

    Returns:
        KANLinear(in, out).

    Raises:
        TypeError: naming the argument.

    Example:
        >>> layer, x = MultiHeadKANLinear(3, 8, heads=2), torch.rand(5, 3)
        >>> torch.allclose(untied(layer)(x), layer(x), atol=1e-5)
        True
    """
    if not isinstance(layer, MultiHeadKANLinear):
        raise TypeError(f"layer: got {type(layer).__name__}, expected a MultiHeadKANLinear")
    single = _empty(layer, layer.out_features, layer.bias is not None)
    weight, base = layer.edge_weights()
    single.spline_weight = nn.Parameter(weight, requires_grad=layer.spline_weight.requires_grad)
    if base is not None:
        single.base_weight = nn.Parameter(base, requires_grad=layer.spline_weight.requires_grad)
    if layer.bias is not None:
        single.bias = nn.Parameter(layer.bias.clone(), requires_grad=layer.bias.requires_grad)
    single.place_grid(layer.grid.clone())
    return single


def _empty(layer: HeadFunctions, outputs: int, bias: bool) -> KANLinear:
    """Return a KANLinear of the layer's options, in its mode, on no device: its tensors are still to come."""
    options: dict[str, Any] = {"base": layer.base, "bias": bias, "backend": layer.backend}
    sizes = layer.in_features, outputs, layer.grid_size, layer.spline_order
    made = KANLinear(*sizes, **options, device="meta", dtype=layer.spline_weight.dtype)
    made.grid = layer.grid.new_empty(0)
    return made.train(layer.training)


@dataclass
class FunctionReport:
    """A record of the functions of heads that went; prints as a table.

    Attributes:
        functions: name of a layer -> how many functions it had, and has.
        dropped: (name of the layer, input, head, score) of each that went, the most important first.
        rms_change, max_change: of the model's output on the data, where that is one tensor.

    Example:
        >>> print(FunctionReport({"up": (8, 6)}))
        up: 8 -> 6 functions
    """

    functions: dict[str, tuple[int, int]]
    dropped: list[tuple[str, int, int, float]] = field(default_factory=list)
    rms_change: float | None = None
    max_change: float | None = None

    def to_dict(self) -> dict:
        """Return plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{name or 'layer'}: {old} -> {new} functions" for name, (old, new) in self.functions.items()
        ]
        if self.rms_change is not None:
            lines.append(f"outputs changed by {self.rms_change:.2g} (rms), {self.max_change:.2g} (largest)")
        return "\n".join(lines)


@torch.no_grad()
def prune_functions(
    model: Model, x: Any, *, threshold: float = 3e-2, keep_means: bool = True
) -> tuple[Model, FunctionReport]:
    """Return a copy of a model without the functions of heads that hardly matter on x, and a report.

    The score of f[h,i] is the largest mean |mix[i,o] f[h,i](x_i)| of its edges: the score of
    `pruning.edge_scores` for the KANLinear of the same edges. A function whose score is not above the
    threshold becomes zero, with its row of `mix`. Zeros there get no gradient, so they stay through training.
    Shapes stay as they are. Only MultiHeadKANLinear layers are pruned: a KANActivation has no sum that a
    function could be left out of.

    Args:
        model: a module with MultiHeadKANLinear layers, run in evaluation mode.
        x: its argument, or a tuple of several.
        threshold: of the score, at least 0.
        keep_means: add the mean over x of what went to the bias of its layer, which gets one if it has none.

    Raises:
        TypeError, ValueError: naming the argument; ValueError if a layer would be left without any function,
            or sees none of x.

    Example:
        >>> layer = MultiHeadKANLinear(3, 8, heads=2)
        >>> layer.mix.data[1] = 1e-6
        >>> prune_functions(layer, torch.rand(16, 3), threshold=1e-4)[1].functions
        {'': (6, 4)}
    """
    threshold = checks.nonnegative("threshold", threshold)
    checks.boolean("keep_means", keep_means)
    named = {n: m for n, m in spline_layers(model).items() if isinstance(m, MultiHeadKANLinear)}
    if not named:
        raise TypeError(f"model: got {type(model).__name__}, expected one with MultiHeadKANLinear layers")
    plain = replicas.unwrapped(model)
    if plain is not model:
        raise TypeError(f"model: got a {type(model).__name__}, expected the module inside of it")
    for layer in named.values():
        check_plain(layer, "spline_weight", "base_weight", "mix", "bias")
    rows = inputs_of(model, list(named.values()), x)
    small = copy.deepcopy(model)
    layers = spline_layers(small)
    report = FunctionReport({})
    for (name, layer), inside in zip(named.items(), rows, strict=True):
        new = layers[name]
        assert isinstance(new, MultiHeadKANLinear)
        scores = _scores(layer, inside, name)
        gone = ~(scores > threshold)
        had = int((layer.mix.unflatten(1, (layer.heads, -1)) != 0).any(2).sum())
        if gone.all():
            raise ValueError(
                f"model: {name or 'it'} would be left without any function; the largest score is "
                f"{float(scores.max()):.3g}, expected a threshold below it, got {threshold:g}"
            )
        if keep_means and gone.any():
            _keep_means(new, inside, gone)
        group = layer.out_features // layer.heads
        new.mix.masked_fill_(gone.repeat_interleave(group, 1), 0)
        new.spline_weight.masked_fill_(gone.unsqueeze(1), 0)
        if new.base_weight is not None:
            new.base_weight.masked_fill_(gone, 0)
        left = int((new.mix.unflatten(1, (layer.heads, -1)) != 0).any(2).sum())
        report.functions[name] = (had, left)
        report.dropped += [(name, i, h, float(scores[i, h])) for i, h in gone.nonzero().tolist()]
    report.dropped.sort(key=lambda d: -d[3])
    before, after = (_outputs(m, x) for m in (model, small))
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        change = (after - before).double()
        report.rms_change = float(change.square().mean().sqrt())
        report.max_change = float(change.abs().max())
    return small, report


def _scores(layer: MultiHeadKANLinear, rows: Tensor, name: str) -> Tensor:
    """Return the largest score of the edges of every function, (in, heads) float64."""
    if len(rows) == 0:
        raise ValueError(f"x: does not reach {name or 'the layer'}, expected inputs that do")
    if not rows.isfinite().all():
        raise ValueError(
            f"x: the inputs of {name or 'the layer'} are not finite, expected an x that keeps them so"
        )
    largest = layer.mix.double().abs().unflatten(1, (layer.heads, -1)).amax(2)
    return edge_magnitudes(functions_of(layer), rows) * largest


def _keep_means(layer: MultiHeadKANLinear, rows: Tensor, gone: Tensor) -> None:
    """Add to the bias the mean of the functions that go."""
    mean = F.edge_moments(rows, **edge_arguments(layer))[0].double()
    mean = (mean * gone).repeat_interleave(layer.out_features // layer.heads, 1)
    bias = (mean * layer.mix.double()).sum(0)
    bias = bias if layer.bias is None else bias + layer.bias.double()
    trained = layer.bias is None or layer.bias.requires_grad
    layer.bias = nn.Parameter(bias.to(layer.mix.dtype), requires_grad=trained)


def _outputs(model: nn.Module, x: Any) -> Any:
    """Return what the model returns in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        return model(*x) if isinstance(x, tuple) else model(x)
    finally:
        for module, training in modes:
            module.training = training
