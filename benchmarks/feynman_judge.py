"""Whether a formula is the law that the data came from: the same rules for whoever found it."""

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from kan_kernels.symbolic.discovery.present import complexity

CLOSE = 1e-6  # a relative error that counts as none
MOVED = 0.05  # how far a constant that was fitted to noisy data may be off, as a share of it
OFFSET = 0.01  # of the spread of y, as the noise: so far a constant may be off that is added to all the rest
WIDER = 0.25  # of each range, on both sides, where formulas must agree too
SECONDS = 10


def law_of(formula: str, names: list[str]) -> Any:
    """Return an equation's formula in sympy, of positive variables."""
    import sympy

    symbols = {name: sympy.Symbol(name, positive=True) for name in names}
    return sympy.sympify(formula, locals=symbols)


def parsed(formula: str, names: list[str], protected: bool = False) -> Any:
    """Return an answer in sympy: its variables are v0, v1, ..., its functions as the rivals name them.

    protected: as gplearn's: sqrt and log take the absolute value, a division by 0 is 1 and log(0) is 0.
    """
    import sympy

    local: dict[str, Any] = {f"v{n}": sympy.Symbol(name, positive=True) for n, name in enumerate(names)}
    local |= {
        "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b, "square": lambda a: a**2,
    }  # fmt: skip
    if protected:
        local["div"] = lambda a, b: sympy.Integer(1) if b.is_zero else a / b
        local["log"] = lambda a: sympy.log(a if a.is_positive else sympy.Abs(a)) if not a.is_zero else a
        local["sqrt"] = lambda a: sympy.sqrt(a if a.is_nonnegative else sympy.Abs(a))
    return sympy.sympify(formula.replace("^", "**"), locals=local)


def values(expression: Any, names: list[str], x: np.ndarray) -> np.ndarray:
    """Return a formula on rows, NaN where it has no real value."""
    import sympy

    if expression.has(sympy.zoo, sympy.nan, sympy.oo, -sympy.oo):  # what sympy makes of a division by 0
        return np.full(len(x), np.nan)
    symbols = [sympy.Symbol(name, positive=True) for name in names]
    function = sympy.lambdify(symbols, expression, "numpy")
    with np.errstate(all="ignore"):
        result = np.asarray(function(*x.T))
    result = np.broadcast_to(result, (len(x),))
    if np.iscomplexobj(result):
        result = np.where(np.abs(result.imag) < 1e-12 * (1 + np.abs(result.real)), result.real, np.nan)
    return result.astype(float)


def relative(expression: Any, names: list[str], x: np.ndarray, y: np.ndarray) -> float:
    """Return the root mean square error as a share of the spread of y; inf where there is no value."""
    error = float(np.sqrt(np.mean((values(expression, names, x) - y) ** 2)) / np.std(y))
    return error if math.isfinite(error) else math.inf


