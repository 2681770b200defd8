"""What `discover` returns."""

from dataclasses import dataclass
from typing import Any

from ...nn import KAN
from .laws import Law, table

STOPS = {
    "exact": "an exact formula was found",
    "searched": "all shapes were searched",
    "budget": "the budget was spent",
    "work": "the work that was asked for was done",
    "interrupted": "interrupted",
}


@dataclass(frozen=True)
class Discovery:
    """A record of a search for a law; prints as a table, the chosen formula marked "*", worse ones "!".

    Attributes:
        front: the laws that no simpler one equals, the simplest first.
        best: of these the simplest whose validation loss is within 1.1 times of the least (of a root mean
            square error: its square); errors that are rounding count as equal.
        stopped: why the search ended: "exact", "searched", "budget", "work" or "interrupted".
        work: trainings and joint fits that were done; `discover(..., work=...)` does as many again.
        seconds: how long that took.
        networks: how many spline networks were trained to the end and read; 0 where time was too short.
        structures: how many one-layer networks of coordinates were read, which are a regression.

    Example:
        >>> x = torch.linspace(-1, 1, 60)
        >>> symbolic.discover(x, 3 * x + 1, names=["t"]).formula
        3*t + 1
    """

    front: tuple[Law, ...]
    best: Law
    stopped: str
    work: int
    seconds: float
    networks: int
    structures: int = 0

    @property
    def formula(self) -> Any:
        """Return the best law's sympy expression, or a list of them for several outputs."""
        return self.best.formula

    @property
    def model(self) -> KAN:
        """Return the best law as a KAN in float64."""
        return self.best.model

    def __str__(self) -> str:
        lines = [*table(self.front, self.best)]
        if self.best.worse_than_network:
            lines.append("! the best formula is worse than the spline network that it was read from")
        if not self.networks and self.stopped in ("budget", "work", "interrupted"):
            lines.append("! no network was trained within the budget")
        read = f"{self.structures} structures and {self.networks} networks read"
        lines.append(f"{STOPS[self.stopped]}: {read}, {self.work} fits, {self.seconds:.1f} s")
        return "\n".join(lines)

    def plot(self, *, ax: Any = None) -> Any:
        """Draw the front, complexity against validation error, beside the networks' errors.

        Args:
            ax: matplotlib axes to draw in; None makes a figure.

        Returns:
            The matplotlib figure.

        Raises:
            ModuleNotFoundError: without matplotlib.

        Example:
            >>> x = torch.linspace(-1, 1, 60)
            >>> symbolic.discover(x, 3 * x + 1).plot().axes[0].get_xlabel()
            'complexity'
        """
        from ...plotting.pages import plot_front

        return plot_front(self.front, self.best, ax=ax)
