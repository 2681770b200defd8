"""The numbers and names that Python and C++ agree on. Imports nothing, so torch-free code can use it."""

MIN_TORCH = (2, 11)  # TORCH_TARGET_VERSION of CMakeLists.txt, and pyproject.toml
MAX_SPLINE_ORDER = 10
MAX_DERIVATIVE = 32
MAX_FUNCTIONS = 256  # of a basis that is not local: all of them are evaluated for every row
MAX_FREQUENCIES = 512  # of the Fourier basis, two functions each

# Where a compiled part is missing or of another version.
REMEDY = (
    "build the source tree with `python setup.py build_ext --inplace`, or install it with `pip install .` "
    "and start Python outside of it"
)

# The code of a base activation in every op; the C++ enum `Base` lists the same numbers.
BASE_CODES: dict[str | None, int] = {None: 0, "silu": 1, "identity": 2}

# The code of a basis in every op; the C++ enum `Basis` lists the same numbers.
BASIS_CODES: dict[str, int] = {"bspline": 0, "rbf": 1, "chebyshev": 2, "fourier": 3}


def basis_rows(basis: int, columns: int, order: int) -> int:
    """The functions of a basis, from the columns of its grid and its order: R.

    B-splines: R + k + 1 knots. Gaussians: R centres and their width, order 0. Chebyshev polynomials: no
    columns, order is the degree R - 1. Fourier: no columns, order is the number of frequencies R / 2.
    """
    if basis == BASIS_CODES["fourier"]:
        return 2 * order
    return order + 1 if basis == BASIS_CODES["chebyshev"] else columns - order - 1


def basis_order(basis: str, rows: int) -> int:
    """The order that goes with so many functions of a basis that is not local."""
    return {"rbf": 0, "chebyshev": rows - 1, "fourier": rows // 2}[basis]


def most_rows(basis: str) -> int:
    """The most functions that the kernels take of a basis that is not local."""
    return 2 * MAX_FREQUENCIES if basis == "fourier" else MAX_FUNCTIONS
