"""Data sets: checked, split, standardised; names and units reach fit, plot and formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kan_kernels import KAN, KANLinear, data, symbolic
from kan_kernels.training import fit

F64 = torch.float64


class Frame:
    """What a data frame of pandas or polars looks like."""

    def __init__(self, values: Any, columns: list[str] | None = None, name: str | None = None) -> None:
        self.values = np.asarray(values)
        if columns is not None:
            self.columns = columns
        if name is not None:
            self.name = name

    def to_numpy(self) -> np.ndarray:
        return self.values


def test_split_is_a_partition() -> None:
    """Every row is in one of the parts, in its order, beside its own y; another seed splits otherwise."""
    x = np.arange(20.0).reshape(10, 2)
    made = data.from_arrays(x, 10 * x[:, 0], test=0.3, dtype=F64)
    assert made.test is not None and [len(made.train[0]), len(made.test[0])] == [7, 3]
    rows = torch.cat([made.train[0], made.test[0]])
    assert torch.equal(rows.sort(0).values, torch.from_numpy(x))
    for part in made.parts.values():
        assert torch.equal(part[1], 10 * part[0][:, :1])
        assert (part[0].diff(dim=0) > 0).all()
    other = data.from_arrays(x, x[:, 0], test=0.3, seed=1, dtype=F64)
    assert not torch.equal(other.train[0], made.train[0])
    assert data.from_arrays(x, x, test=0).test is None


def test_standardised_by_the_training_rows() -> None:
    """Mean 0 and deviation 1 on the training rows; undo gives the data back; NumPy's numbers agree."""
    generator = np.random.default_rng(0)
    x, y = 1e6 + 3 * generator.normal(size=(50, 2)), generator.normal(size=50) - 7
    made = data.from_arrays(x, y, standardize=True, standardize_outputs=True, dtype=F64)
    plain = data.from_arrays(x, y, dtype=F64)
    assert made.normalizer is not None and made.output_normalizer is not None and made.test is not None
    torch.testing.assert_close(made.train[0].mean(0), torch.zeros(2, dtype=F64), atol=1e-9, rtol=0)
    torch.testing.assert_close(made.train[0].std(0, correction=0), torch.ones(2, dtype=F64))
    assert made.normalizer.std.numpy() == pytest.approx(plain.train[0].numpy().std(0), rel=1e-10)
    torch.testing.assert_close(made.normalizer.undo(made.test[0]), plain.test[0], rtol=1e-14, atol=0)
    torch.testing.assert_close(made.output_normalizer.undo(made.train[1]), plain.train[1])
    # in float32 the mean of 1e6 is subtracted first, in float64
    single = data.from_arrays(x, y, standardize=True, dtype=torch.float32)
    torch.testing.assert_close(single.train[0].double(), made.train[0], rtol=1e-6, atol=1e-7)


def test_names_of_data_frames() -> None:
    """Columns of a frame and the name of a series; given names come first; numbers without any."""
    values = np.random.default_rng(0).normal(size=(6, 2))
    made = data.from_arrays(Frame(values, ["mass", "speed"]), Frame(values[:, 0], name="energy"))
    assert made.names == ("mass", "speed") and made.output_names == ("energy",)
    assert data.from_arrays(Frame(values, ["a", "b"]), values, names=["u", "v"]).names == ("u", "v")
    plain = data.from_arrays(values, values)
    assert plain.names == ("x_1", "x_2") and plain.output_names == ("y_1", "y_2")


