"""The functions that an edge can become: the set of the paper and of pykan, and what users register.

An edge's formula is c f(a x + b) + d. Each f is known by its name, to torch and to sympy, with what the fit
needs to know about it. Formulas are built from these objects; no text is ever evaluated.
"""

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Affine = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Function:
    """A univariate function f, for c f(a x + b) + d.

    Attributes:
        name: what it is called, such as "sin" or "x^2".
        torch: elementwise on a tensor of any shape, differentiable by autograd.
        sympy: of one sympy expression; called only when a formula is asked for.
        complexity: what the automatic choice weighs against the quality of the fit.
        domain: an interval where f is finite and smooth. Fits keep all data inside: 1/x is fitted on one side
            of its pole, tan on one of its branches. The ends belong to it where f is finite there.
        parity: 1 if f is even, -1 if it is odd, else 0.
        degree: p if f(s z) = s^p f(z) for s > 0, else None; the scale of a z + b is then free.
        period, period_sign: f(z + period) = period_sign f(z), else None.
        step: whether f only jumps at 0; such a fit has no slope to follow.
        absorb: (a, b, c, d) -> the same edge in its plainest form, where that is not one of the above.

    Example:
        >>> get("cos").torch(torch.zeros(1)), get("cos").period_sign
        (tensor([1.]), -1)
    """

    name: str
    torch: Callable[[Tensor], Tensor]
    sympy: Callable[[Any], Any]
    complexity: float
    domain: tuple[float, float] = (-math.inf, math.inf)
    parity: int = 0
    degree: float | None = None
    period: float | None = None
    period_sign: int = 1
    step: bool = False
    absorb: Callable[[Tensor, Tensor, Tensor, Tensor], Affine] | None = None

    def __reduce__(self):
        return get, (self.name,)  # by name: the callables need not pickle

    def canonical(self, affine: Tensor) -> Tensor:
        """Return the plainest (a, b, c, d), (..., 4), that describe the same function of x."""
        a, b, c, d = affine.unbind(-1)
        if self.absorb is not None:
            a, b, c, d = self.absorb(a, b, c, d)
        elif self.degree is not None:
            size = a.abs()
            a, b, c = a.sign(), b / size, c * size**self.degree
        if self.parity:
            negative = a < 0
            a, b = torch.where(negative, -a, a), torch.where(negative, -b, b)
            c = torch.where(negative, self.parity * c, c)
        if self.period is not None:
            turns = torch.round(b / self.period)
            b = b - turns * self.period
            c = torch.where(turns % 2 != 0, self.period_sign * c, c)
        plain = torch.stack((a, b, c, d), -1)
        return torch.where(plain.isfinite().all(-1, keepdim=True), plain, affine)


_library: dict[str, Function] = {}
_ALIASES = {"x^0.5": "sqrt", "1/x^0.5": "1/sqrt", "1/sqrt(x)": "1/sqrt", "sign": "sgn"}


def names() -> list[str]:
    """Return the names of all functions, in the order in which they were registered.

    Example:
        >>> names()[:3]
        ['0', 'x', 'x^2']
    """
    return list(_library)


def get(name: str) -> Function:
    """Return the function of this name.

    Args:
        name: one of `names()`, or pykan's name of it.

    Raises:
        TypeError: `name` is no str.
        ValueError: there is no such function; close matches are named.

    Example:
        >>> get("sin").complexity
        2.5
    """
    return _known(name, "name")


def _known(name: object, argument: str) -> Function:
    if not isinstance(name, str):
        raise TypeError(f"{argument}: got {name!r}, expected the name of a function, such as 'sin'")
    function = _library.get(_ALIASES.get(name, name))
    if function is None:
        close = difflib.get_close_matches(name, _library, 5, 0.4)
        known = f"did you mean {' or '.join(map(repr, close))}?" if close else f"expected one of {names()}"
        raise ValueError(
            f"{argument}: unknown function {name!r}; {known} (kan_kernels.symbolic.register adds one)"
        )
    return function


