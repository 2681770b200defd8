"""Pictures of networks, edges and trainings. They need matplotlib: pip install matplotlib."""

from .network import plot
from .pages import plot_edges, plot_history
from .style import save

__all__ = ["plot", "plot_edges", "plot_history", "save"]
