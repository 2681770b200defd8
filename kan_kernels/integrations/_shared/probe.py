"""Whether the own code of a layer computes the kernels' numbers, by running both.

They run on the CPU, on a clone of the layer: the peer's class and the layer's attributes, but few features,
random weights and children of the clone's own. Code that is not the peer's to the letter is run far beyond
the comfortable.
"""

import copy
import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .accelerated import mro_class

_ROWS = 128
_TOLERANCE = 1e-9  # of the largest entry: float64 rounding of both, far below any edited formula
_SINGLE = 2e-2  # the same for float32, in which peers lose digits: it is for code that looks at the dtype
_Result = TypeVar("_Result")


def owner_by_code(module: nn.Module, names: Collection[str]) -> type | None:
    """Return the first class in the resolution order whose own forward names all these attributes."""

    def names_them(cls: type) -> bool:
        code = getattr(cls.__dict__.get("forward"), "__code__", None)
        return code is not None and set(names) <= set(code.co_names)

    return mro_class(module, names_them)


def has(module: nn.Module, name: str) -> bool:
    """Return whether a module or its class has an attribute of this name, without reading it."""
    tables = (module.__dict__, module._parameters, module._buffers, module._modules)
    return any(name in table for table in tables) or hasattr(type(module), name)


def in_place(activation: Any) -> bool:
    """Return whether a base activation, or a part of it, works in place."""
    modules = activation.modules() if isinstance(activation, nn.Module) else (activation,)
    return any(getattr(module, "inplace", False) for module in modules)


def kind_of(activation: Any) -> tuple[Any, bool]:
    """Return what of a base activation matters to code that calls it once, on x."""
    return type(activation) if isinstance(activation, nn.Module) else activation, in_place(activation)


def identity_of(activation: Any) -> Any:
    """Return what of a base activation matters to any code: torch's own by its options, else the object."""
    plain = isinstance(activation, nn.Module) and type(activation).__module__.startswith("torch.nn.modules")
    if plain and not any((activation._parameters, activation._buffers, activation._modules)):
        return repr(activation)  # with its options
    return activation


def own_class(module: nn.Module) -> type[Any]:
    """Return the peer's class of a layer, accelerated or not."""
    return getattr(type(module), "_kan_kernels_original", type(module))


def more_than(module: nn.Module, names: Collection[str]) -> str | None:
    """Return why to leave a layer alone that has parameters, buffers or children beside these, or None."""
    extra = {*module._parameters, *module._buffers, *module._modules} - set(names)
    return f"has more than the peer's tensors: {', '.join(sorted(extra))}" if extra else None


def wrong_shape(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> str | None:
    """Return why to leave a layer alone that lacks one of these tensors in this shape, or None."""
    for name, shape in shapes.items():
        value = getattr(module, name, None)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            return f"{prefix}{name} is {got}, expected {shape}"
    return None


def random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return normal numbers in float64 on the CPU, whatever the caller's defaults are."""
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def clone(
    module: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    generator: torch.Generator,
    buffers: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module | None] | None = None,
) -> Any:
    """Make the class and attributes of a module, random parameters of these shapes, these buffers, no hooks.

    modules: its children; None copies the module's own to float64 on the CPU.
    """
    made = object.__new__(own_class(module))
    made.__dict__.update(module.__dict__)
    made._parameters = {name: nn.Parameter(random(shape, generator)) for name, shape in shapes.items()}
    made._buffers = dict(buffers)
    made._modules = copied(module._modules) if modules is None else dict(modules)
    _without_hooks(made)
    return made


def copied(modules: Mapping[str, nn.Module | None]) -> dict[str, nn.Module | None]:
    """Return children, copied to float64 on the CPU."""
    made = {name: None if child is None else copy.deepcopy(child) for name, child in modules.items()}
    for child in made.values():
        for module in () if child is None else child.modules():
            _without_hooks(module)
    return {name: None if child is None else child.double().cpu() for name, child in made.items()}


def _without_hooks(module: nn.Module) -> None:
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(module, hooks, OrderedDict())


def inputs(low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Return rows from a tenth below `low` to a tenth above `high`, which have one entry for each feature."""
    x = torch.rand(_ROWS, len(low), generator=generator, dtype=torch.float64, device="cpu")
    return low + (high - low) * (1.2 * x - 0.1)


def same(got: Tensor | None, want: Tensor | None) -> bool:
    if got is None or want is None:
        return got is want
    return got.shape == want.shape and bool(
        ((got - want).abs() <= _TOLERANCE * want.abs().max().clamp_min(1.0)).all()
    )


def isolated(probe: Callable[..., _Result]) -> Callable[..., _Result]:
    """Run a probe whatever the caller's modes are, and leave the random state as it is."""

    @functools.wraps(probe)
    def run(*args: Any) -> _Result:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.random.fork_rng(devices=[]),
            torch.device("cpu"),
        ):
            return probe(*args)

    return run