def resolve(library: Iterable[str] | None, argument: str = "library") -> list[Function]:
    """Return the functions of these names without repetition, None for all.

    Raises:
        TypeError, ValueError: no names, or unknown ones, naming the argument.
    """
    if library is None:
        return list(_library.values())
    if isinstance(library, str):
        raise TypeError(f"{argument}: got {library!r}, expected a sequence of names, such as ['x', 'sin']")
    functions = list(dict.fromkeys(_known(name, argument) for name in library))
    if not functions:
        raise ValueError(f"{argument}: is empty, expected at least one name of a function")
    return functions


def register(
    name: str,
    torch_fn: Callable[[Tensor], Tensor],
    sympy_fn: Callable[[Any], Any],
    complexity: float = 3,
    domain: tuple[float, float] = (-math.inf, math.inf),
    *,
    parity: int = 0,
) -> Function:
    """Add a function to the library, for the whole process, and return it.

    Args:
        name: a new one.
        torch_fn: elementwise, Tensor -> Tensor, differentiable by autograd.
        sympy_fn: sympy expression -> sympy expression; import sympy inside it, not at its module's top.
        complexity: against the quality of the fit; 1 for x, 2 for sin, 4 for arcsin.
        domain: (low, high), where torch_fn is finite; infinite bounds are allowed.
        parity: 1 if it is even, -1 if it is odd: formulas then come out with a > 0.

    Raises:
        TypeError, ValueError: naming the argument; torch_fn is tried on its domain.

    Example:
        >>> register("square", lambda z: z * z, lambda z: z * z, complexity=2, parity=1).name
        'square'
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"name: got {name!r}, expected a non-empty str")
    if name in _library or name in _ALIASES:
        raise ValueError(f"name: {name!r} is taken")
    for argument, value in (("torch_fn", torch_fn), ("sympy_fn", sympy_fn)):
        if not callable(value):
            raise TypeError(f"{argument}: got {value!r}, expected a callable")
    if isinstance(complexity, bool) or not isinstance(complexity, (int, float)) or not complexity >= 0:
        raise ValueError(f"complexity: got {complexity!r}, expected a number >= 0")
    if parity not in (-1, 0, 1):
        raise ValueError(f"parity: got {parity!r}, expected 1 (even), -1 (odd) or 0")
    try:
        low, high = (float(bound) for bound in domain)
    except (TypeError, ValueError):
        raise TypeError(f"domain: got {domain!r}, expected a pair of numbers (low, high)") from None
    if not low < high:
        raise ValueError(f"domain: got {domain!r}, expected low < high")
    function = Function(name, torch_fn, sympy_fn, complexity, (low, high), parity)
    _try(function)
    _library[name] = function
    return function


def _try(function: Function) -> None:
    """Evaluate once inside the domain: the same shape, finite, with a gradient."""
    low, high = max(function.domain[0], -1e6), min(function.domain[1], 1e6)
    middle = min(max(0.0, low + min(0.5, (high - low) / 2)), high - min(0.5, (high - low) / 2))
    z = torch.full((2, 3), middle, dtype=torch.float64, requires_grad=True)
    value = function.torch(z)
    if not isinstance(value, Tensor) or value.shape != z.shape or value.dtype != z.dtype:
        raise TypeError("torch_fn: expected a tensor like its argument, of the same shape and dtype")
    if not value.requires_grad:
        raise ValueError("torch_fn: its result does not depend on its argument differentiably")
    if not value.isfinite().all():
        raise ValueError(f"torch_fn: is not finite at {middle}, inside of domain {function.domain}")


def _sympy(name: str) -> Callable[[Any], Any]:
    def apply(z):
        import sympy

        return getattr(sympy, name)(z)

    return apply


def _gaussian(z):
    import sympy

    return sympy.exp(-(z**2))


def _sigmoid(z):
    import sympy

    return 1 / (1 + sympy.exp(-z))


def _keep_nan(value: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap a function that would turn NaN into a number."""
    return lambda z: torch.where(z.isnan(), z, value(z))