def wider(law: Any, names: list[str], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows outside of the data's ranges too, where the law has a value, and the law's values."""
    low, high = x.min(0), x.max(0)
    generator = np.random.default_rng(0)
    stretch = WIDER * (high - low)
    stretched = generator.uniform(np.maximum(low - stretch, low / 2), high + stretch, (400, x.shape[1]))
    y = values(law, names, stretched)
    return stretched[np.isfinite(y)], y[np.isfinite(y)]


def agree(found: Any, law: Any, names: list[str], x: np.ndarray, y: np.ndarray) -> bool:
    """Return whether two formulas have the same values, inside and outside of the ranges of x."""
    if not relative(found, names, x, y) < CLOSE:
        return False
    beyond, there = wider(law, names, x)
    same = np.abs(values(found, names, beyond) - there) < 100 * CLOSE * (np.abs(there) + np.std(y))
    return bool(same.mean() > 0.9)  # protected functions may differ where they are not defined


def exact(found: Any, law: Any, names: list[str], x: np.ndarray, y: np.ndarray) -> str:
    """Return how a formula from noise-free data equals the law: "sympy", "values", or "" where it does not.

    Args:
        x, y: new points and the law's values there.
    """
    if not agree(found, law, names, x, y):
        return ""
    return "sympy" if _shown(found, law) else "values"


def _shown(found: Any, law: Any) -> bool:
    """Return whether sympy shows two formulas equal after all constants were rounded to 4 digits."""
    import sympy

    def rounded(expression: Any) -> Any:
        expression = expression.xreplace({sympy.pi: sympy.Float(sympy.pi)})
        floats = expression.atoms(sympy.Float)
        return expression.xreplace({f: sympy.Rational(f"{float(f):.3e}") for f in floats})

    with _limited():
        for change in (lambda e: e, sympy.expand, sympy.simplify):
            if sympy.simplify(rounded(sympy.N(change(found))) - rounded(sympy.N(change(law)))) == 0:
                return True
    return False


def same_structure(found: Any, law: Any, names: list[str], x: np.ndarray, y: np.ndarray) -> str:
    """Return "constants" if a formula from noisy data is the law but for small errors in constants, or "".

    Its numbers other than whole ones and exponents are fitted to the law's values: it must then agree with
    the law as one from noise-free data has to, and no number may have moved by more than MOVED of itself. One
    that is added to all the rest may go from up to OFFSET to 0: some methods add one to every formula.
    """
    import sympy
    from scipy.optimize import least_squares

    if agree(found, law, names, x, y):
        return "constants"
    if not relative(found, names, x, y) < 0.1:
        return ""
    found, places = _open(sympy.N(found) if found.has(sympy.pi) else found)
    if not places or len(places) > 30:
        return ""
    start = np.array([float(v) for v in places.values()])
    symbols = [sympy.Symbol(name, positive=True) for name in names]
    function = sympy.lambdify([*symbols, *places], found, "numpy")

    def residual(scale: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            made = np.broadcast_to(function(*x.T, *(start * scale)), y.shape)
        return np.nan_to_num((np.real(made) - y) / np.std(y), nan=1e3, posinf=1e3, neginf=-1e3)

    try:
        fit = least_squares(residual, np.ones(len(start)), xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=200)
    except (ValueError, np.linalg.LinAlgError):
        return ""
    added = np.array([symbol in found.args and found.is_Add for symbol in places])
    most = np.where(added, np.maximum(MOVED * np.abs(start), OFFSET * np.std(y)), MOVED * np.abs(start))
    if (np.abs(start * (fit.x - 1)) > most).any():
        return ""
    fitted = found.xreplace({s: sympy.Float(v) for s, v in zip(places, start * fit.x, strict=True)})
    return "constants" if agree(fitted, law, names, x, y) else ""


def _open(expression: Any) -> tuple[Any, dict[Any, Any]]:
    """Return a formula with a symbol for each number but whole ones and exponents, and the numbers."""
    import sympy

    places: dict[Any, Any] = {}

    def walk(node: Any) -> Any:
        if node.is_Float or (node.is_Rational and not node.is_Integer):
            symbol = sympy.Symbol(f"constant_{len(places)}", real=True)
            places[symbol] = node
            return symbol
        if isinstance(node, sympy.Pow) and node.exp.is_number:
            return sympy.Pow(walk(node.base), node.exp)
        return node.func(*map(walk, node.args)) if node.args else node

    return walk(expression), places


def size(expression: Any) -> int:
    """Return the number of operations, functions, symbols and numbers of a formula."""
    return complexity([expression])


class _TooLong(Exception):
    """A sign that sympy took too long."""


@contextmanager
def _limited() -> Iterator[list[bool]]:
    """Leave the block after SECONDS of processor time; the list is then not empty."""
    over: list[bool] = []

    def stop(*_: Any) -> None:
        raise _TooLong

    before: Callable | Any = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield over
    except _TooLong:
        over.append(True)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
