"""What `discover` is given, checked: rows, names, shapes; the split into rows to fit and rows to judge."""

import keyword
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._core import checks
from ...data import CONSTANT, Dataset, _check_index, _numbered, _tensor_of, _unframed
from .joint import Loss, Rows
from .networks import Data

LEAST_ROWS, FITTED, JUDGED = 12, 2000, 4096
LARGEST = 1e60  # and the least is its inverse: of numbers whose squares are multiplied
# What rounding leaves of y, as a share of its size; below the second share a formula is exact.
_DOUBLE, _SINGLE = (1e-15, 1e-11), (1.0, 16.0)  # in float64; of the eps of other dtypes


def names_of(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Return the names of the inputs, identifiers."""
    names = checks.names("names", _numbered(count) if names is None else names, count, "input")
    for name in names:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"names: got {name!r}, expected identifiers, which formulas can be written with")
    return tuple(names)


class Given(NamedTuple):
    """A search's x and y in the units of the data, their names, and eps of what y was kept in, or None."""

    x: Any
    y: Any
    names: Sequence[str] | None
    eps: float | None


def given(x: Any, y: Any, names: Sequence[str] | None) -> Given:
    """Return the data and names of a data set or of data frames, and anything else as it is."""
    if not isinstance(x, Dataset):
        if y is None:
            raise TypeError("y: got None, expected what x is explained by; only a Dataset holds both")
        _check_index(x, y)
        x, called = _unframed("x", x)
        return Given(x, _unframed("y", y)[0], called if names is None else names, None)
    if y is not None:
        raise ValueError(f"y: got {type(y).__name__} beside a Dataset, expected None: it holds its own")
    rows, target = x.train
    eps = torch.finfo(target.dtype).eps
    rows, target = rows.double(), target.double()
    if x.normalizer is not None:
        rows = x.normalizer.undo(rows)
    if x.output_normalizer is not None:
        target = x.output_normalizer.undo(target)
    if x.normalizer is not None or x.output_normalizer is not None:
        eps *= 2  # rounded on the way there and back
    return Given(rows, target, x.names if names is None else names, eps)


def rows_of(x: Any, y: Any, loss: Loss | None) -> tuple[Tensor, Tensor, int, float]:
    """Return x (n, in) in float64, y as the loss takes it, the number of outputs, the eps of y's dtype."""
    x, y = _tensor("x", x), _tensor("y", y)
    if x.dim() == 1:
        x = x[:, None]
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (samples, inputs)")
    x = x.double()
    eps = torch.finfo(y.dtype).eps if y.is_floating_point() else 0.0
    if len(x) < LEAST_ROWS:
        raise ValueError(f"x: got {len(x)} samples, expected at least {LEAST_ROWS}")
    if y.dim() == 0 or len(y) != len(x):
        raise ValueError(f"y: got shape {tuple(y.shape)}, expected {len(x)} samples like x")
    for name, value in (("x", x), ("y", y)):
        if value.is_floating_point() and not value.isfinite().all():
            row = int((~value.isfinite()).nonzero()[0, 0])
            raise ValueError(f"{name}: sample {row} is not finite, expected no NaN or inf")
        _check_size(name, value.double().abs().reshape(len(value), -1).amax(0))
    flat = (x.amax(0) - x.amin(0) <= CONSTANT * x.abs().amax(0)).nonzero().flatten().tolist()
    if flat:
        raise ValueError(f"x: column {flat[0]} is constant, expected columns that vary; leave it out")
    classes = loss is not None and not y.is_floating_point()
    if classes and y.dim() == 1:
        if int(y.min()) < 0:
            raise ValueError(f"y: got the class {int(y.min())}, expected classes >= 0")
        return x, y.long(), int(y.max()) + 1, eps
    y = y.double()
    y = y[:, None] if y.dim() == 1 else y
    if y.dim() != 2 or y.shape[1] == 0:
        raise ValueError(f"y: got shape {tuple(y.shape)}, expected (samples,) or (samples, outputs)")
    if y.shape[1] > len(x) // 4:
        raise ValueError(f"y: got {y.shape[1]} outputs of {len(x)} samples, expected 4 samples an output")
    return x, y, y.shape[1], eps


def _check_size(name: str, sizes: Tensor) -> None:
    """Raise where squares would leave float64."""
    for column, size in enumerate(sizes.tolist()):
        if size and not 1 / LARGEST <= size <= LARGEST:
            raise ValueError(
                f"{name}: the largest number of column {column} is {size:.1e}, expected {1 / LARGEST:.0e} to "
                f"{LARGEST:.0e}; give it in other units"
            )


def _tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        try:
            value = _tensor_of(value)  # Python's numbers are float64
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor or an array") from None
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name}: got {value.dtype}, expected real numbers")
    return value.detach().cpu()


def split(x: Tensor, y: Tensor, outputs: int, eps: float, loss: Loss | None, seed: int) -> Data:
    """Return the data of a search: three of four rows are fitted, others judge, in the seed's order."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    judged = min(len(x) // 4, JUDGED)
    valid, fitted = order[:judged], order[judged : judged + FITTED]
    squared = loss is None
    floor, exact, rounding, exact_outputs = 0.0, 0.0, 1e-9, torch.zeros(outputs).double()
    if squared:
        double = eps < 1e-12
        if double:
            least, most = max(_DOUBLE[0], 4 * eps), _DOUBLE[1]
        else:
            least, most = (share * eps for share in _SINGLE)
            rounding = 8 * eps
        size = _size(y, double)
        floor, exact = (least * size) ** 2, most * size
        # of an output that is small beside another; one that is 0 has no size of its own
        exact_outputs = torch.tensor([most * _size(column, double) or exact for column in y.T]).double()
    train, check = (Rows(x[part], y[part], loss, floor, rounding) for part in (fitted, valid))
    low, high = train.x.amin(0), train.x.amax(0)
    half = torch.where(high > low, (high - low) / 2, torch.ones_like(low))
    mean, scale = torch.zeros(outputs).double(), torch.ones(outputs).double()
    if squared:
        mean, deviation = train.y.mean(0), train.y.std(0, correction=0)
        scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    elif loss is not None:
        check_loss(loss, train.y, outputs)
    return Data(train, check, (low + high) / 2, half, mean, scale, outputs, exact, exact_outputs)


def _size(y: Tensor, double: bool) -> float:
    """Return the size of y that rounding is a share of: in float64 what varies counts most."""
    size = float(y.square().mean().sqrt())
    return max(float((y - y.mean(0)).square().mean().sqrt()), 1e-2 * size) if double else size


def check_loss(loss: Loss, y: Tensor, outputs: int) -> None:
    """Raise what is wrong with a loss, before anything is trained."""
    prediction = torch.zeros(len(y), outputs, dtype=torch.float64, requires_grad=True)
    value = loss(prediction, y)
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss: got {what}, expected a function that returns a tensor of one number")
    if not value.requires_grad:
        raise ValueError("loss: its value has no gradient by the prediction, expected one")
    if not bool(value.isfinite()):
        raise ValueError("loss: is not finite where all predictions are 0")


def values_of(loss: Loss | None, y: Tensor, outputs: int) -> list[str]:
    """Return what a loss makes of some predictions, small and large, but for rounding; others differ."""
    if loss is None:
        return []
    told = []
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(len(y), outputs, dtype=torch.float64, generator=generator)
    for size in (0.0, 1.0, 1e3):
        try:
            with torch.no_grad():
                told.append(f"{float(loss(prediction * size, y)):.6g}")
        except ValueError as error:  # of a loss that knows what it is for
            told.append(type(error).__name__)
    return told
