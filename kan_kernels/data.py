"""Data sets with names and units: split, standardised, and taken by fit, plot and formula as they are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._core import checks

CONSTANT = 1e-12  # the spread of a column, in its size, up to which it is rounding


class Normalizer(NamedTuple):
    """A pair (mean, std) of a data set's columns; what a model sees is (x - mean) / std.

    Attributes:
        mean, std: (columns,) float64.

    Example:
        >>> Normalizer(torch.tensor([1.0]), torch.tensor([2.0])).apply(torch.tensor([[5.0]])).item()
        2.0
    """

    mean: Tensor
    std: Tensor

    def apply(self, values: Tensor) -> Tensor:
        """Return (values - mean) / std, for values (..., columns) in the units of the data.

        Computed in float64, as those of the data set were; whole numbers become torch's default dtype.
        """
        wide = (values.double() - self.mean.to(values.device)) / self.std.to(values.device)
        return wide.to(_floating_dtype(values))

    def undo(self, values: Tensor) -> Tensor:
        """Return values * std + mean: `apply` backwards."""
        wide = values.double() * self.std.to(values.device) + self.mean.to(values.device)
        return wide.to(_floating_dtype(values))


@dataclass(frozen=True)
class Dataset:
    """A data set as models see it, and what leads back to the data: names and units.

    `fit(model, data)`, `plot(model, data)`, `formula(model, data=data)` and `discover(data)` take it, as do
    `prune` and all that takes x, given `data.train[0]`. New data go through `normalizer.apply` before the
    model, and its output through `output_normalizer.undo`, where there are any; `formula` folds both into its
    constants.

    Attributes:
        train: (x, y), x (rows, in) and y (rows, out); standardised where there are normalizers.
        test: the same of the rows that were held out, or None.
        names, output_names: of the columns of x and y.
        normalizer, output_normalizer: what x and y were standardised by, from the training rows; or None.

    Example:
        >>> data = from_arrays(torch.rand(10, 2), torch.rand(10), names=["mass", "speed"])
        >>> data.names, data.output_names, len(data.train[0]), len(data.test[0])
        (('mass', 'speed'), ('y',), 8, 2)
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor] | None
    names: tuple[str, ...]
    output_names: tuple[str, ...]
    normalizer: Normalizer | None = None
    output_normalizer: Normalizer | None = None

    def select(self, kept: Sequence[int]) -> "Dataset":
        """Return the data set with these columns of x alone, such as those that `prune_inputs` kept.

        Args:
            kept: the columns that stay, in their order.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        count = len(self.names)
        columns = [checks.integer("kept: column", i, 0, count - 1) for i in kept]
        if not columns or len(set(columns)) != len(columns):
            raise ValueError(f"kept: got {columns}, expected at least one column, and each once")
        normalizer = self.normalizer
        if normalizer is not None:
            normalizer = Normalizer(normalizer.mean[columns], normalizer.std[columns])
        return replace(
            self,
            train=(self.train[0][:, columns], self.train[1]),
            test=None if self.test is None else (self.test[0][:, columns], self.test[1]),
            names=tuple(self.names[i] for i in columns),
            normalizer=normalizer,
        )

    @property
    def parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return {"train": (x, y)}, and "test" where there are test data."""
        return {"train": self.train} if self.test is None else {"train": self.train, "test": self.test}