def _linear(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Affine:
    return torch.ones_like(a), torch.zeros_like(b), c * a, d + c * b


def _exponential(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Affine:
    moderate = b.abs() < 30  # beyond that c would leave the range of float32
    return a, torch.where(moderate, 0.0, b), torch.where(moderate, c * b.exp(), c), d


def _logarithm(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Affine:
    size = a.abs()
    return a.sign(), b / size, c, d + c * size.log()


def _constant(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Affine:
    return torch.ones_like(a), torch.zeros_like(b), torch.ones_like(c), d


def _power(n: int) -> Callable[[Any], Any]:
    return lambda z: z**n


def _fill() -> None:
    inf, pi = math.inf, math.pi
    positive = (0.0, inf)
    # complexities are pykan's, and half a point more where a and b both matter: c cos(a x) + d with a small a
    # is as good as a parabola, and always a little better
    built_in = [
        Function("0", _keep_nan(lambda z: 0 * z), lambda z: 0 * z, 0, degree=0, absorb=_constant),
        Function("x", lambda z: z, lambda z: z, 1, parity=-1, degree=1, absorb=_linear),
        *(
            Function(f"x^{n}", _power(n), _power(n), min(n, 3), parity=(-1) ** n, degree=n)
            for n in (2, 3, 4, 5)
        ),
        *(
            Function(
                "1/x" if n == 1 else f"1/x^{n}",
                _power(-n), _power(-n), max(n, 2), positive, parity=(-1) ** n, degree=-n,
            )
            for n in (1, 2, 3, 4, 5)
        ),
        Function("sqrt", torch.sqrt, _sympy("sqrt"), 2, positive, degree=0.5),
        Function("x^1.5", lambda z: z**1.5, lambda z: z * _sympy("sqrt")(z), 4, positive, degree=1.5),
        Function("1/sqrt", torch.rsqrt, lambda z: 1 / _sympy("sqrt")(z), 2, positive, degree=-0.5),
        Function("exp", torch.exp, _sympy("exp"), 2, absorb=_exponential),
        Function("log", torch.log, _sympy("log"), 2, positive, degree=0, absorb=_logarithm),
        Function("abs", torch.abs, _sympy("Abs"), 3, parity=1, degree=1),
        Function("sin", torch.sin, _sympy("sin"), 2.5, parity=-1, period=pi, period_sign=-1),
        Function("cos", torch.cos, _sympy("cos"), 2.5, parity=1, period=pi, period_sign=-1),
        Function("tan", torch.tan, _sympy("tan"), 3.5, (-pi / 2, pi / 2), parity=-1, period=pi),
        Function("tanh", torch.tanh, _sympy("tanh"), 3.5, parity=-1),
        Function("sgn", _keep_nan(torch.sign), _sympy("sign"), 3, parity=-1, degree=0, step=True),
        Function("arcsin", torch.asin, _sympy("asin"), 4.5, (-1.0, 1.0), parity=-1),
        Function("arccos", torch.acos, _sympy("acos"), 4.5, (-1.0, 1.0)),
        Function("arctan", torch.atan, _sympy("atan"), 4.5, parity=-1),
        Function("arctanh", torch.atanh, _sympy("atanh"), 4.5, (-1.0, 1.0), parity=-1),
        Function("gaussian", lambda z: torch.exp(-z.square()), _gaussian, 3.5, parity=1),
        Function("sinh", torch.sinh, _sympy("sinh"), 3.5, parity=-1),
        Function("cosh", torch.cosh, _sympy("cosh"), 3.5, parity=1),
        Function("sigmoid", torch.sigmoid, _sigmoid, 3.5),
    ]  # fmt: skip
    _library.update((function.name, function) for function in built_in)


_fill()
