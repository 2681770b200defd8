"""The bases and the base activations, and the numbers that Python and C++ agree on.

A basis is one record here and one in csrc/basis/registry.h, its twin; whoever asks about a basis asks the
record. Its plain functions are found by its name, in backends/reference/<name>.py. This module imports
nothing of torch, so torch-free code can use it.
"""

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Basis:
    """What everybody has to know about a basis: R is the number of its functions, order the k of splines."""

    name: str
    code: int  # in every op
    grid: str | None  # what a feature's row of the grid holds; None: the basis has no grid
    columns: Callable[[int, int], int]  # of the grid, from R and the order
    most: int | None = MAX_FUNCTIONS  # functions that the kernels take; None: any number
    even: str | None = None  # why R is even
    local: bool = False  # a row sees the order + 1 functions of its cell; else all R: full support
    cuda: bool = True  # the library has CUDA kernels for it
    cycles: float = 0.0  # instructions of one function in the GPU kernels of full support, for the cost model

    def why_not(self, functions: int) -> str | None:
        """Return what is expected in place of so many functions, or None."""
        if functions < 1 or (self.most is not None and functions > self.most):
            return "an int >= 1" if self.most is None else f"an int in 1..{self.most}"
        if self.even is not None and functions % 2:
            return f"an even number: {self.even}"
        return None


BSPLINE = Basis("bspline", 0, "knots", lambda functions, order: functions + order + 1, None, local=True)
RBF = Basis("rbf", 1, "centres and their width", lambda functions, _: functions + 1, cycles=38.0)
CHEBYSHEV = Basis("chebyshev", 2, None, lambda functions, _: 0, cycles=25.0)
FOURIER = Basis(
    "fourier", 3, None, lambda functions, _: 0, 2 * MAX_FREQUENCIES, "cosines, then sines", cuda=False
)

BASES: dict[str, Basis] = {basis.name: basis for basis in (BSPLINE, RBF, CHEBYSHEV, FOURIER)}
BY_CODE: tuple[Basis, ...] = tuple(BASES.values())  # at the place of its code
FULL_SUPPORT = tuple(name for name, basis in BASES.items() if not basis.local)