def test_pandas() -> None:
    """The real thing, where it is installed."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"mass": [1.0, 2.0, 4.0], "speed": [0, 1, 5], "energy": [0.0, 1.0, 50.0]})
    made = data.from_arrays(frame[["mass", "speed"]], frame["energy"], test=0)
    assert made.names == ("mass", "speed") and made.output_names == ("energy",)
    assert made.train[0].tolist() == [[1.0, 0.0], [2.0, 1.0], [4.0, 5.0]]
    frame["heavy"] = frame["mass"] > 1.5
    assert data.from_arrays(frame, [1, 2, 3], test=0).train[0][:, 3].tolist() == [0, 1, 1]
    frame["name"] = ["a", "b", "c"]
    with pytest.raises(TypeError, match="x: column 'name' holds 'a', expected numbers"):
        data.from_arrays(frame, [1, 2, 3])


def test_whole_numbers_and_units() -> None:
    """A mean is no whole number where the data are."""
    units = data.Normalizer(torch.tensor([1.5]), torch.tensor([0.5]))
    assert units.apply(torch.tensor([[5], [2]])).tolist() == [[7.0], [1.0]]
    assert units.undo(torch.tensor([[7], [1]])).tolist() == [[5.0], [2.0]]
    assert units.apply(torch.tensor([[5.0]], dtype=F64)).dtype == F64


def test_from_function() -> None:
    """Points in the box, exact test data, noise of the size that was asked for on the training rows."""
    ranges = {"m": (1.0, 2.0), "v": (-3.0, 3.0)}
    made = data.from_function(lambda x: x[:, 0] * x[:, 1] ** 2, ranges, rows=4000, noise=0.1, dtype=F64)
    (x, y), (tx, ty) = made.train, made.test or made.train
    assert made.names == ("m", "v") and len(x) == len(tx) == 2000
    assert torch.cat([x, tx]).amin(0).tolist() == pytest.approx([1, -3], abs=0.01)
    assert torch.equal(ty[:, 0], tx[:, 0] * tx[:, 1] ** 2)
    clean = x[:, 0] * x[:, 1] ** 2
    assert float((y[:, 0] - clean).std() / clean.std()) == pytest.approx(0.1, rel=0.1)
    own = torch.arange(10, dtype=F64)
    data.from_function(lambda _: own, ranges, rows=10, noise=0.5)
    assert own.tolist() == list(range(10)), "the function's own tensor gets no noise"
    again = data.from_function(lambda x: x[:, 0] * x[:, 1] ** 2, ranges, rows=4000, noise=0.1, dtype=F64)
    assert torch.equal(again.train[1], y)


def test_a_formula_in_the_units_of_the_data() -> None:
    """fit, auto and polish on standardised data: formula, source and function speak of the data itself."""
    pytest.importorskip("sympy")
    law = lambda x: 300 - 0.02 * x[:, 0] ** 2  # noqa: E731
    ranges = {"speed": (100.0, 200.0)}
    options: dict[str, Any] = {"standardize": True, "standardize_outputs": True, "dtype": F64}
    made = data.from_function(law, ranges, rows=200, **options)
    layer = KANLinear(1, 1, dtype=F64)
    fit(layer, made, steps=5)
    symbolic.fix(layer, 0, 0, "x^2", made.train[0])
    symbolic.polish(layer, *made.train)
    assert symbolic.formula(layer, data=made, digits=4)[0].free_symbols.pop().name == "speed"
    points = np.linspace(100, 200, 9)
    (values,) = symbolic.to_function(layer, data=made)(points)
    assert values == pytest.approx(300 - 0.02 * points**2, rel=1e-9)
    source: dict[str, Any] = {}
    exec(symbolic.to_python(layer, data=made), source)
    assert source["kan"](150.0) == pytest.approx(300 - 0.02 * 150**2, rel=1e-9)
    assert "speed" in symbolic.latex(layer, data=made)[0]
    inputs, outputs = made.normalizer, made.output_normalizer
    (by_hand,) = symbolic.to_function(layer, normalizer=inputs, output_normalizer=outputs)(points)
    assert by_hand.tolist() == values.tolist()
    (inner,) = symbolic.to_function(layer)((points - inputs.mean.numpy()) / inputs.std.numpy())
    assert values == pytest.approx(inner * float(outputs.std) + float(outputs.mean), rel=1e-12)


def test_rounding_takes_no_input_away() -> None:
    """A factor that is tiny in the units of the data is not rounded to a formula without the input."""
    pytest.importorskip("sympy")
    layer = KANLinear(1, 1)
    symbolic.fix(layer, 0, 0, "x", params=(1, 0, 1, 0))
    with pytest.raises(ValueError, match="digits: got 4, but so few decimals leave nothing of 'mass'"):
        symbolic.formula(layer, ["mass"], digits=4, normalizer=(1e6, 1e6))
    (kept,) = symbolic.formula(layer, ["mass"], digits=8, normalizer=(1e6, 1e6))
    assert str(kept) == "1.0e-6*mass - 1"


def test_plot_and_select() -> None:
    """plot takes the data set with its names; select leaves columns out, with names and units."""
    pytest.importorskip("matplotlib")
    from kan_kernels.plotting import plot

    x = np.random.default_rng(0).normal(size=(20, 3))
    made = data.from_arrays(x, x[:, 0], names=["a", "b", "c"], standardize=True)
    texts = {text.get_text() for text in plot(KAN([3, 1]), made).axes[0].texts}
    assert {"a", "b", "c", "y"} <= texts
    part = made.select([2, 0])
    assert part.names == ("c", "a") and torch.equal(part.train[0], made.train[0][:, [2, 0]])
    assert part.normalizer is not None and made.normalizer is not None
    assert torch.equal(part.normalizer.mean, made.normalizer.mean[[2, 0]])
    with pytest.raises(ValueError, match="kept: got"):
        made.select([0, 0])


X = [[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]]
BAD: dict[str, tuple[Any, str]] = {
    "NaN": (lambda: data.from_arrays([[1.0, 2.0], [3.0, np.nan]], [1, 2]), "x: row 1 of column 'x_2' is nan"),
    "inf in y": (lambda: data.from_arrays(X, [1, np.inf, 2]), "y: row 1 of column 'y' is inf"),
    "float32": (
        lambda: data.from_arrays([[1.0], [1e39]], [1, 2], dtype=torch.float32),
        "x: row 1 .* as torch",
    ),
    "constant": (
        lambda: data.from_arrays([[1.0, 2.0], [1.0, 4.0], [1.0, 3.0]], [1, 2, 3], standardize=True),
        "x: column 'x_1' does not vary",
    ),
    "constant y": (
        lambda: data.from_arrays(X, [2, 2, 2], standardize_outputs=True),
        "y: column 'y' does not",
    ),
    "one sample": (lambda: data.from_arrays([[1.0]], [1]), "x: got 1 rows, expected at least 2"),
    "none": (lambda: data.from_arrays(np.zeros((0, 2)), []), "x: got 0 rows"),
    "rows": (lambda: data.from_arrays(X, [1, 2]), "y: got 2 rows, expected 3"),
    "text": (lambda: data.from_arrays([["a"], ["b"]], [1, 2]), "x: got list"),
    "complex": (lambda: data.from_arrays([[1j], [2]], [1, 2]), "x: got torch.complex128"),
    "cube": (lambda: data.from_arrays(np.zeros((2, 2, 2)), [1, 2]), r"x: got shape \(2, 2, 2\)"),
    "names": (lambda: data.from_arrays(X, [1, 2, 3], names=["a"]), "names: got"),
    "twice": (lambda: data.from_arrays(Frame(X, ["a", "a"]), [1, 2, 3]), "names: got"),
    "share": (lambda: data.from_arrays(X, [1, 2, 3], test=1.5), "test: got 1.5"),
    "range": (lambda: data.from_function(lambda x: x, [(1, 0)]), r"ranges\[0\]: got"),
    "no range": (lambda: data.from_function(lambda x: x, []), "ranges: got none"),
    "shape": (lambda: data.from_function(lambda x: x.sum(), [(0, 1)]), "function: returned shape"),
    "log": (lambda: data.from_function(lambda x: x.log(), [(-1, 1)]), "y: row .* is nan"),
    "normalizer": (lambda: symbolic.formula(_line(), normalizer=(0.0, 0.0)), "normalizer: got"),
    "pairs": (lambda: symbolic.formula(_line(), normalizer=3), "normalizer: got 3"),
    "data": (lambda: symbolic.formula(_line(), data={"train": 1}), "data: got dict"),
}


def _line() -> KANLinear:
    layer = KANLinear(1, 1)
    symbolic.fix(layer, 0, 0, "x", params=(1, 0, 1, 0))
    return layer


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    """Is an error that names the argument."""
    call, message = BAD[case]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_new_data_are_standardised_as_the_data_set_was() -> None:
    """Whole numbers that float32 does not hold, back and forth."""
    x = torch.randint(1_700_000_000, 1_700_000_400, (100, 1))
    made = data.from_arrays(x, x[:, 0] - 1_700_000_000, standardize=True, standardize_outputs=True, test=0)
    assert torch.equal(made.normalizer.apply(x), made.train[0])
    wide = made.normalizer.undo(made.train[0].double())
    torch.testing.assert_close(wide, x.double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("argument", ["x", "y"])
def test_what_is_masked_is_no_number(argument: str) -> None:
    """A masked array's numbers under the mask are nobody's; without a masked one it is an array."""
    values = np.ma.masked_array(np.arange(10.0), mask=np.arange(10) == 7)
    whole = np.ma.masked_array(np.arange(10.0))
    for masked in (values, [values, values]):
        rows = np.arange(float(len(masked)))
        with pytest.raises(TypeError, match=rf"{argument}: got .*masked values"):
            data.from_arrays(*((masked, rows) if argument == "x" else (rows, masked)), test=0)
    made = data.from_arrays(whole, whole, test=0)
    assert made.train[0].flatten().tolist() == made.train[1].flatten().tolist() == list(range(10))


def test_arrays_of_any_layout() -> None:
    """Flipped, in another byte order, read only; columns of a frame in another order."""
    x, y = np.random.default_rng(0).random((6, 2)), np.arange(6.0)
    fixed = x.copy()
    fixed.flags.writeable = False
    for form in (x[::-1][::-1], x.astype(">f8"), np.asfortranarray(x), fixed):
        assert np.array_equal(
            data.from_arrays(form, y, test=0).train[0].double().numpy(), x.astype(np.float32)
        )


def test_frames_whose_rows_are_in_another_order() -> None:
    """Rows are paired by position, so that the index has to agree."""
    pandas = pytest.importorskip("pandas", reason="a data frame is pandas'")
    frame = pandas.DataFrame({"a": [1.0, 2.0, 3.0], "b": [4.0, 6.0, 5.0], "y": [1.0, 2.0, 3.0]})
    made = data.from_arrays(frame[["b", "a"]], frame["y"], test=0)
    assert made.names == ("b", "a") and made.train[0][0].tolist() == [4.0, 1.0]
    with pytest.raises(ValueError, match="y: its index is not that of x"):
        data.from_arrays(frame[["a"]], frame["y"].sort_values(ascending=False), test=0)
