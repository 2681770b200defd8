"""KANs as scikit-learn estimators: KANRegressor, KANClassifier. They need scikit-learn."""

from . import base as _base  # noqa: F401  # first: it says what is missing
from .kinds import KANClassifier, KANRegressor

__all__ = ["KANClassifier", "KANRegressor"]
