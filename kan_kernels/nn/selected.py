"""A model on some of the inputs of another one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._core import checks


class SelectedInputs(nn.Module):
    """A model of some columns of x, called with all of them: what `prune_inputs` made, in place of the whole.

    Only the columns that stay are looked at; the others may hold anything. Scores, pictures and formulas take
    it as it is; what changes the number of nodes goes on with `model` and `select(x)`.

    Args:
        model: maps (..., columns that stay) to y.
        kept: the columns that stay, such as `report.kept[0]`, in the order of the model's inputs.
        in_features: how many columns x has, such as `report.widths[0][0]`.
        names: of all columns.

    Attributes:
        model: the model. kept: buffer, int64. in_features: as given.
        column_names: of all columns, or None.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> whole = SelectedInputs(nn.Linear(1, 1), [1], in_features=3, names=["a", "b", "c"])
        >>> whole(torch.zeros(4, 3)).shape, whole.names
        (torch.Size([4, 1]), ['b'])
    """

    kept: Tensor

    def __init__(
        self, model: nn.Module, kept: Sequence[int], in_features: int, names: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
        self.in_features = in_features = checks.integer("in_features", in_features, 1)
        columns = [checks.integer("kept: input", i, 0, in_features - 1) for i in kept]
        if not columns or len(set(columns)) != len(columns):
            raise ValueError(f"kept: got {columns}, expected at least one column, and each once")
        called = None if names is None else checks.names("names", names, in_features, "input")
        self.column_names = called
        self.model = model
        where = next(model.parameters(), torch.empty(0)).device
        self.register_buffer("kept", torch.tensor(columns, device=where))

    @property
    def names(self) -> list[str] | None:
        """Return the names of the columns that stay, in the order of the model's inputs."""
        return None if self.column_names is None else [self.column_names[i] for i in self.kept.tolist()]

    def select(self, x: Tensor) -> Tensor:
        """Return the columns of x (..., in_features) that the model takes."""
        checks.rows(x, self.in_features)
        return x.index_select(-1, self.kept)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in_features) to what the model makes of its columns."""
        return self.model(self.select(x))

    def extra_repr(self) -> str:
        return f"{self.kept.numel()} of {self.in_features} inputs"
