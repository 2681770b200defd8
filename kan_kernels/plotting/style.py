"""What all pictures share: colours, figures without global state, files with the same bytes every time."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._core.files import replacing

INK, FAINT, PAPER = "#1a1a1a", "#c8c8c8", "#ffffff"
ACCENT, FORMULA, ALARM = "#0072b2", "#d55e00", "#b2182b"  # blue, vermilion: apart for every kind of eye
_STYLE = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.hashsalt": "kan_kernels",
    "path.simplify": False,
}


def matplotlib() -> Any:
    """Return the library.

    Raises:
        ModuleNotFoundError: it is not installed; names the extra.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ModuleNotFoundError("pictures need matplotlib: pip install matplotlib") from None
    return matplotlib


def style() -> Any:
    """Return a context in which figures are made and saved."""
    return matplotlib().rc_context(_STYLE)


def new_figure(width: float, height: float, **options: Any) -> Any:
    """Make a figure that pyplot knows nothing of: no window, nothing to close. Sizes in inches."""
    matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), **options)


def formula_label(name: str, r2: float) -> str:
    """Return a formula's name with how well it follows the spline under it; never rounded up."""
    if math.isnan(r2) or math.isinf(r2):  # a constant spline says nothing about it
        return name
    return f"{name}, r² {math.floor(r2 * 1e4) / 1e4:.4g}" if r2 > 0 else f"{name}, r² < 0"


def save(figure: Any, path: str | os.PathLike[str], dpi: int = 160) -> None:
    """Write a figure as .png or .svg (or what else matplotlib knows), without a date or random names in it.

    The file is whole or not there; what was there stays until the new one is whole.

    Args:
        figure: of matplotlib.
        path: its suffix names the format.
        dpi: dots per inch of a .png.

    Raises:
        ValueError: the path has no suffix that matplotlib knows.
        OSError: it cannot be written.

    Example:
        >>> save(new_figure(3, 2), "empty.svg")
        >>> Path("empty.svg").read_text()[:5]
        '<?xml'
    """
    suffix = Path(path).suffix.lower()
    known = figure.canvas.get_supported_filetypes()
    if suffix[1:] not in known:
        expected = f"one that ends in {', '.join(f'.{name}' for name in sorted(known))}"
        raise ValueError(f"path: got {os.fspath(path)!r}, expected {expected}")
    metadata = {"Date": None} if suffix == ".svg" else {"CreationDate": None} if suffix == ".pdf" else None
    with style(), replacing(path) as partial:
        figure.savefig(partial, dpi=dpi, metadata=metadata, facecolor=PAPER, format=suffix[1:])


def names_of(argument: str, names: Sequence[str] | None, count: int, letter: str) -> list[str]:
    """Return the names of so many nodes, by default x1, x2, ... with this letter."""
    if names is None:
        return [f"${letter}_{{{j + 1}}}$" for j in range(count)] if count > 1 else [f"${letter}$"]
    if isinstance(names, str) or len(names) != count:
        got = repr(names) if isinstance(names, str) else f"{len(names)} names"
        raise ValueError(f"{argument}: got {got}, expected {count} names")
    return [str(name) for name in names]


def letters(text: str) -> int:
    """Return about how many letters wide a name is; of mathematics, a symbol and its index."""
    return 3 if "$" in text else max(1, len(text))