Call = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Probe:
    """A comparison of the own code of a layer with the kernels.

    Attributes:
        peer: what the report calls it.
        make: a new clone in float64, inputs (128, in) for it in its comfortable range, and (n, in) of the
            places where its formula changes, such as knots.
        own, ours: the same call of a clone by its own code and by the kernels.
        far: the largest |x| at which the peer's own formula has its digits in float64.
        limits: whether the kernels have a limit where the peer's formula makes NaN of an infinite x.
        shapes: shapes of x, beside (..., in), that the kernels take too; where its own code does not, there
        are dims.
    """

    peer: str
    make: Callable[[torch.Generator], tuple[Any, Tensor, Tensor]]
    own: Call
    ours: Call
    far: float = 1e30
    limits: bool = False
    shapes: tuple[tuple[int, ...], ...] = ()


@isolated
def compare(probe: Probe, known: bool) -> tuple[str | None, frozenset[int] | None]:
    """Run both.

    Args:
        known: whether the own code is the peer's to the letter, so that it holds no surprises.

    Returns:
        A reason to leave the layer alone, or None; and the numbers of dimensions of x for which both agree,
        None for all.
    """
    try:
        why = _differs(probe)
        if why is None and not known:
            why = _differs_beyond(probe)
        return (why, None) if why is not None else (None, _dims(probe))
    except Exception as error:  # whatever code the copy has
        return f"its forward could not be compared on a probe: {type(error).__name__}: {error}", None


def _differs(probe: Probe) -> str | None:
    """Compare values and gradients in the comfortable range, in training and in evaluation mode."""
    for training in (True, False):
        generator = torch.Generator().manual_seed(7)
        made, x, _ = probe.make(generator)
        for module in made.modules():
            module.training = training
        x.requires_grad_()
        arguments = [x, *(p for p in made.parameters() if p.requires_grad)]
        results, left = [], []
        state = [buffer.clone() for buffer in made.buffers()]
        for call in (probe.own, probe.ours):  # each gets a copy of x: an activation may work in place
            torch.default_generator.manual_seed(7)  # torch.manual_seed also sets those of GPUs
            for buffer, value in zip(made.buffers(), state, strict=True):  # such as an activation's averages
                buffer.data.copy_(value)
            results.append(call(made, x.clone()))
            left.append([buffer.clone() for buffer in made.buffers()])
        if not same(results[1], results[0]):
            return f"its forward computes something else than {probe.peer}'s (compared on a probe)"
        if not all(map(_left_alike, left[1], left[0])):
            return f"its forward leaves other buffers than {probe.peer}'s (compared on a probe)"
        g = random(tuple(results[0].shape), generator)
        gradients = [torch.autograd.grad(y, arguments, g, allow_unused=True) for y in results]
        if not all(map(same, gradients[1], gradients[0])):
            return f"its gradients are others than {probe.peer}'s (compared on a probe)"
    return None


def _left_alike(got: Tensor, want: Tensor) -> bool:
    """Return whether two calls left the same numbers in a buffer, averages up to rounding."""
    if _equal(got, want):
        return True
    return got.is_floating_point() and bool(want.isfinite().all()) and same(got, want)


