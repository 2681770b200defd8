"""The old place of `compat.efficient_kan_core`."""

from ..compat.efficient_kan_core import (
    _well_determined,
    forward,
    increasing,
    kernel_base,
    kernel_weight,
    moved,
    placed_knots,
    scaled_weight,
    why_not,
    why_not_now,
)

__all__ = [
    "_well_determined",
    "forward",
    "increasing",
    "kernel_base",
    "kernel_weight",
    "moved",
    "placed_knots",
    "scaled_weight",
    "why_not",
    "why_not_now",
]
