"""What every fused backend is limited to, and says in the same words."""

from ..checks import DTYPES
from ..contract import MAX_DERIVATIVE, MAX_FUNCTIONS, MAX_SPLINE_ORDER


def beyond(case) -> str | None:
    """None, or why no fused kernel has the dtype, order or derivative of a `dispatch.Case`."""
    if case.dtype not in DTYPES:
        return f"no kernels for {case.dtype}"
    rows = case.grid_size + case.spline_order
    if case.basis != "bspline":
        if rows > MAX_FUNCTIONS:
            return f"{rows} functions of the basis {case.basis!r} are more than {MAX_FUNCTIONS}"
    elif case.spline_order > MAX_SPLINE_ORDER:
        return f"spline_order {case.spline_order} is above {MAX_SPLINE_ORDER}"
    if case.derivative > MAX_DERIVATIVE:
        return f"derivative {case.derivative} is above {MAX_DERIVATIVE}"
    return None


def only_splines(case) -> str | None:
    """None, or why kernels that know B-splines alone cannot run a case."""
    return None if case.basis == "bspline" else f"no kernels for the basis {case.basis!r}, only for 'bspline'"
