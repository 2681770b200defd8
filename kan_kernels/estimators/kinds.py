"""KANRegressor, KANClassifier."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from torch import nn

from .base import Estimator, Loss

_ARGS = """
    X is scaled to [-1, 1], feature by feature, and hidden knots follow the data. The network has X's
    dtype, float32 or float64. The options are stages: train with an L1 penalty (`lamb`), `prune` and train
    on, turn every edge into a `formula` and polish.

    Args:
        hidden_layer_sizes: widths of the hidden layers; () for none.
        grid_size, spline_order, base: as for KANLinear.
        lamb: weight of the penalty of `kan_kernels.regularization`, 0 for none.
        prune, node_threshold, edge_threshold: whether to prune, and where (`kan_kernels.pruning.prune`).
        formula, library, r2_threshold: whether to find formulas, among which functions, and what they have
            to explain (`kan_kernels.symbolic.auto`).
        solver: "lbfgs", "adam" or "adamw".
        learning_rate: None for `kan_kernels.training.fit`'s.
        max_iter: steps of the optimizer in each stage; of Adam, a mini-batch each.
        batch_size: rows of a step; None for all.
        update_grid, grid_eps: whether knots follow the data in the first half of the training, and how
            (`kan_kernels.grids.update_grid`); 1 for uniform knots, 0 for quantiles.
        early_stopping, validation_fraction, n_iter_no_change: whether to stop after so many evaluations
            without a better loss on that share of the rows, and end with the best state. LBFGS is evaluated
            after every step, Adam after every tenth.
        random_state: an int, numpy's RandomState or None.
        device: where the network is.

    Attributes:
        model_: the network, a KAN between scaled X and {units}.
        formula_: {formula}
            There if `formula` was asked for and every edge got one.
        symbolic_model_: a float64 KAN of formulas in the units of the data, for `kan_kernels.symbolic`.
        prune_report_, formula_report_: what was pruned, and which edges became what.
        history_: a `kan_kernels.training.History` a stage.
        n_iter_: steps of all stages.
        n_features_in_, feature_names_in_: as in all of scikit-learn.{more}

    Raises:
        ValueError, TypeError: for X, y and options, as in scikit-learn; the estimator is as it was.
"""


class KANRegressor(MultiOutputMixin, RegressorMixin, Estimator):
    __doc__ = (
        "A KAN that scikit-learn can fit, search and put in pipelines: y is a number, or several.\n"
        + _ARGS.format(
            units="standardised y",
            formula="the sympy expression in the units of the data; a list of them for y of two dimensions.",
            more="",
        )
        + """
    Example:
        >>> X = np.linspace(-1, 1, 64)[:, None]
        >>> model = KANRegressor((), max_iter=5, random_state=0).fit(X, X[:, 0] ** 2)
        >>> model.score(X, X[:, 0] ** 2) > 0.99
        True
    """
    )
    _forms_of_y = {"multi_output": True, "y_numeric": True}  # noqa: RUF012

    def predict(self, X: ArrayLike) -> NDArray:
        """Return y for the rows of X, of the form that the training had: (n,) or (n, outputs)."""
        values = self._outputs(X) * self._scale + self._mean
        return values[:, 0] if self._flat else values

    def _targets(self, y: NDArray) -> tuple[NDArray, int, Loss | None]:
        self._flat = y.ndim == 1
        y = y.reshape(len(y), -1).astype(np.float64)
        _, size = np.frexp(np.abs(y).max(0))  # powers of two, exact: squares of y can leave float64
        y = np.ldexp(y, -size)
        mean, scale = y.mean(0), y.std(0)
        scale = np.where(scale > 0, scale, 1.0)
        self._mean, self._scale = np.ldexp(mean, size), np.ldexp(scale, size)
        return (y - mean) / scale, y.shape[1], None

    def _units(self) -> tuple[NDArray, NDArray]:
        return self._mean, self._scale

    def _one_output(self) -> bool:
        return self._flat


class KANClassifier(ClassifierMixin, Estimator):
    __doc__ = (
        "A KAN that scikit-learn can fit, search and put in pipelines: y is a class, of two or more.\n"
        + _ARGS.format(
            units="logits, one for two classes",
            formula="the sympy expression of the logit of the second class; a list, one a class, for more.",
            more="\n        classes_: the classes, sorted.",
        )
        + """
    Example:
        >>> X = np.linspace(-1, 1, 64)[:, None]
        >>> model = KANClassifier((), max_iter=3, random_state=0).fit(X, np.where(X[:, 0] > 0, "up", "down"))
        >>> model.predict([[-0.9], [0.9]]).tolist()
        ['down', 'up']
    """
    )
    _forms_of_y = {}  # noqa: RUF012

    def decision_function(self, X: ArrayLike) -> NDArray:
        """Return the logits: (n,) of the second class of two, or (n, classes)."""
        logits = self._outputs(X)
        return logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: ArrayLike) -> NDArray:
        """Return the probabilities (n, classes)."""
        logits = torch.from_numpy(self._outputs(X))
        if len(self.classes_) == 2:
            logits = torch.cat((-logits, logits), 1) / 2  # the softmax of these is the sigmoid of the logit
        values: NDArray = logits.softmax(1).numpy()
        return values

    def predict(self, X: ArrayLike) -> NDArray:
        """Return the most probable class of every row, (n,)."""
        logits = self.decision_function(X)
        return self.classes_[logits.argmax(1) if logits.ndim == 2 else (logits > 0).astype(int)]

    def _targets(self, y: NDArray) -> tuple[NDArray, int, Loss | None]:
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y: got one class, {self.classes_[0]!r}, expected at least two classes")
        if len(self.classes_) == 2:
            return codes[:, None].astype(np.float64), 1, nn.functional.binary_cross_entropy_with_logits
        return codes.astype(np.int64), len(self.classes_), nn.functional.cross_entropy

    def _strata(self, y: NDArray) -> NDArray | None:
        return y

    def _units(self) -> tuple[NDArray, NDArray]:
        outputs = self.model_.layers[-1].out_features
        return np.zeros(outputs), np.ones(outputs)

    def _one_output(self) -> bool:
        return len(self.classes_) == 2
