"""Training: `fit`, its `History`, its LBFGS. Nothing in the package needs them: plain loops work."""

from .history import History
from .loop import fit
from .rescaling import LBFGS

__all__ = ["LBFGS", "History", "fit"]