@torch.no_grad()
def _differs_beyond(probe: Probe) -> str | None:
    """Compare values at huge, tiny, infinite x and NaN, on knots, for any batch size, and in float32."""
    generator = torch.Generator().manual_seed(13)
    made, x, places = probe.make(generator)
    made.eval()
    many = torch.cat([x] * (5000 // len(x) + 1))[:5000] * (1 + 0.01 * random((5000, 1), generator))
    inputs = {
        "on knots": places,
        "far outside": _far(x, probe.far, generator),
        "where x is NaN": _with(x, (math.nan,)),
        "where x is infinite": _with(x, (math.inf, -math.inf)),
        "for one row": x[:1],
        "for 5000 rows": many,
    }
    if not _gradients_agree(probe, made, places):
        return f"its gradients are others than {probe.peer}'s on knots (compared on a probe)"
    for where, rows in inputs.items():
        if not _agree(probe, made, rows, _TOLERANCE, probe.limits and where == "where x is infinite"):
            return f"its forward computes something else than {probe.peer}'s {where} (compared on a probe)"
    try:
        none = probe.own(made, x[:0])
    except Exception:  # many a peer cannot: the kernels can
        none = None
    if none is not None and probe.ours(made, x[:0]).shape != none.shape:
        return f"its forward computes something else than {probe.peer}'s for no rows"
    made.float()
    if not _agree(probe, made, x.float(), _SINGLE):
        return f"its forward computes something else than {probe.peer}'s in float32 (compared on a probe)"
    with torch.autocast("cpu", torch.bfloat16):
        if not _same_kind(probe, made, x.float()):
            return f"its forward returns another dtype than {probe.peer}'s under autocast"
    for dtype in (torch.bfloat16, torch.float16):
        if not _same_kind(probe, made.to(dtype), x.to(dtype)):
            return f"its forward returns another dtype than {probe.peer}'s in {dtype}"
    return None


def _same_kind(probe: Probe, made: Any, x: Tensor) -> bool:
    """Return whether the results are of one dtype and shape: 16 bits are rounded in many ways."""
    try:
        own = probe.own(made, x)
    except Exception:  # in 16 bits many a peer's code raises where the kernels can
        return True
    ours = probe.ours(made, x)
    return own.dtype == ours.dtype and own.shape == ours.shape


def _gradients_agree(probe: Probe, made: Any, places: Tensor) -> bool:
    """Return whether the gradients are the same where the formula changes."""
    with torch.enable_grad():
        gradients = []
        for call in (probe.own, probe.ours):
            x = places.clone().requires_grad_()
            y = call(made, x.clone())  # an activation may work in place
            gradients.append(torch.autograd.grad(y.sum(), x, allow_unused=True)[0])
    return same(gradients[1], gradients[0])


def _dims(probe: Probe) -> frozenset[int] | None:
    """Return the numbers of dimensions, of 1 to 6, for which both agree; None where they do for all."""
    generator = torch.Generator().manual_seed(17)
    made, x, _ = probe.make(generator)
    made.eval()
    good = set()
    shapes = (), (6,), (2, 3), (3, 1, 2), (2, 1, 3, 1), (1, 2, 1, 1, 2)
    for dims, shape in enumerate(shapes, 1):
        if _agree_or_not(probe, made, x[: math.prod(shape)].reshape(*shape, x.shape[1])):
            good.add(dims)
    others = all(_agree_or_not(probe, made, random(shape, generator)) for shape in probe.shapes)
    return None if others and len(good) == len(shapes) else frozenset(good)


@torch.no_grad()
def _agree_or_not(probe: Probe, made: Any, x: Tensor) -> bool:
    try:
        return _agree(probe, made, x, _TOLERANCE)
    except Exception:  # its own code cannot, and will say so
        return False


def _agree(probe: Probe, made: Any, x: Tensor, tolerance: float, limits: bool = False) -> bool:
    """Return whether both give the same rows and leave x and the layer alike."""
    state = [t.clone() for t in (*made.parameters(), *made.buffers())]
    xs, results = [x.clone(), x.clone()], []
    for call, own_x in zip((probe.own, probe.ours), xs, strict=True):
        results.append(call(made, own_x))
    want, got = results
    unchanged = all(map(_equal, state, (*made.parameters(), *made.buffers())))
    return unchanged and _equal(*xs) and same_rows(got, want, tolerance, limits)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())


def same_rows(got: Tensor, want: Tensor, tolerance: float = _TOLERANCE, limits: bool = False) -> bool:
    """Compare to a tolerance of each row's largest finite entry; where limits is NaN, anything will do."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    scale = want.abs().nan_to_num(0.0, 0.0, 0.0).amax(-1, keepdim=True).clamp_min(1.0)
    same = (got == want) | ((got - want).abs() <= tolerance * scale) | (want.isnan() & (got.isnan() | limits))
    return bool(same.all())


def _far(x: Tensor, far: float, generator: torch.Generator) -> Tensor:
    """Return rows of x with one feature, or all, replaced by numbers of any magnitude up to `far`."""
    rows, features = x.shape
    exponent = torch.rand(x.shape, generator=generator, dtype=torch.float64) * (math.log10(far) + 30) - 30
    numbers = 10.0**exponent * torch.where(x < x.mean(), -1.0, 1.0)
    numbers[:6] = torch.tensor([far, -far, 0.0, -0.0, 1e-300, 5e-324], dtype=torch.float64)[:, None]
    one = torch.arange(features) == (torch.arange(rows) % (features + 1))[:, None]
    every = (torch.arange(rows) % (features + 1) == features)[:, None]
    return torch.where(one | every, numbers, x)


def _with(x: Tensor, values: tuple[float, ...]) -> Tensor:
    """Return rows of x with one of these values in one feature, the others as they were."""
    made = []
    for value in values:
        for feature in range(x.shape[1]):
            rows = x[feature : feature + 3].clone()
            rows[:, feature] = value
            made.append(rows)
    return torch.cat(made)


_answers: dict[Any, tuple[str | None, frozenset[int] | None]] = {}
_MOST_ANSWERS = 4096


def stored(
    key: Any, work: Callable[[], tuple[str | None, frozenset[int] | None]]
) -> tuple[str | None, frozenset[int] | None]:
    """Return the answer of a probe of the same code with the same options, which needs no second run."""
    if key not in _answers:
        if len(_answers) >= _MOST_ANSWERS:
            _answers.pop(next(iter(_answers)))  # the oldest
        _answers[key] = work()
    return _answers[key]
