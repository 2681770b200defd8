"""Training: `fit`, and the `History` it returns. Nothing in the package needs them: plain loops work."""

from .history import History
from .loop import fit

__all__ = ["History", "fit"]
