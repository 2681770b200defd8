"""The numbers and names that Python and C++ agree on. Imports nothing, so torch-free code can use it."""

MAX_SPLINE_ORDER = 10
MAX_DERIVATIVE = 32

# The code of a base activation in every op; the C++ enum `Base` lists the same numbers.
BASE_CODES: dict[str | None, int] = {None: 0, "silu": 1, "identity": 2}
