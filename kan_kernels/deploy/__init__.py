"""A trained KAN without torch."""

from .numpy_model import NumpyKAN, to_numpy_model

__all__ = ["NumpyKAN", "to_numpy_model"]
