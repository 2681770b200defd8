"""From data to a law: a search over shapes, seeds and functions, judged by the whole formula's error."""

from .laws import Law
from .result import Discovery
from .search import discover

__all__ = ["Discovery", "Law", "discover"]
