"""Which backend runs a case, and why.

The order of precedence: an explicit `backend=`, then the innermost `use_backend`, then the first backend that
can run the case; where two fused backends can, on a GPU, the one to which the cost model gives fewer cycles.
A backend that was asked for and cannot run raises its reason: nothing falls back silently.
"""

import contextlib
import contextvars
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import torch
from torch.autograd import forward_ad

from .._core import checks
from .._core.bases import basis_order, most_rows
from ..backends import BACKENDS
from . import cost_model

_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("kan_kernels_backend", default=None)
_last_forced: str | None = None  # its mirror for torch.compile, which guards globals but no context variables
_warned: set[str] = set()


@dataclass(frozen=True)
class Case:
    """What a backend needs to know to say whether it can run. The batch size is left out on purpose."""

    device: str
    dtype: torch.dtype
    x_dtype: torch.dtype
    in_features: int
    out_features: int
    grid_size: int
    spline_order: int
    base: str | None = "silu"
    derivative: int = 0
    # Gaussians: order 0, grid_size centres; Chebyshev: order = degree, grid_size 1; Fourier: both frequencies
    basis: str = "bspline"
    index: int | None = None  # of the device; None for the current one


@dataclass(frozen=True)
class Choice:
    """A backend with the reason it was chosen and, by name, why those before it were not."""

    backend: ModuleType
    why: str
    passed_over: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.backend.NAME}: {self.why}"]
        lines += [f"  not {name}: {reason}" for name, reason in self.passed_over.items()]
        return "\n".join(lines)


def _constant_while_compiling(function):
    """torch.compiler.assume_constant_result, which would import the whole compiler only to set this mark."""
    function._dynamo_marked_constant = True
    return function


def forced_backend() -> str | None:
    """The name given to the innermost `use_backend` of this thread or task, or None."""
    if torch.compiler.is_compiling():
        return _forced_while_compiling(_last_forced)
    return _forced.get()


