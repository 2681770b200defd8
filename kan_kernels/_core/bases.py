"""The bases and the base activations, and the numbers that Python and C++ agree on.

A basis is one record here and one in csrc/basis/registry.h, its twin; whoever asks about a basis asks the
record. Its plain functions are found by its name, in backends/reference/<name>.py. This module imports
nothing of torch, so torch-free code can use it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from textwrap import fill
from typing import Any

MIN_TORCH = (2, 11)  # TORCH_TARGET_VERSION of CMakeLists.txt, and pyproject.toml
MAX_SPLINE_ORDER = 10
MAX_DERIVATIVE = 32
MAX_FUNCTIONS = 256  # of a basis of full support: all of them are evaluated for every row
MAX_FREQUENCIES = 512  # of the Fourier basis, two functions each

# Where a compiled part is missing or of another version.
REMEDY = (
    "build the source tree with `python setup.py build_ext --inplace`, or install it with `pip install .` "
    "and start Python outside of it"
)

# The code of a base activation in every op; the C++ enum `Base` lists the same numbers.
BASE_CODES: dict[str | None, int] = {None: 0, "silu": 1, "identity": 2}
BASE_NAMES = {code: name for name, code in BASE_CODES.items()}


@dataclass(frozen=True)
class Basis:
    """The facts of a basis that everybody needs: R is the number of its functions, order the k of splines."""

    name: str
    code: int  # in every op
    grid: str | None  # what a feature's row of the grid holds; None: the basis has no grid
    columns: Callable[[int, int], int]  # of the grid, from R and the order
    complaint: Callable[[Any], str | None] = lambda grid: None  # what is wrong with the grid's values
    most: int | None = MAX_FUNCTIONS  # functions that the kernels take; None: any number
    even: str | None = None  # why R is even
    local: bool = False  # a row sees the order + 1 functions of its cell; else all R: full support
    cuda: bool = True  # the library has CUDA kernels for it
    cycles: float = 0.0  # instructions of one function in the GPU kernels of full support, for the cost model
    coefficients: bool = False  # each function has its own in the grid, which takes registers of GPU kernels
    formula: str = ""  # of B_r, and where its grid has which columns: for docstrings

    def why_not(self, functions: int) -> str | None:
        """Return what is expected in place of so many functions, or None."""
        if functions < 1 or (self.most is not None and functions > self.most):
            return "an int >= 1" if self.most is None else f"an int in 1..{self.most}"
        if self.even is not None and functions % 2:
            return f"an even number: {self.even}"
        return None

    @property
    def said(self) -> str:
        """Return its formula with the numbers of functions that it takes."""
        even = "" if self.even is None else ", even"
        return f"{self.formula}; R up to {self.most}{even}"


def _about_centres(grid: Any) -> str | None:
    good = grid.isfinite()
    good[..., -1] &= grid[..., -1] > 0
    if good.all():
        return None
    *_, feature, column = place = (~good).nonzero()[0].tolist()
    what = "width" if column == grid.shape[-1] - 1 else f"centre {column}"
    return (
        f"the {what} of feature {feature} is {grid[tuple(place)].item()}, "
        "expected finite centres and a finite width > 0"
    )


def _about_knots(grid: Any) -> str | None:
    good = grid.isfinite()
    good[..., 1:] &= grid[..., 1:] >= grid[..., :-1]
    if good.all():
        return None
    *grids, feature, knot = (~good).nonzero()[0].tolist()
    row = grid[(*grids, feature)]
    after = f" after {row[knot - 1].item()}" if knot else ""
    return (
        f"knot {knot} of feature {feature} is {row[knot].item()}{after}, "
        "expected finite, non-decreasing knots"
    )


def _about_coefficients(grid: Any) -> str | None:
    good = grid.isfinite()
    if good.all():
        return None
    *_, feature, column = place = (~good).nonzero()[0].tolist()
    value = grid[tuple(place)].item()
    return f"column {column} of feature {feature} is {value}, expected finite numbers"


BSPLINE = Basis(
    "bspline", 0, "knots", lambda functions, order: functions + order + 1, _about_knots, None, local=True
)
RBF = Basis(
    "rbf",
    1,
    "centres and their width",
    lambda functions, _: functions + 1,
    _about_centres,
    cycles=38.0,
    formula="exp(-((x - c_r) / h)^2), the Gaussians of FastKAN (arXiv 2405.06721), 0 at +-inf; "
    "grid (in, R + 1): the finite centres c of each feature, then their width h > 0",
)
CHEBYSHEV = Basis(
    "chebyshev",
    2,
    None,
    lambda functions, _: 0,
    cycles=25.0,
    formula="T_r for r = 0 .. R-1, meant for x in [-1, 1], NaN at +-inf; ChebyKAN's (arXiv 2405.07200) is "
    "that of torch.tanh(x); no grid",
)
FOURIER = Basis(
    "fourier",
    3,
    None,
    lambda functions, _: 0,
    most=2 * MAX_FREQUENCIES,
    even="cosines, then sines",
    cuda=False,
    formula="cos(g x) for g = 1 .. R/2, then sin(g x) likewise, those of FourierKAN, NaN at +-inf and, on "
    "the CPU in float64, from 2^128 on; no grid",
)
ORTHOGONAL = Basis(
    "orthogonal",
    4,
    "recurrence coefficients",
    lambda functions, _: 3 * functions,
    _about_coefficients,
    cycles=30.0,
    coefficients=True,
    formula="polynomials by their three-term recurrence, B_r = (a_r x + b_r) B_{r-1} - c_r B_{r-2} with "
    "B_{-1} = 1 and B_{-2} = 0, NaN at +-inf; grid (in, 3R): a, then b, then c, of the classical families "
    "from `functional.polynomials`",
)

BASES: dict[str, Basis] = {basis.name: basis for basis in (BSPLINE, RBF, CHEBYSHEV, FOURIER, ORTHOGONAL)}
BY_CODE: tuple[Basis, ...] = tuple(BASES.values())  # at the place of its code
FULL_SUPPORT = tuple(name for name, basis in BASES.items() if not basis.local)
LISTED = "BASES"  # the line of a docstring in whose place stand the formulas of these


def with_formulas(text: str) -> str:
    """Return a docstring with the formulas of the bases of full support at its line `LISTED`."""
    lines = text.splitlines(keepends=True)
    for n, line in enumerate(lines):
        if line.strip() == LISTED:
            first = line.replace(LISTED, "- ").rstrip("\n")
            more = line.replace(LISTED, "  ").rstrip("\n")
            items = [f'"{name}": {BASES[name].said}.' for name in FULL_SUPPORT]
            lines[n] = "".join(
                fill(item, 106, initial_indent=first, subsequent_indent=more) + "\n" for item in items
            )
    return "".join(lines)
