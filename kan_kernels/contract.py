"""The numbers and names that Python and C++ agree on. Imports nothing, so torch-free code can use it."""

MAX_SPLINE_ORDER = 10
MAX_DERIVATIVE = 32
MAX_FUNCTIONS = 256  # of a basis that is not local: all of them are evaluated for every row

# The code of a base activation in every op; the C++ enum `Base` lists the same numbers.
BASE_CODES: dict[str | None, int] = {None: 0, "silu": 1, "identity": 2}

# The code of a basis in every op; the C++ enum `Basis` lists the same numbers.
BASIS_CODES: dict[str, int] = {"bspline": 0, "rbf": 1, "chebyshev": 2}


def basis_rows(basis: int, columns: int, order: int) -> int:
    """The functions of a basis, from the columns of its grid and its order: R.

    B-splines: R + k + 1 knots. Gaussians: R centres and their width, order 0. Chebyshev polynomials: no
    columns, order is the degree R - 1.
    """
    return order + 1 if basis == BASIS_CODES["chebyshev"] else columns - order - 1