def from_arrays(
    x: Any,
    y: Any,
    *,
    names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    test: float = 0.2,
    standardize: bool = False,
    standardize_outputs: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Return a data set of arrays, tensors or data frames: checked, split, and standardised on demand.

    Args:
        x: (rows, in) numbers: whatever numpy.asarray takes, a tensor, or a data frame.
        y: (rows, out) or (rows,) likewise, or a column of a data frame.
        names, output_names: of the columns; by default those of the data frame, or x_1, x_2, ... and y (y_1,
            y_2, ... of several).
        test: share of the rows that is held out, drawn by the seed, at least one row; 0 holds out none.
        standardize, standardize_outputs: subtract the mean of each column of x, or of y, and divide by its
            standard deviation, both of the training rows.
        seed: of the split.
        device, dtype: of the tensors; torch's defaults.

    Raises:
        TypeError, ValueError: naming the argument, and the row and column of a value that is not finite; a
            column that does not vary cannot be standardised.

    Example:
        >>> data = from_arrays([[1.0], [2.0], [4.0], [5.0]], [1, 2, 4, 5], test=0.25, standardize=True)
        >>> data.train[0].shape, float(data.train[0].mean().abs()) < 1e-6
        (torch.Size([3, 1]), True)
    """
    test = checks.nonnegative("test", test, 1.0)
    seed = checks.integer("seed", seed, 0)
    standardize = checks.boolean("standardize", standardize)
    standardize_outputs = checks.boolean("standardize_outputs", standardize_outputs)
    _check_index(x, y)
    inputs, found = _columns("x", x)
    outputs, called = _columns("y", y)
    rows = len(inputs)
    if rows != len(outputs):
        raise ValueError(f"y: got {len(outputs)} rows, expected {rows} as x has")
    if rows == 0 or (test > 0 and rows < 2):
        raise ValueError(f"x: got {rows} rows, expected at least {2 if test > 0 else 1}")
    default = ["y"] if outputs.shape[1] == 1 else [f"y_{o + 1}" for o in range(outputs.shape[1])]
    given = found or _numbered(inputs.shape[1]) if names is None else names
    names = checks.names("names", given, inputs.shape[1])
    output_names = checks.names(
        "output_names", called or default if output_names is None else output_names, outputs.shape[1]
    )
    for what, values, columns in (("x", inputs, names), ("y", outputs, output_names)):
        _check_finite(what, values, columns)
    train, rest = _split(rows, test, seed)
    normalizer = _normalizer("x", inputs[train], names) if standardize else None
    output_normalizer = _normalizer("y", outputs[train], output_names) if standardize_outputs else None
    inputs = inputs if normalizer is None else normalizer.apply(inputs)
    outputs = outputs if output_normalizer is None else output_normalizer.apply(outputs)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    checks.dtype(dtype)
    inputs, outputs = inputs.to(dtype), outputs.to(dtype)
    for what, values, columns in (("x", inputs, names), ("y", outputs, output_names)):
        _check_finite(what, values, columns, f" as {dtype}")
    place = torch.get_default_device() if device is None else device
    parts = [(inputs[which].to(place), outputs[which].to(place)) for which in (train, rest)]
    return Dataset(
        train=parts[0],
        test=parts[1] if len(rest) else None,
        names=tuple(names),
        output_names=tuple(output_names),
        normalizer=normalizer,
        output_normalizer=output_normalizer,
    )


def from_function(
    function: Callable[[Tensor], Tensor],
    ranges: Sequence[tuple[float, float]] | Mapping[str, tuple[float, float]],
    *,
    rows: int = 1000,
    noise: float = 0.0,
    seed: int = 0,
    test: float = 0.5,
    **options: Any,
) -> Dataset:
    """Return a data set of a function, on points drawn evenly from a box.

    Args:
        function: of x (rows, in) float64, returns y (rows,) or (rows, out).
        ranges: (low, high) of each input; {name: (low, high)} names them.
        rows: how many points, test points included.
        noise: normal noise on y of this share of its standard deviation, on the training rows alone.
        seed: of points, noise and split.
        test: share of the rows that is held out.
        options: names, output_names, standardize, standardize_outputs, device, dtype, as for `from_arrays`.

    Raises:
        TypeError, ValueError: naming the argument; a function that returns something else, or a value that is
            not finite.

    Example:
        >>> data = from_function(lambda x: x[:, 0] * x[:, 1], {"m": (0, 1), "v": (-1, 1)}, rows=100)
        >>> data.names, data.train[0].shape
        (('m', 'v'), torch.Size([50, 2]))
    """
    rows = checks.integer("rows", rows, 1)
    noise = checks.nonnegative("noise", noise)
    seed = checks.integer("seed", seed, 0)
    if not callable(function):
        raise TypeError(f"function: got {function!r}, expected a function of x (rows, in)")
    if isinstance(ranges, Mapping):
        options.setdefault("names", list(ranges))
        ranges = list(ranges.values())
    bounds = [checks.interval(f"ranges[{i}]", pair) for i, pair in enumerate(ranges)]
    if not bounds:
        raise ValueError("ranges: got none, expected (low, high) of at least one input")
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor(bounds, dtype=torch.float64).unbind(1)
    x = torch.lerp(low, high, torch.rand(rows, len(bounds), dtype=torch.float64, generator=generator))
    with torch.no_grad():
        y = function(x.clone())
    if not isinstance(y, Tensor) or y.dim() not in (1, 2) or len(y) != rows:
        what = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"function: returned {what}, expected a tensor ({rows},) or ({rows}, out)")
    y = y.detach().double().reshape(rows, -1)
    if noise:
        train, _ = _split(rows, checks.nonnegative("test", test, 1.0), seed)
        deviation = noise * y.std(0, correction=0)
        more = deviation * torch.randn(y[train].shape, dtype=y.dtype, generator=generator)
        y = y.index_add(0, train, more)  # a copy: y may be a tensor of the function's own
    return from_arrays(x, y, seed=seed, test=test, **options)


def _split(rows: int, test: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the training rows and the others, in their order."""
    held = min(rows - 1, max(1, round(test * rows))) if test > 0 else 0
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return order[: rows - held].sort().values, order[rows - held :].sort().values


def _floating_dtype(values: Tensor) -> torch.dtype:
    return values.dtype if values.is_floating_point() else torch.get_default_dtype()


def _tensor_of(values: Any) -> Tensor:
    """Return an array, or a list, as a tensor of its own: arrays of any strides and byte order."""
    if np.ma.is_masked(np.ma.asarray(values)):
        raise ValueError("masked values; leave their rows out, or fill them")
    array = np.asarray(values)
    if array.dtype.kind in "iufc":
        array = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
    return torch.as_tensor(array)


def _check_index(x: Any, y: Any) -> None:
    """Raise ValueError where two data frames, or columns of them, have their rows in different orders."""
    a: Any = getattr(x, "index", None)
    b: Any = getattr(y, "index", None)
    if hasattr(a, "equals") and hasattr(b, "equals") and not a.equals(b):
        raise ValueError("y: its index is not that of x, expected the same rows in the same order")


def _numbered(count: int) -> list[str]:
    """Return x_1, x_2, ..., the names of columns that have none."""
    return [f"x_{i + 1}" for i in range(count)]


def _unframed(argument: str, values: Any) -> tuple[Any, list[str] | None]:
    """Return the array of a data frame, or of a column of one, and its names; anything else as it is."""
    called: list[str] | None = None
    if hasattr(values, "to_numpy") and not isinstance(values, Tensor):  # of pandas, polars and others
        columns = getattr(values, "columns", None)
        single = getattr(values, "name", None)
        if columns is not None:
            called = [str(column) for column in columns]
        elif single is not None:
            called = [str(single)]
        values = values.to_numpy()
        if values.dtype == object and called is not None and values.ndim == 2:  # columns of several dtypes
            columns = zip(called, values.T, strict=True)
            values = np.stack([_column(argument, name, column) for name, column in columns], 1)
    return values, called


def _column(argument: str, name: str, values: NDArray) -> NDArray:
    """Return a column of a data frame in float64; bools are 0 and 1."""
    for value in values:
        if not isinstance(value, (Real, np.bool_)):
            raise TypeError(f"{argument}: column {name!r} holds {value!r}, expected numbers")
    return values.astype(np.float64)


def _columns(argument: str, values: Any) -> tuple[Tensor, list[str] | None]:
    """Return (rows, columns) float64 on the CPU, and the names that a data frame gives its columns."""
    values, called = _unframed(argument, values)
    expected = "an array, a tensor or a data frame of numbers"
    try:
        found = values.detach() if isinstance(values, Tensor) else _tensor_of(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{argument}: got {type(values).__name__} ({error}), expected {expected}") from None
    if found.is_complex():
        raise TypeError(f"{argument}: got {found.dtype}, expected {expected}")
    if found.dim() == 1:
        found = found[:, None]
    if found.dim() != 2 or found.shape[1] == 0:
        raise ValueError(f"{argument}: got shape {tuple(found.shape)}, expected (rows, columns)")
    return found.to("cpu", torch.float64), called


def _check_finite(argument: str, values: Tensor, names: Sequence[str], told: str = "") -> None:
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"{argument}: row {row} of column {names[column]!r} is {float(values[row, column])}{told}, "
            "expected finite numbers"
        )


def _normalizer(argument: str, values: Tensor, names: Sequence[str]) -> Normalizer:
    mean, std = values.mean(0), values.std(0, correction=0)
    # a column whose spread is rounding error does not vary
    flat = std <= CONSTANT * values.abs().amax(0)
    if flat.any():
        which = ", ".join(repr(names[i]) for i in flat.nonzero().flatten().tolist())
        raise ValueError(
            f"{argument}: column {which} does not vary on the {len(values)} training rows, expected columns "
            "that vary; leave it out, or do not standardise"
        )
    return Normalizer(mean, std)