@_constant_while_compiling
def _forced_while_compiling(guard: str | None) -> str | None:
    return _forced.get()


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every KAN layer inside on one backend.

    Holds for the current thread or asyncio task. A layer or call with its own `backend=` keeps it.
    Enter it outside of functions under torch.compile: they are compiled again when it changes.

    Args:
        name: "native", "triton" or "reference"; None restores the automatic choice.

    Raises:
        ValueError: no backend has this name.

    Example:
        >>> with use_backend("reference"):
        ...     print(explain((2, 3)))
        2 -> 3 on cpu, torch.float32: reference: ...
    """
    global _last_forced
    check_name("use_backend", name)
    token, outer = _forced.set(name), _last_forced
    _last_forced = name
    try:
        yield
    finally:
        _forced.reset(token)
        _last_forced = outer


def check_name(argument: str, name: str | None) -> None:
    """Raise ValueError unless `name` is None or the name of a backend."""
    if name is not None and name not in BACKENDS:
        raise ValueError(
            f"{argument}: unknown backend {name!r}, expected one of {', '.join(map(repr, BACKENDS))} or None"
        )


def choose(case: Case, backend: str | None = None) -> Choice:
    """The backend for a case.

    Raises:
        RuntimeError: a backend was asked for, by name or by `use_backend`, that cannot run the case.
    """
    asked_by = "backend="
    if backend is None:
        backend, asked_by = forced_backend(), "use_backend"
    if backend is not None:
        reason = BACKENDS[backend].can_run(case)
        if reason is not None:
            raise RuntimeError(
                f"backend {backend!r}, asked for by {asked_by}, cannot run this case: {reason}"
            )
        return Choice(BACKENDS[backend], f"asked for by {asked_by}", {})
    passed_over: dict[str, str] = {}
    able: list[ModuleType] = []
    for name, module in BACKENDS.items():
        reason = module.can_run(case)
        if reason is None:
            able.append(module)
        elif not able:
            passed_over[name] = reason
    if not able:
        raise RuntimeError(f"no backend can run {case}: {passed_over}")
    first, why = able[0], able[0].why(case)
    fused = [module for module in able if not module.DIFFERENTIABLE]
    if case.device == "cuda" and len(fused) > 1:
        costs = _gpu_costs(case)
        first = min(fused, key=lambda module: costs[module.NAME].cycles)
        why = f"the cost model gives it {costs[first.NAME]}; {first.why(case)}"
        passed_over |= {m.NAME: f"the cost model gives it {costs[m.NAME]}" for m in fused if m is not first}
    return Choice(first, f"automatic choice: {why}", passed_over)


def _gpu_costs(case: Case) -> dict[str, cost_model.Cost]:
    major = torch.cuda.get_device_capability(case.index)[0] if torch.version.hip is None else 9
    return cost_model.gpu_costs(case, major, torch.backends.cuda.matmul.fp32_precision == "tf32")


def run_on(case: Case, backend: str | None = None) -> ModuleType:
    """The backend of `choose`; says so, once, when the automatic choice had to settle for the slow one."""
    if torch.compiler.is_compiling():
        facts = (_constant(getattr(case, field)) for field in _FACTS)
        return BACKENDS[_name_while_compiling(*facts, backend, forced_backend())]
    return _settle(case, backend)


def _constant(value: Any) -> Any:
    """The number that a size is now, which becomes a guard of the graph where it was a symbol."""
    return len(range(value)) if isinstance(value, int) else value


def composed_because(backend: str, device: str) -> str | None:
    """Why a convolution on this backend is composed of `kan_linear`, or None where one kernel does it all."""
    if backend != "native":
        return f"the backend {backend!r} has no kernel of convolution"
    if device != "cpu":
        return f"the library has no kernel of convolution for {device}"
    if torch.compiler.is_compiling():
        return None
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func is active"
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives are asked for"
    return None


_FACTS = tuple(field.name for field in fields(Case))


@_constant_while_compiling
def _name_while_compiling(*facts_backend_and_forced) -> str:
    """The choice asks the driver, torch's settings and the library: nothing that could be traced."""
    *facts, backend, _ = facts_backend_and_forced
    return _settle(Case(*facts), backend).NAME


def _settle(case: Case, backend: str | None) -> ModuleType:
    choice = choose(case, backend)
    if choice.passed_over and choice.backend.DIFFERENTIABLE and case.device != "meta":
        said = str(choice)
        if said not in _warned:
            _warned.add(said)
            warnings.warn(f"kan_kernels runs without its fast kernels. {said}", RuntimeWarning, stacklevel=3)
    return choice.backend


def available_backends(device: str | torch.device | None = None) -> dict[str, str | None]:
    """Return each backend's name with None, or the reason why it cannot run float32 layers here.

    Args:
        device: the reasons on this one, "cuda:1", say; None asks for any device of this machine.

    Example:
        >>> available_backends("cpu")["reference"] is None
        True
    """
    names = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    devices = [torch.device(name) for name in (names if device is None else [device])]
    available: dict[str, str | None] = {}
    for name, module in BACKENDS.items():
        reasons = [
            module.can_run(Case(d.type, torch.float32, torch.float32, 8, 8, 5, 3, index=d.index))
            for d in devices
        ]
        available[name] = None if None in reasons else reasons[0]
    return available


