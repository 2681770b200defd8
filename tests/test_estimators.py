"""KANRegressor and KANClassifier: scikit-learn's own checks, formulas in the units of the data, bad input."""

from __future__ import annotations

import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is a test extra")

from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_iris  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from harness import child  # noqa: E402
from kan_kernels import symbolic  # noqa: E402
from kan_kernels.estimators import KANClassifier, KANRegressor  # noqa: E402

RANDOM = np.random.default_rng(0)
# in units that are not the network's
X = np.stack((RANDOM.uniform(2.0, 7.0, 200), RANDOM.uniform(-300.0, 100.0, 200)), 1)
Y = 40 + 3 * np.sin(X[:, 0]) + 1e-3 * X[:, 1] ** 2
LIBRARY = ("x", "x^2", "sin", "exp")


@parametrize_with_checks([KANRegressor((), max_iter=2)])
def test_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.long
@parametrize_with_checks(
    [
        KANRegressor(max_iter=10),
        KANClassifier(max_iter=10),
        KANRegressor(solver="adam", batch_size=16, early_stopping=True, max_iter=300),
        KANRegressor(prune=True, max_iter=3, edge_threshold=0.0, node_threshold=0.0),
        KANClassifier(early_stopping=True, validation_fraction=0.3, max_iter=5),
        # thresholds as they come, at which nodes go and splines stay
        KANRegressor((), lamb=1e-3, formula=True, library=("x", "x^2", "sin"), max_iter=3),
        KANRegressor((2,), lamb=1e-2, prune=True, max_iter=3),
        KANRegressor((2,), lamb=1e-2, prune=True, formula=True, library=("x", "x^2"), max_iter=3),
        KANClassifier((), lamb=1e-3, formula=True, library=("x", "x^2"), max_iter=3),
        KANClassifier((2,), lamb=1e-2, prune=True, max_iter=3),
    ]
)
def test_checks_of_options(estimator: Any, check: Any) -> None:
    check(estimator)


def fitted(**options: Any) -> KANRegressor:
    return KANRegressor((), formula=True, library=LIBRARY, random_state=0, **options).fit(X, Y)


def test_formula_is_in_the_units_of_the_data() -> None:
    """It is the function that the data came from, and what predict computes."""
    import sympy

    model = fitted(max_iter=20)
    assert model.formula_report_.left == ()
    assert model.score(X, Y) > 1 - 1e-9
    formula = sympy.lambdify(sympy.symbols("x_1 x_2"), model.formula_)
    np.testing.assert_allclose(formula(*X.T), model.predict(X), rtol=1e-9)
    np.testing.assert_allclose(formula(*X.T), Y, rtol=1e-6)
    source: dict[str, Any] = {}
    exec(symbolic.to_python(model.symbolic_model_, module="numpy"), source)
    np.testing.assert_allclose(source["kan"](*X.T), Y, rtol=1e-6)


def test_formula_of_several_outputs_and_of_hidden_layers() -> None:
    import sympy

    y = np.stack((Y, np.exp(-X[:, 0]) + X[:, 1] / 300), 1)
    model = KANRegressor((), formula=True, library=LIBRARY, max_iter=10, random_state=0)
    model.fit(X, y)
    values = sympy.lambdify(sympy.symbols("x_1 x_2"), model.formula_)(*X.T)
    assert model.predict(X).shape == (200, 2)
    np.testing.assert_allclose(np.stack(values, 1), model.predict(X), rtol=1e-8, atol=1e-9)
    deep = KANRegressor(
        (2,),
        lamb=1e-3,
        prune=True,
        formula=True,
        library=LIBRARY,
        r2_threshold=0.0,
        max_iter=4,
        random_state=0,
    ).fit(X, Y)
    values = sympy.lambdify(sympy.symbols("x_1 x_2"), deep.formula_)(*X.T)
    np.testing.assert_allclose(values, deep.predict(X), rtol=1e-7)
    assert len(deep.history_) == 2 and deep.prune_report_.widths[0] == [2, 2, 1]


