"""Which backend runs a case, and why.

The order of precedence: an explicit `backend=`, then the innermost `use_backend`, then the first backend that
can run the case; where two fused backends can, on a GPU, the one to which the cost model gives fewer cycles.
A backend that was asked for and cannot run raises its reason: nothing falls back silently.
"""

import contextlib
import contextvars
import itertools
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any

import torch

from .._core import checks, library
from .._core.problem import COMPOSED, FAMILIES, OPS, Problem, bases_of
from .._core.tracing import within_trace
from ..backends import BACKENDS
from . import cost_model

_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("kan_kernels_backend", default=None)
_warned: set[str] = set()


class _Mirror(threading.local):
    """A mirror of `_forced` for torch.compile, which guards what a thread has, but no context variables."""

    def __init__(self) -> None:  # runs in each thread; a class attribute would escape the guards
        self.name: str | None = None


_mirror = _Mirror()


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
    """Apply torch.compiler.assume_constant_result, which would import the whole compiler to set this mark."""
    function._dynamo_marked_constant = True
    return function


def forced_backend() -> str | None:
    """Return the name given to the innermost `use_backend` of this thread or task, or None."""
    if torch.compiler.is_compiling():
        name = _mirror.name
        return _forced_while_exporting() if name is None else name
    name = _forced.get()
    if name is None and within_trace():  # the exporter of TorchScript's graphs
        return _forced_while_exporting()
    return name


def _forced_while_exporting() -> str | None:
    """Return the backend of plain operators, which are all that ONNX has."""
    return "reference" if exporting_to_onnx() else None