def explain(
    model_or_widths,
    *,
    grid_size: int = 5,
    spline_order: int = 3,
    base: str | None = "silu",
    derivative: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    x_dtype: torch.dtype | None = None,
    backend: str | None = None,
    basis: str = "bspline",
    functions: int = 8,
) -> str:
    """Return the backend that would run each layer, and why; one paragraph a layer, by its name in the tree.

    What only a call's input decides (another dtype, another device) is not seen for the layers of other
    codebases.

    Args:
        model_or_widths: a module, whose layers of this package, of its integrations and of `accelerate`
            are found wherever they are; or the widths of a KAN, such as (64, 64).
        grid_size, spline_order, base, derivative, device, dtype, backend: of the layers, for widths; a module
            answers for itself.
        x_dtype: of the input; None means `dtype`.
        basis: "bspline", or that of `functional.basis_linear`: "rbf", "chebyshev" or "fourier".
        functions: R, of these three: the number of centres, the degree + 1, or twice the number of
            frequencies. `grid_size` and `spline_order` are for B-splines.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> print(explain((2, 3), backend="reference"))
        2 -> 3 on cpu, torch.float32: reference: ...
    """
    if isinstance(model_or_widths, torch.nn.Module):
        return _explain_tree(model_or_widths, derivative, x_dtype)
    if isinstance(model_or_widths, type) or not hasattr(model_or_widths, "__len__"):
        raise TypeError(
            f"model_or_widths: got {type(model_or_widths).__name__}, expected a torch.nn.Module, or the "
            "widths of a KAN"
        )
    widths = checks.widths(model_or_widths, "model_or_widths")
    checks.base(base)
    checks.basis(basis)
    check_name("backend", backend)
    if basis == "bspline":
        grid_size = checks.integer("grid_size", grid_size, 1)
        spline_order = checks.spline_order(spline_order)
    else:
        functions = checks.integer("functions", functions, 1, most_rows(basis))
        if basis == "fourier" and functions % 2:
            raise ValueError(f"functions: got {functions}, expected an even number: cosines, then sines")
        spline_order = basis_order(basis, functions)
        grid_size = functions - spline_order
    of = "" if basis == "bspline" else f", {functions} functions of {basis!r}"
    lines = []
    derivative, place = checks.derivative(derivative), torch.device(device)
    spline = (grid_size, spline_order, base, derivative, basis)
    for fan_in, fan_out in itertools.pairwise(widths):
        case = Case(place.type, dtype, x_dtype or dtype, fan_in, fan_out, *spline, place.index)
        lines.append(f"{fan_in} -> {fan_out} on {case.device}, {dtype}{of}: {_chosen(case, backend)[0]}")
    return "\n".join(lines)


def _explain_tree(model: torch.nn.Module, derivative: int, x_dtype: torch.dtype | None) -> str:
    """What every layer says whose class has `_dispatch_options`: the text itself, or arguments of `explain`.

    "convolution" among these is its name; the others are of the product that all its taps share.
    """
    lines = []
    for name, module in model.named_modules():
        describe = getattr(type(module), "_dispatch_options", None)
        if describe is None:
            continue
        said = describe(module)
        if not isinstance(said, str):
            if "convolution" in said:
                said = _explain_convolution(**said, x_dtype=x_dtype)
            else:
                said = explain(said.pop("widths"), **said, derivative=derivative, x_dtype=x_dtype)
        lines.append(f"{name or '(the model)'} ({type(module).__qualname__}): {said}")
    return "\n".join(lines) or "nothing in this model is accelerated"


def _chosen(case: Case, backend: str | None) -> tuple[str, str | None]:
    """The choice in words, and the name of the backend, or None where the one asked for cannot run."""
    try:
        choice = choose(case, backend)
    except RuntimeError as error:
        return f"cannot run: {error}", None
    return str(choice), choice.backend.NAME


def _explain_convolution(
    convolution: str, widths: tuple[int, int], device: torch.device, dtype: torch.dtype, backend: str | None,
    x_dtype: torch.dtype | None, **spline: Any,
) -> str:  # fmt: skip
    """The product over the taps that a position takes part in, and whether it is a kernel of its own."""
    case = Case(device.type, dtype, x_dtype or dtype, *widths, **spline, index=device.index)
    said, name = _chosen(case, backend)
    text = f"{convolution} on {case.device}, {dtype}: {said}"
    if name is None:
        return text
    reason = composed_because(name, case.device)
    how = "one kernel for the whole convolution" if reason is None else f"composed of kan_linear: {reason}"
    return f"{text}\n  {how}"
