"""What regressor and classifier share."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from .. import replicas, training
from .._core import checks
from ..nn import KAN, function_library
from ..nn.network import drawn

try:
    from sklearn.base import BaseEstimator
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "KANRegressor and KANClassifier need scikit-learn: pip install scikit-learn"
    ) from None

Loss = Callable[[Tensor, Tensor], Tensor]
_DTYPES = [np.float64, np.float32]
_POLISH = 50  # steps
SOLVERS = ("lbfgs", "adam", "adamw")


class Estimator(BaseEstimator):
    """All that regressor and classifier share: scales, stages of the training, formula, picture."""

    model_: KAN
    symbolic_model_: KAN

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (5,),
        *,
        grid_size: int = 5,
        spline_order: int = 3,
        base: str | None = "silu",
        lamb: float = 0.0,
        prune: bool = False,
        node_threshold: float = 1e-2,
        edge_threshold: float = 3e-2,
        formula: bool = False,
        library: Sequence[str] | None = None,
        r2_threshold: float = 0.9,
        solver: str = "lbfgs",
        learning_rate: float | None = None,
        max_iter: int = 50,
        batch_size: int | None = None,
        update_grid: bool = True,
        grid_eps: float = 1.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        random_state: Any = None,
        device: Any = "cpu",
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.grid_size = grid_size
        self.spline_order = spline_order
        self.base = base
        self.lamb = lamb
        self.prune = prune
        self.node_threshold = node_threshold
        self.edge_threshold = edge_threshold
        self.formula = formula
        self.library = library
        self.r2_threshold = r2_threshold
        self.solver = solver
        self.learning_rate = learning_rate
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.update_grid = update_grid
        self.grid_eps = grid_eps
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.device = device

    def fit(self, X: ArrayLike, y: ArrayLike) -> Any:
        """Train on X (n, in) and y, and return the estimator; after an error it is as it was before."""
        before = dict(vars(self))
        try:
            self._fit(X, y)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        return self

    def _fit(self, X: Any, y: Any) -> None:
        widths = self._hidden()
        for name in ("max_iter", "n_iter_no_change"):
            checks.integer(name, getattr(self, name), 1)
        for name in ("prune", "formula", "update_grid", "early_stopping"):
            checks.boolean(name, getattr(self, name))
        for name in ("lamb", "node_threshold", "edge_threshold"):
            checks.nonnegative(name, getattr(self, name))
        checks.nonnegative("r2_threshold", self.r2_threshold, 1.0)
        if self.batch_size is not None:
            checks.integer("batch_size", self.batch_size, 1)
        if self.learning_rate is not None and not callable(self.learning_rate):
            checks.above("learning_rate", self.learning_rate, 0.0)
        if not isinstance(self.solver, str) or self.solver not in SOLVERS:
            raise ValueError(f"solver: got {self.solver!r}, expected 'lbfgs', 'adam' or 'adamw'")
        if self.early_stopping:
            share = checks.above("validation_fraction", self.validation_fraction, 0.0)
            if share >= 1:
                raise ValueError(f"validation_fraction: got {share}, expected a number between 0 and 1")
        self._check_library()
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, TypeError, AssertionError) as error:
            raise ValueError(f"device: got {self.device!r}, expected one of torch's: {error}") from None
        for name in ("symbolic_model_", "formula_report_", "prune_report_"):  # of an earlier fit
            self.__dict__.pop(name, None)
        X, y = validate_data(self, X, y, dtype=_DTYPES, **self._forms_of_y)
        low, high = X.min(0).astype(np.float64), X.max(0).astype(np.float64)
        half = high / 2 - low / 2
        self._centre, self._half = low / 2 + high / 2, np.where(half > 0, half, 1.0)
        targets, outputs, loss = self._targets(y)
        x = self._scaled(X, X.dtype)
        target = torch.from_numpy(targets).to(self.device)
        if target.is_floating_point():
            target = target.to(x.dtype)
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - 1))
        data: dict[str, Any] = {"train": (x, target)}
        if self.early_stopping:
            parts = train_test_split(
                np.arange(len(X)), test_size=self.validation_fraction, random_state=random,
                stratify=self._strata(y),
            )  # fmt: skip
            names = ("train", "test")
            data = {name: (x[rows], target[rows]) for name, rows in zip(names, parts, strict=True)}
        generator = torch.Generator().manual_seed(seed)  # fits run in threads: no state of torch's moves
        options: dict[str, Any] = {"base": self.base, "dtype": x.dtype}
        every = [x.shape[1], *widths, outputs]
        model = drawn(generator, every, self.grid_size, self.spline_order, **options).to(self.device)
        self.model_, self.history_ = self._stages(model, data, loss, seed)
        self.n_iter_ = max(1, sum(len(history.train_loss) - 1 for history in self.history_))
        if self.formula and self._splines_left() == 0:
            self.symbolic_model_ = self._in_units_of_the_data()

    def _stages(
        self, model: KAN, data: dict[str, Any], loss: Loss | None, seed: int
    ) -> tuple[KAN, list[training.History]]:
        """Train, prune and train on, fix formulas and polish: what was asked for."""
        x = data["train"][0]
        every = max(1, self.max_iter // 10)
        updates = range(0, max(1, self.max_iter // 2), every) if self.update_grid and len(x) > 1 else ()

        def train(lamb: float, updates: Sequence[int]) -> None:
            histories.append(
                training.fit(
                    model, data, steps=self.max_iter, optimizer=self.solver, lr=self.learning_rate,
                    batch_size=self.batch_size, loss=loss, lamb=lamb, update_grid_at=updates,
                    update_grid={"grid_eps": self.grid_eps}, seed=seed, progress=False,
                    patience=self.n_iter_no_change if self.early_stopping else None, group=replicas.LOCAL,
                )
            )  # fmt: skip

        histories: list[training.History] = []
        train(self.lamb, updates)
        if self.prune:
            from ..pruning import prune

            thresholds: dict[str, Any] = {
                "node_threshold": self.node_threshold,
                "edge_threshold": self.edge_threshold,
            }
            model, self.prune_report_ = prune(model, x, **thresholds, group=replicas.LOCAL)
            train(0.0, ())
        if self.formula:
            from .. import symbolic

            options: dict[str, Any] = {"library": self.library, "r2_threshold": self.r2_threshold}
            self.formula_report_ = symbolic.auto(model, x, **options, group=replicas.LOCAL)
            left = self.formula_report_.left
            if left:
                worst = min(left, key=lambda edge: edge.best.r2)
                warnings.warn(
                    f"formula: no function of the library explains {self.r2_threshold:g} of {len(left)} of "
                    f"{len(self.formula_report_.edges)} edges, which stay splines (layer {worst.layer}, "
                    f"{worst.input} -> {worst.output}: {worst.best.name}, r2 {worst.best.r2:.4f}); lamb, "
                    "prune and more data help",
                    stacklevel=4,
                )
            if any(layer.symbolic is not None for layer in model.layers):
                self._polish(model, data, loss, train)
        return model, histories

    @staticmethod
    def _polish(model: KAN, data: dict[str, Any], loss: Loss | None, train: Callable[..., None]) -> None:
        """Train the formulas on: by Levenberg-Marquardt for squared errors."""
        from .. import symbolic

        if loss is not None:
            train(0.0, ())
            return
        try:
            symbolic.polish(model, *data["train"], steps=_POLISH, group=replicas.LOCAL)
        except ValueError as error:  # of derivatives that are not finite; the model is as it was
            warnings.warn(f"formula: not polished, {error}", stacklevel=5)

    def _hidden(self) -> list[int]:
        sizes = self.hidden_layer_sizes
        values = list(sizes) if isinstance(sizes, (Sequence, np.ndarray)) else [sizes]
        return [checks.integer(f"hidden_layer_sizes[{i}]", size, 1) for i, size in enumerate(values)]

    def _check_library(self) -> None:
        """Raise for functions that there are not: before the training that they would come after."""
        wrong = isinstance(self.library, Iterator) or not isinstance(self.library, Iterable)
        if self.library is not None and wrong:
            raise TypeError(f"library: got {self.library!r}, expected names of functions")
        function_library.resolve(self.library)

    def _scaled(self, X: NDArray, dtype: Any = None) -> Tensor:
        """Return the rows as the network takes them: what the training saw lies in [-1, 1]."""
        scaled = (X - self._centre) / self._half
        rows = torch.from_numpy(np.ascontiguousarray(scaled, dtype or np.float64))
        return rows.to(self.device) if dtype is not None else rows.to(self.model_.layers[0].spline_weight)

    @torch.no_grad()
    def _outputs(self, X: Any) -> NDArray:
        """Return what the network makes of X: (n, outputs), in its own units."""
        check_is_fitted(self, "model_")
        X = validate_data(self, X, dtype=_DTYPES, reset=False)
        values: NDArray = self.model_(self._scaled(X)).cpu().numpy()
        return values

    def _splines_left(self) -> int:
        return len(self.formula_report_.left) if "formula_report_" in vars(self) else -1

    @torch.no_grad()
    def _in_units_of_the_data(self) -> KAN:
        """Return a copy that takes X and gives y as they come: the scales are part of its formulas."""
        model = copy.deepcopy(self.model_).double()
        first, last = model.layers[0].symbolic, model.layers[-1].symbolic
        assert first is not None and last is not None
        mean, scale = (torch.as_tensor(t, device=self.device) for t in self._units())
        centre = torch.as_tensor(self._centre, device=self.device)[first.index[:, 0]]
        first.affine[:, 0] /= torch.as_tensor(self._half, device=self.device)[first.index[:, 0]]
        first.affine[:, 1] -= first.affine[:, 0] * centre
        last.affine[:, 2:] *= scale[last.index[:, 1], None]
        if model.layers[-1].bias is not None or bool((mean != 0).any()):
            bias = model.layers[-1].bias
            model.layers[-1].bias = nn.Parameter(mean if bias is None else mean + scale * bias)
        return model

    def _input_names(self) -> list[str] | None:
        names = getattr(self, "feature_names_in_", None)
        return None if names is None else [str(name) for name in names]

    @property
    def formula_(self) -> Any:
        """Return the sympy expression of the output in the units of the data; a list of them for several."""
        check_is_fitted(self, "model_")
        model = vars(self).get("symbolic_model_")
        if model is None:
            left = self._splines_left()
            why = f"{left} edges stayed splines" if left > 0 else "it was fitted with formula=False"
            raise AttributeError(f"{type(self).__name__} has no formula_: {why}")
        from ..symbolic import formula

        values = formula(model, self._input_names())
        return values[0] if self._one_output() else values

    def plot(self, X: ArrayLike | None = None, **options: Any) -> Any:
        """Draw the network, in its own units: [-1, 1] is the range of the training's X.

        Args:
            X: (n, in), rows whose values weigh edges and set the ranges of the curves; None takes the knots'.
            options: of `kan_kernels.plotting.plot`.

        Returns:
            The matplotlib figure.
        """
        check_is_fitted(self, "model_")
        from ..plotting import plot

        x = None if X is None else self._scaled(validate_data(self, X, dtype=_DTYPES, reset=False))
        return plot(self.model_, x, **{"inputs": self._input_names(), **options})

    # What is different in each kind.

    _forms_of_y: dict[str, Any]

    def _targets(self, y: NDArray) -> tuple[NDArray, int, Loss | None]:
        """Return what the network is trained on, how many outputs it has, and its loss (None: squared)."""
        raise NotImplementedError

    def _strata(self, y: NDArray) -> NDArray | None:
        return None

    def _units(self) -> tuple[NDArray, NDArray]:
        """Return mean and scale that take the network's outputs to the units of y."""
        raise NotImplementedError

    def _one_output(self) -> bool:
        raise NotImplementedError