@_constant_while_compiling  # it imports, which is not traced
def exporting_to_onnx() -> bool:
    """Return whether either exporter of torch.onnx runs the model."""
    return "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every KAN layer inside on one backend.

    Holds for the current thread or asyncio task. A layer or call with its own `backend=` keeps it.
    Enter it outside of functions under torch.compile: they are compiled again when it changes. They ask the
    thread, so that an asyncio task that calls one must not await between entering and the call, nor have
    another thread call it.

    Args:
        name: "native", "triton" or "reference"; None restores the automatic choice.

    Raises:
        ValueError: no backend has this name.

    Example:
        >>> with use_backend("reference"):
        ...     print(explain((2, 3)))
        2 -> 3 on cpu, torch.float32: reference: ...
    """
    check_name("use_backend", name)
    token = _forced.set(name)
    _mirror.name = name
    try:
        yield
    finally:
        _forced.reset(token)
        _mirror.name = _forced.get()


def check_name(argument: str, name: str | None) -> None:
    """Raise ValueError unless `name` is None or the name of a backend."""
    if name is not None and name not in BACKENDS:
        raise ValueError(
            f"{argument}: unknown backend {name!r}, expected one of {', '.join(map(repr, BACKENDS))} or None"
        )


def choose(problem: Problem, backend: str | None = None) -> Choice:
    """Return the backend for a problem.

    Raises:
        RuntimeError: a backend was asked for, by name or by `use_backend`, that cannot run layers like this.
    """
    asked_by = "backend="
    if backend is None:
        backend = forced_backend()
        asked_by = "torch.onnx" if _forced.get() is None else "use_backend"
    if backend is not None:
        module = BACKENDS[backend]
        if not module.DIFFERENTIABLE and exporting_to_onnx():
            raise RuntimeError(
                f"backend {backend!r}, asked for by {asked_by} for {problem.op} of {problem.in_features} -> "
                f"{problem.out_features}: ONNX has no operator for its kernels; export with backend=None, "
                "which takes plain operators"
            )
        reason = module.can_run(problem)
        if reason is None:
            return Choice(module, f"asked for by {asked_by}", {})
        layers = module.can_run(replace(problem, op="kan_linear"))
        if problem.op == "kan_linear" or layers is not None:
            raise RuntimeError(
                f"backend {backend!r}, asked for by {asked_by}, cannot run this case: {layers or reason}"
            )
        if problem.op in COMPOSED:
            return Choice(module, f"asked for by {asked_by}, {COMPOSED[problem.op]}: {reason}", {})
        return Choice(BACKENDS["reference"], "plain torch", {backend: reason})
    passed_over: dict[str, str] = {}
    able: list[ModuleType] = []
    for name, module in BACKENDS.items():
        reason = module.can_run(problem)
        if reason is None:
            able.append(module)
        elif not able:
            passed_over[name] = reason
    if not able and problem.op in COMPOSED:
        layer = choose(replace(problem, op="kan_linear"))
        why = f"{layer.why}; {COMPOSED[problem.op]}: {passed_over[layer.backend.NAME]}"
        return Choice(layer.backend, why, layer.passed_over)
    if not able:
        raise RuntimeError(f"no backend can run {problem}: {passed_over}")
    first, why = able[0], able[0].why(problem)
    fused = [module for module in able if not module.DIFFERENTIABLE]
    if problem.device == "cuda" and problem.op == "kan_linear" and fused:
        return _cheapest(problem, fused, passed_over)
    return Choice(first, f"automatic choice: {why}", passed_over)


def _cheapest(problem: Problem, fused: list[ModuleType], passed_over: dict[str, str]) -> Choice:
    """Return that fused backend on a GPU to which the cost model gives the least time for this call.

    Those that it does not know stay behind those that it does.
    """
    costs = _gpu_costs(problem) if len(fused) > 1 else {}
    known = [module for module in fused if module.NAME in costs]
    first = min(known, key=lambda module: costs[module.NAME].microseconds) if known else fused[0]
    why = first.why(problem)
    if first.NAME == "native" and "cuda" in library.DEVICES:
        major = torch.cuda.get_device_capability(problem.index)[0]
        why = f"{why}; {cost_model.native_path(problem, major, problem.rows or cost_model.ROWS)}"
    if first.NAME in costs:
        why = f"the cost model gives it {costs[first.NAME]}; {why}"
    for module in fused:
        if module is not first:
            said = f"gives it {costs[module.NAME]}" if module.NAME in costs else "does not know it"
            passed_over = passed_over | {module.NAME: f"the cost model {said}"}
    return Choice(first, f"automatic choice: {why}", passed_over)


def _gpu_costs(problem: Problem) -> dict[str, cost_model.Cost]:
    capability = torch.cuda.get_device_capability(problem.index) if torch.version.hip is None else (9, 0)
    device = cost_model.device_of(problem.index, capability)
    return cost_model.gpu_costs(problem, device, torch.backends.cuda.matmul.fp32_precision == "tf32")


def run_on(problem: Problem, backend: str | None = None) -> tuple[ModuleType, bool]:
    """Return the backend of `choose`, and whether it composes the op of layers.

    It says so, once, when the automatic choice had to settle for the slow one.
    """
    if torch.compiler.is_compiling():
        facts = (_constant(getattr(problem, field)) for field in _FACTS)
        name, composed = _settled_while_compiling(*facts, backend, forced_backend())
        return BACKENDS[name], composed
    return _settle(problem, backend)


def _constant(value: Any) -> Any:
    """Return the number that a size is now, which becomes a guard of the graph where it was a symbol."""
    return len(range(value)) if isinstance(value, int) else value


_FACTS = tuple(field.name for field in fields(Problem))


@_constant_while_compiling
def _settled_while_compiling(*facts_backend_and_forced) -> tuple[str, bool]:
    """Return the choice, which asks driver, settings and library: nothing that could be traced."""
    *facts, backend, _ = facts_backend_and_forced
    module, composed = _settle(Problem(*facts), backend)
    return module.NAME, composed


def _settle(problem: Problem, backend: str | None) -> tuple[ModuleType, bool]:
    choice = choose(problem, backend)
    composed = problem.op in COMPOSED and choice.backend.can_run(problem) is not None
    slow = choice.passed_over and choice.backend.DIFFERENTIABLE and problem.op in (*FAMILIES, *COMPOSED)
    if slow and problem.device != "meta":
        said = str(choice)
        if said not in _warned:
            _warned.add(said)
            warnings.warn(f"kan_kernels runs without its fast kernels. {said}", RuntimeWarning, stacklevel=3)
    return choice.backend, composed


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
            module.can_run(Problem(d.type, torch.float32, torch.float32, 8, 8, 8, 3, index=d.index))
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
    op: str = "kan_linear",
    rows: int = 0,
    training: bool = True,
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
        basis: "bspline", or one of `functional.basis_linear`.
        functions: R, of a basis of full support. `grid_size` and `spline_order` are for B-splines.
        op: "kan_linear", "kan_activation", "kan_network", "kan_conv", "edge_gram", "edge_l1" or
            "layer_norm_rbf".
        rows: of a call, for the choice between GPU backends; 0 takes 4096.
        training: whether the call is a training step, for the same choice; of a module, whether it has
            parameters that need a gradient.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> print(explain((2, 3), backend="reference"))
        2 -> 3 on cpu, torch.float32: reference: ...
    """
    if isinstance(model_or_widths, torch.nn.Module):
        return _explain_tree(model_or_widths, derivative, x_dtype, checks.integer("rows", rows, 0))
    if isinstance(model_or_widths, type) or not hasattr(model_or_widths, "__len__"):
        raise TypeError(
            f"model_or_widths: got {type(model_or_widths).__name__}, expected a torch.nn.Module, or the "
            "widths of a KAN"
        )
    widths = checks.widths(model_or_widths, "model_or_widths")
    checks.base(base)
    check_name("backend", backend)
    if op not in OPS:
        raise ValueError(f"op: got {op!r}, expected one of {', '.join(map(repr, OPS))}")
    record = checks.basis(basis, bases_of(op), "" if op in FAMILIES else f" for the op {op!r}")
    if record.local:
        spline_order = checks.spline_order(spline_order)
        functions = checks.integer("grid_size", grid_size, 1) + spline_order
    else:
        expected = record.why_not(checks.integer("functions", functions, 1))
        if expected is not None:
            raise ValueError(f"functions: got {functions}, expected {expected}")
        spline_order = 0
    of = "" if record.local else f", {functions} functions of {basis!r}"
    of += "" if op == "kan_linear" else f", {op}"
    lines = []
    derivative, place = checks.derivative(derivative), torch.device(device)
    rows = checks.integer("rows", rows, 0)
    work = (rows, bool(training)) if place.type == "cuda" else (0, False)  # as a call asks
    facts = (functions, spline_order, base, derivative, basis, place.index, op, *work)
    for fan_in, fan_out in itertools.pairwise(widths):
        problem = Problem(place.type, dtype, x_dtype or dtype, fan_in, fan_out, *facts)
        said = _chosen(problem, backend)
        lines.append(f"{fan_in} -> {fan_out} on {place.type}, {dtype}{of}: {said}")
    return "\n".join(lines)


def _explain_tree(model: torch.nn.Module, derivative: int, x_dtype: torch.dtype | None, rows: int) -> str:
    """Return what the layers say whose class has `_dispatch_options`: the text, or arguments of `explain`."""
    lines = []
    training = torch.is_grad_enabled() and any(p.requires_grad for p in model.parameters())
    facts: dict[str, Any] = {"derivative": derivative, "x_dtype": x_dtype, "rows": rows, "training": training}
    for name, module in model.named_modules():
        describe = getattr(type(module), "_dispatch_options", None)
        if describe is None:
            continue
        said = describe(module)
        if not isinstance(said, str):
            what = said.pop("what", None)
            said = explain(said.pop("widths"), **said, **facts)
            said = said if what is None else said.replace(said.partition(" on ")[0], what, 1)
        lines.append(f"{name or '(the model)'} ({type(module).__qualname__}): {said}")
    return "\n".join(lines) or "nothing in this model is accelerated"


def _chosen(problem: Problem, backend: str | None) -> str:
    """Return the choice in words."""
    try:
        return str(choose(problem, backend))
    except RuntimeError as error:
        return f"cannot run: {error}"
