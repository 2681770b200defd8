"""What `accelerate` and `restore` did, and which unknown modules are worth a line."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class Entry:
    """A module in a report.

    Attributes:
        name: in the model; "" is the model itself.
        class_name: of the module.
        why: the adapter that took it, or why it was left.

    Example:
        >>> Entry("layers.0", "KANLinear", "efficient-kan").why
        'efficient-kan'
    """

    name: str
    class_name: str
    why: str


@dataclass(frozen=True)
class Report:
    """A record of what `accelerate` or `restore` did; prints as a table.

    Attributes:
        action: "accelerate" or "restore".
        taken: the modules whose class was changed, with the adapter's name and what to know about them.
        left: the modules that are or look like KAN layers and were not changed, with the reason.
        others: how many modules with parameters of their own look like nothing of a KAN.

    Example:
        >>> print(Report("accelerate", [Entry("layers.0", "KANLinear", "efficient-kan")]))
        accelerate: 1 taken, 0 left
          taken  layers.0  KANLinear  efficient-kan
    """

    action: str
    taken: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)
    others: int = 0

    def __str__(self) -> str:
        done = {"accelerate": "taken", "restore": "restored"}[self.action]
        rows = [(done, e) for e in self.taken] + [("left", e) for e in self.left]
        lines = [f"{self.action}: {len(self.taken)} {done}, {len(self.left)} left"]
        if rows:
            names = [entry.name or "(the model)" for _, entry in rows]
            columns = [[what for what, _ in rows], names, [entry.class_name for _, entry in rows]]
            widths = [max(map(len, column)) for column in columns]
            for (_, entry), *cells in zip(rows, *columns, strict=True):
                padded = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
                lines.append(f"  {padded}  {entry.why}")
        if self.others:
            what = "other module has" if self.others == 1 else "other modules have"
            lines.append(f"  {self.others} {what} parameters and nothing of a KAN")
        return "\n".join(lines)


_CLASS = re.compile(r"KAN(?![a-z])|(?<![A-Za-z])kan(?![a-z])|Kan(?=[A-Z_0-9]|$)|[Kk]olmogorov")
_PARTS = re.compile(r"spline|cheby|fourier_?coeff|wavelet|rbf|knots|(^|_)grid$|(^|_)coef(f|s|fs|ficients)?$")


def looks_like_a_kan(module: nn.Module) -> str | None:
    """Return what of a module has a KAN's name: its class, a parameter, buffer or child; else None."""
    cls = type(module)
    if cls.__module__.partition(".")[0] == "torch":
        return None
    if _CLASS.search(cls.__name__):
        return f"the class is called {cls.__name__}"
    for name in _names(module):
        if _PARTS.search(name):
            return f"it has {name}"
    return None


def _names(module: nn.Module) -> Iterable[str]:
    return (*module._parameters, *module._buffers, *module._modules)


def has_parameters(module: nn.Module) -> bool:
    """Return whether a module has parameters of its own, not of its children."""
    return any(p is not None for p in module._parameters.values())
