"""What every fused backend is limited to, and says in the same words."""

from ..checks import DTYPES
from ..contract import MAX_DERIVATIVE, MAX_SPLINE_ORDER


def beyond(case) -> str | None:
    """None, or why no fused kernel has the dtype, order or derivative of a `dispatch.Case`."""
    if case.dtype not in DTYPES:
        return f"no kernels for {case.dtype}"
    if case.spline_order > MAX_SPLINE_ORDER:
        return f"spline_order {case.spline_order} is above {MAX_SPLINE_ORDER}"
    if case.derivative > MAX_DERIVATIVE:
        return f"derivative {case.derivative} is above {MAX_DERIVATIVE}"
    return None
