"""What every fused backend is limited to, and says in the same words."""

from .bases import MAX_DERIVATIVE, MAX_SPLINE_ORDER, most_rows
from .checks import DTYPES


def beyond(case) -> str | None:
    """None, or why no fused kernel has the dtype, order or derivative of a `dispatch.Case`."""
    if case.dtype not in DTYPES:
        return f"no kernels for {case.dtype}"
    rows = case.grid_size + case.spline_order
    if case.basis != "bspline":
        if rows > most_rows(case.basis):
            return f"{rows} functions of the basis {case.basis!r} are more than {most_rows(case.basis)}"
    elif case.spline_order > MAX_SPLINE_ORDER:
        return f"spline_order {case.spline_order} is above {MAX_SPLINE_ORDER}"
    if case.derivative > MAX_DERIVATIVE:
        return f"derivative {case.derivative} is above {MAX_DERIVATIVE}"
    return None


def without_basis(case, bases: tuple[str, ...]) -> str | None:
    """None, or why kernels that know these bases alone cannot run a case."""
    if case.basis in bases:
        return None
    return f"no kernels for the basis {case.basis!r}, only for {', '.join(map(repr, bases))}"
