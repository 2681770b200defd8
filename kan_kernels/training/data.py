"""Training data in the forms that users have them, as batches by step."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._core import checks
from ..data import Dataset
from ..inspection import check_data

GRID_SAMPLES = 4096  # rows of a loader that grid updates look at
FORMS = (
    "(x, y), {'train': (x, y), 'test': (x, y)}, pykan's or our dataset, or a DataLoader of (x, y) for a pair"
)


class TensorBatches:
    """All rows at once, or shuffled mini-batches, which depend on nothing but the seed and the step."""

    def __init__(self, name: str, pair: object, model: nn.Module, batch_size: int | None, seed: int) -> None:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"data: {name} is {type(pair).__name__}, expected {FORMS}")
        self.x, self.y = pair
        self.batch_size, self.seed, self._epoch = batch_size, seed, -1
        where = next(model.parameters())
        for part, value in (("x", self.x), ("y", self.y)):
            what = f"data: {name} {part}"
            if not isinstance(value, Tensor):
                raise TypeError(f"{what} is {type(value).__name__}, expected a torch.Tensor")
            if value.dim() == 0 or len(value) == 0:
                raise ValueError(f"{what} has shape {tuple(value.shape)}, expected at least one sample")
            if value.device != where.device:
                raise ValueError(f"{what} is on {value.device}, expected {where.device} like the model")
            if value.is_floating_point() and not value.isfinite().all():
                row = int((~value.isfinite()).nonzero()[0, 0])
                raise ValueError(f"{what} has a value that is not finite in sample {row}")
        if len(self.x) != len(self.y):
            raise ValueError(f"data: {name} has {len(self.x)} samples of x and {len(self.y)} of y")

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a step."""
        if self.batch_size is None or self.batch_size >= len(self.x):
            return self.x, self.y
        batches = -(-len(self.x) // self.batch_size)
        epoch, place = divmod(step, batches)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self._order = torch.randperm(len(self.x), generator=generator).to(self.x.device)
            self._epoch = epoch
        rows = self._order[place * self.batch_size : (place + 1) * self.batch_size]
        return self.x[rows], self.y[rows]

    def first(self) -> tuple[Tensor, Tensor]:
        """Return a batch to look at before the training."""
        return self.at(0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.x, self.y

    def sample(self) -> Tensor:
        """Return the x that grid updates look at."""
        return self.x


class LoaderBatches:
    """The batches of a loader, over and over; it shuffles as it likes."""

    def __init__(self, name: str, loader: Iterable, model: nn.Module) -> None:
        self.name, self.loader = name, loader
        self._iterator: Iterator[tuple[Tensor, Tensor]] = iter(())
        self.device = next(model.parameters()).device

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        batch = next(self._iterator, None)
        if batch is None:
            self._iterator = iter(self)
            batch = next(self._iterator, None)
            if batch is None:
                raise ValueError(f"data: the {self.name} loader is empty")
        return batch

    def first(self) -> tuple[Tensor, Tensor]:
        """Return a batch to look at before the training, which still starts with it."""
        batch = self.at(0)
        self._iterator = itertools.chain([batch], self._iterator)
        return batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loader:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise TypeError(
                    f"data: the {self.name} loader gave a {type(batch).__name__}, expected (x, y)"
                )
            x, y = batch
            yield x.to(self.device), y.to(self.device)

    def sample(self) -> Tensor:
        parts, rows = [], 0
        for x, _ in self:
            parts.append(x.flatten(0, -2))
            rows += len(parts[-1])
            if rows >= GRID_SAMPLES:
                break
        return torch.cat(parts)


class Points:
    """The points of an objective that is a function of the model: all of them at every step.

    They are the input rows of its KAN, which penalties and changes of grids look at, or None; or a function
    of the model returns them, at the start and where `draw` is called.
    """

    def __init__(self, model: nn.Module, layer: Any, given: object) -> None:
        self.model, self.layer = model, layer
        self.function: Callable[[nn.Module], Any] | None = given if callable(given) else None
        self.x = None if self.function else self._checked(given)

    def _checked(self, x: Any) -> Tensor | None:
        if x is None:
            return None
        name = "points" if self.function is None else "points: returned x"
        try:
            if self.layer is not None:
                return check_data(x, self.layer)
            checks.tensor("x", x)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}{str(error).removeprefix('x')}") from None
        return x.detach()

    def draw(self) -> None:
        """Ask the function for other points."""
        if self.function is not None:
            with torch.enable_grad(), evaluating(self.model):
                x = self.function(self.model)
            if x is None:
                raise TypeError("points: returned None, expected a tensor of points")
            self.x = self._checked(x)

    def at(self, step: int) -> Any:
        """Return the points, and the None that is y."""
        return self.x, None

    def first(self) -> Any:
        if self.x is None:
            self.draw()
        return self.at(0)

    def __iter__(self) -> Iterator[Any]:
        yield self.at(0)

    def sample(self) -> Any:
        """Return the x that grid updates look at."""
        return self.x


Batches = TensorBatches | LoaderBatches | Points


def split(
    data: object, model: nn.Module, batch_size: int | None, seed: int
) -> tuple[Batches, Batches | None]:
    """Return the training batches, and the test data, if there are any.

    Raises:
        TypeError, ValueError: `data` has none of the FORMS, or holds empty, mismatched or non-finite tensors.
    """
    if isinstance(data, Dataset):
        data = data.parts
    train, test = data, None
    if isinstance(data, Mapping):
        if "train_input" in data:
            parts = [part for part in ("train", "test") if f"{part}_input" in data]
            for part in parts:
                if f"{part}_label" not in data:
                    raise ValueError(f"data: got a dict without '{part}_label', expected {FORMS}")
            data = {part: (data[f"{part}_input"], data[f"{part}_label"]) for part in parts}
        unknown = set(data) - {"train", "test"}
        if "train" not in data or unknown:
            raise ValueError(f"data: got a dict with the keys {sorted(map(str, data))}, expected {FORMS}")
        train, test = data["train"], data.get("test")
    batches = _batches("train", train, model, batch_size, seed)
    return batches, None if test is None else _batches("test", test, model, None, seed)


def _batches(name: str, part: Any, model: nn.Module, batch_size: int | None, seed: int) -> Batches:
    if isinstance(part, (tuple, list)) or not isinstance(part, Iterable) or isinstance(part, Tensor):
        return TensorBatches(name, part, model, batch_size, seed)
    if batch_size is not None:
        raise ValueError(f"batch_size: got {batch_size}, but the {name} loader has its own; expected None")
    return LoaderBatches(name, part, model)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def measure(
    model: nn.Module, batches: Batches, functions: Mapping[str, Callable[[Tensor, Tensor], Any]]
) -> dict[str, float]:
    """Return functions of (prediction, y) on all batches, in eval mode.

    The loss, of the name "", is the mean over rows of that of the batches. Metrics see all rows at once, so
    that their predictions are held.
    """
    loss, total, rows, seen = functions.get(""), 0.0, 0, []
    metrics = {name: function for name, function in functions.items() if name}
    with evaluating(model):
        for x, y in batches:
            prediction = model(x)
            rows += len(x)
            if loss is not None:
                total += _number(loss(prediction, y), "loss") * len(x)
            if metrics:
                seen.append((prediction, y))
    values = {} if loss is None else {"": total / rows}
    if metrics:
        try:
            prediction, y = seen[0] if len(seen) == 1 else map(torch.cat, zip(*seen, strict=True))
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                "metrics: see all rows of a loader at once, expected predictions and y of its batches that "
                f"are tensors of one shape but for the rows: {error}"
            ) from error
        values |= {name: _number(of(prediction, y), f"metrics[{name!r}]") for name, of in metrics.items()}
    return values


def _number(value: Any, what: str) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{what}: returned shape {tuple(value.shape)}, expected one number")
    return float(value)