@pytest.mark.long
def test_formula_of_a_classifier() -> None:
    """Of two classes it is the logit; of three there are three."""
    import sympy

    label = np.where(np.median(Y) < Y, "high", "low")
    model = KANClassifier((), formula=True, library=LIBRARY, r2_threshold=0.0, max_iter=2, random_state=0)
    model.fit(X, label)
    logit = sympy.lambdify(sympy.symbols("x_1 x_2"), model.formula_)(*X.T)
    np.testing.assert_allclose(logit, model.decision_function(X), rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(model.predict_proba(X)[:, 1], 1 / (1 + np.exp(-logit)), rtol=1e-6, atol=1e-12)
    iris = load_iris(as_frame=True)
    three = KANClassifier((), formula=True, library=LIBRARY, r2_threshold=0.0, max_iter=2, random_state=0)
    three.fit(iris.data, iris.target_names[iris.target])
    assert len(three.formula_) == 3 and set(three.predict(iris.data)) == set(iris.target_names)
    assert {s.name for f in three.formula_ for s in f.free_symbols} <= set(iris.data.columns)
    assert three.score(iris.data, iris.target_names[iris.target]) > 0.9


@pytest.mark.parametrize("size", [1e160, 1e-170, 1e300])
def test_y_of_any_size(size: float) -> None:
    """Squares of y that leave float64 leave no trace."""
    x = np.linspace(-1, 1, 64)[:, None]
    model = KANRegressor((), max_iter=5, random_state=0).fit(x, x[:, 0] ** 2 * size)
    assert np.abs(model.predict(x) / size - x[:, 0] ** 2).max() < 1e-5


def test_splines_that_stay_are_said() -> None:
    """No formula is claimed where an edge has none."""
    with pytest.warns(
        UserWarning, match=r"formula: no function of the library explains 0\.9 of \d of 2 edges"
    ):
        model = KANRegressor((), formula=True, library=["x"], max_iter=5, random_state=0).fit(X, Y)
    assert not hasattr(model, "formula_")
    with pytest.raises(AttributeError, match="edges stayed splines"):
        model.formula_  # noqa: B018
    again = model.set_params(formula=False).fit(X, Y)
    with pytest.raises(AttributeError, match="fitted with formula=False"):
        again.formula_  # noqa: B018


def test_prune_and_plot() -> None:
    """A feature that says nothing loses its edges; names of a frame reach the picture."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"angle": X[:, 0], "noise": RANDOM.normal(size=200)})
    model = KANRegressor((2,), lamb=1e-2, prune=True, max_iter=15, random_state=0)
    model.fit(frame, np.sin(frame["angle"]))
    assert model.model_.layers[0].edge_mask is None or not model.model_.layers[0].edge_mask[1].any()
    assert model.score(frame, np.sin(frame["angle"])) > 0.999
    for data in (frame, None):
        figure = model.plot(data)
        assert {"angle", "noise"} <= {
            text.get_text() for text in figure.findobj() if hasattr(text, "get_text")
        }


def test_early_stopping_pipelines_and_search() -> None:
    """Noise ends the training early; the estimator is a step of a pipeline and of a grid search."""
    noisy = RANDOM.normal(size=200)
    stopped = KANRegressor(early_stopping=True, n_iter_no_change=3, max_iter=60, random_state=0).fit(X, noisy)
    assert stopped.history_[0].stopped == "early_stop" and stopped.n_iter_ < 60
    pipeline = make_pipeline(StandardScaler(), KANRegressor((), max_iter=5, random_state=0))
    assert cross_val_score(pipeline, X, Y, cv=3).min() > 0.99
    search = GridSearchCV(pipeline, {"kanregressor__grid_size": [1, 8]}, cv=2).fit(X, Y)
    assert search.best_params_ == {"kanregressor__grid_size": 8}


def test_repeats_and_pickles() -> None:
    """The same seed gives the same bits, whatever torch's global one is; float32 stays float32."""
    model = KANRegressor(max_iter=3, random_state=1)
    one, two = clone(model).fit(X, Y), clone(model).fit(X, Y)
    np.testing.assert_array_equal(one.predict(X), two.predict(X))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)).predict(X), one.predict(X))
    assert (clone(model).set_params(random_state=2).fit(X, Y).predict(X) != one.predict(X)).any()
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda _: clone(model).fit(X, Y).predict(X), range(8)))
    assert all((each == one.predict(X)).all() for each in many) and torch.equal(torch.get_rng_state(), state)
    low = clone(model).fit(X.astype(np.float32), Y)
    assert str(next(low.model_.parameters()).dtype) == "torch.float32"


