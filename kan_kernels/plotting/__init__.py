"""Pictures of networks, edges, scores and trainings. They need matplotlib: pip install matplotlib."""

from .network import plot
from .pages import plot_edges, plot_history
from .scores import plot_scores
from .style import save

__all__ = ["plot", "plot_edges", "plot_history", "plot_scores", "save"]