@pytest.mark.parametrize(
    "options,error,match",
    [
        ({"max_iter": 0}, ValueError, "max_iter: got 0"),
        ({"hidden_layer_sizes": (3, 0)}, ValueError, r"hidden_layer_sizes\[1\]: got 0"),
        ({"hidden_layer_sizes": "5"}, TypeError, r"hidden_layer_sizes\[0\]: got '5'"),
        ({"lamb": -1.0}, ValueError, "lamb: got -1"),
        ({"prune": 1}, TypeError, "prune: got 1"),
        ({"r2_threshold": 2.0}, ValueError, "r2_threshold: got 2"),
        ({"solver": "sgd"}, ValueError, "solver: got 'sgd'"),
        ({"learning_rate": -1}, ValueError, "learning_rate: got -1"),
        ({"early_stopping": True, "validation_fraction": 2.0}, ValueError, "validation_fraction: got 2"),
        ({"device": "nowhere"}, ValueError, "device: got 'nowhere'"),
        ({"grid_size": 0}, ValueError, "grid_size: got 0"),
        ({"prune": True, "edge_threshold": 1e9, "max_iter": 1}, ValueError, "without edges"),
        ({"formula": True, "library": ["sine"]}, ValueError, "library: unknown function 'sine'"),
        ({"library": "sin"}, TypeError, "library: got 'sin'"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], match: str) -> None:
    """The argument is named, and what was fitted before still predicts."""
    model = KANRegressor((), max_iter=2, random_state=0).fit(X, Y)
    before, state = model.predict(X), set(vars(model))
    with pytest.raises(error, match=match), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.set_params(**options).fit(X[:, :1], Y)
    np.testing.assert_array_equal(model.predict(X), before)
    assert set(vars(model)) == state


@pytest.mark.parametrize("kind", [KANRegressor, KANClassifier])
def test_bad_data(kind: Any) -> None:
    """Strings, NaN and other shapes are scikit-learn's own errors; nothing is fitted by then."""
    y = (Y.mean() < Y).astype(int)
    for bad, match in (
        (np.array([["a", "b"]] * 200), "could not convert string to float|dtype='numeric' is not compatible"),
        (np.where(X > 6.9, np.nan, X), "Input X contains NaN"),
        (np.where(X > 6.9, np.inf, X), "Input X contains infinity"),
        (X[:, 0], "Expected 2D array, got 1D array"),
        (X[:-1], "inconsistent numbers of samples"),
    ):
        model = kind(max_iter=1)
        with pytest.raises(ValueError, match=match):
            model.fit(bad, y)
        with pytest.raises(NotFittedError):
            model.predict(X)
    model = kind(max_iter=1).fit(X, y)
    with pytest.raises(ValueError, match=r"X has 1 features, but .* is expecting 2"):
        model.predict(X[:, :1])
    with pytest.raises(ValueError, match="contains NaN"):
        kind(max_iter=1).fit(X, np.where(Y.mean() < Y, np.nan, 1.0))


def test_without_scikit_learn() -> None:
    """The package imports; the estimators say what they need."""
    child("""
import sys
sys.modules["sklearn"] = sys.modules["sklearn.base"] = None
import kan_kernels
try:
    import kan_kernels.estimators
except ModuleNotFoundError as error:
    assert "need scikit-learn: pip install scikit-learn" in str(error), error
else:
    raise AssertionError
""")
