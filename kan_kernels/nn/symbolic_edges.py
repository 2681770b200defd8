"""SymbolicEdges: the edges of a layer that have a formula, as a module that the layer adds to its splines."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._core import checks
from . import function_library as library


class Edge(NamedTuple):
    """A symbolic edge: phi(x) = c f(a x + b) + d from an input to an output.

    Attributes:
        input, output: the edge.
        name: of f in the library.
        affine: (a, b, c, d).
        mask: what the layer's edge mask held before, which `unfix` restores.

    Example:
        >>> Edge(0, 0, "cos", (2.0, 0.0, 1.0, 0.5)).curve(torch.zeros(1))
        tensor([1.5000])
    """

    input: int
    output: int
    name: str
    affine: tuple[float, float, float, float]
    mask: float = 1.0

    def curve(self, x: Tensor) -> Tensor:
        """Return phi at the points x, of any shape."""
        a, b, c, d = self.affine
        return c * library.get(self.name).torch(a * x + b) + d


class SymbolicEdges(nn.Module):
    """A module that computes y[..., o] = sum over the edges (i, o) of c f(a x[..., i] + b) + d.

    Differentiable to any order. The edges are sorted by function, so that each function is called once. No
    temporary is larger than batch times edges. A set does not change: `symbolic.fix` makes another.

    Args:
        in_features, out_features: of the layer.
        edges: at least one, each pair (input, output) at most once.
        device, dtype: of the parameters; 16 bits become float32, and stay so when the module is cast.

    Attributes:
        affine: parameter (n, 4), the columns a, b, c, d.
        index: buffer (n, 2), input and output of each edge. mask_before: buffer (n,).
        names: the functions' names, n of them, sorted.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> SymbolicEdges(1, 1, [Edge(0, 0, "cos", (2.0, 0.0, 1.0, 0.5))])(torch.zeros(1, 1)).item()
        1.5
    """

    affine: nn.Parameter
    index: Tensor
    mask_before: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        edges: Iterable[Edge],
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_features = checks.integer("in_features", in_features, 1)
        out_features = checks.integer("out_features", out_features, 1)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        dtype = torch.float32 if dtype in checks.HALF_DTYPES else dtype
        edges = [edge._replace(name=library.get(edge.name).name) for edge in edges]  # no aliases
        edges.sort(key=lambda edge: (edge.name, edge.input, edge.output))
        if not edges:
            raise ValueError(
                "edges: got none, expected at least one; a layer without any has symbolic = None"
            )
        if len({edge[:2] for edge in edges}) < len(edges):
            raise ValueError("edges: an edge appears twice, expected each pair (input, output) once")
        for edge in edges:
            checks.integer("edges: input", edge.input, 0, in_features - 1)
            checks.integer("edges: output", edge.output, 0, out_features - 1)
        self.in_features = in_features
        self.out_features = out_features
        affine = torch.tensor([edge.affine for edge in edges], device=device, dtype=torch.float64)
        self.affine = nn.Parameter(affine.to(dtype))
        self.register_buffer("index", torch.tensor([edge[:2] for edge in edges], device=device))
        self.register_buffer("mask_before", torch.tensor([edge.mask for edge in edges], device=device))
        self._name([edge.name for edge in edges])

    def _name(self, names: list[str]) -> None:
        """Set the names, and the functions with the rows that each has."""
        self.names = names
        starts = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
        ends = [*starts[1:], len(names)]
        self._groups = [
            (library.get(names[start]), start, end) for start, end in zip(starts, ends, strict=True)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out), in the wider dtype of x and the parameters."""
        rows = x.reshape(-1, self.in_features).t()
        inputs, outputs = self.index.unbind(1)
        a, b, c, d = self.affine.unsqueeze(-1).unbind(1)
        # advanced indexing and index_put, whose sums have a fixed order on every device; index_add has not
        z = a * rows[inputs] + b
        f = torch.cat([function.torch(z[start:end]) for function, start, end in self._groups])
        curves = c * f + d
        y = curves.new_zeros(self.out_features, rows.shape[1])
        y = y.index_put((outputs,), curves, accumulate=True)
        return y.t().reshape(x.shape[:-1] + (self.out_features,))  # noqa: RUF005  # torch.fx unpacks no shape

    def splines_on(self, wanted: Tensor | None, before: Tensor | None) -> Tensor | None:
        """Return the layer's new mask: a 1 at a formula is kept for `unfix`. `wanted` is written to."""
        edges = self.index.unbind(1)
        self.mask_before[slice(None) if wanted is None else wanted[edges] != 0] = 1.0
        if before is not None:
            wanted = torch.ones_like(before) if wanted is None else wanted
            wanted[edges] *= before[edges]
        return wanted

    def edges(self) -> list[Edge]:
        """Return the edges as plain data, with the present values of the parameters."""
        columns = zip(
            self.index.tolist(),
            self.names,
            self.affine.detach().double().tolist(),
            self.mask_before.tolist(),
            strict=True,
        )
        return [Edge(i, o, name, tuple(affine), mask) for (i, o), name, affine, mask in columns]

    def select(self, inputs: Sequence[int], outputs: Sequence[int]) -> "SymbolicEdges | None":
        """Return those between these inputs and outputs alone, renumbered; None if none is left."""
        new_input = {old: new for new, old in enumerate(inputs)}
        new_output = {old: new for new, old in enumerate(outputs)}
        kept = [
            edge._replace(input=new_input[edge.input], output=new_output[edge.output])
            for edge in self.edges()
            if edge.input in new_input and edge.output in new_output
        ]
        if not kept:
            return None
        return self.renewed(kept, len(inputs), len(outputs))

    def renewed(self, edges: Iterable[Edge], in_features: int, out_features: int) -> "SymbolicEdges":
        """Return other edges in place of these: where and what these are, and frozen if these are."""
        new = SymbolicEdges(
            in_features, out_features, edges, device=self.affine.device, dtype=self.affine.dtype
        )
        new.affine.requires_grad_(self.affine.requires_grad)
        return new

    @classmethod
    def like_state(cls, state_dict, prefix: str, layer: Any) -> "SymbolicEdges":
        """Return what a layer loads a checkpoint into: the edges named in it, values still to be loaded.

        Raises:
            ValueError: a function that is not in the library, or no readable names.
        """
        names = _decode(state_dict.get(prefix + "_extra_state"))
        if layer.symbolic is not None and layer.symbolic.names == names:
            return layer.symbolic  # optimizers keep their parameters
        if len(names) > layer.in_features * layer.out_features:
            raise ValueError(f"state_dict: {prefix} has {len(names)} edges, more than the layer")
        edges = [
            Edge(n // layer.out_features, n % layer.out_features, name, (1.0, 0.0, 1.0, 0.0))
            for n, name in enumerate(names)
        ]
        weight = layer.spline_weight
        return cls(layer.in_features, layer.out_features, edges, device=weight.device, dtype=weight.dtype)

    def get_extra_state(self) -> Tensor:
        """Return the names as a tensor of bytes: a state dict then holds tensors only."""
        return torch.tensor(list(json.dumps(self.names).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the names from `get_extra_state`."""
        names = _decode(state)
        if len(names) != len(self.names):
            raise ValueError(f"state_dict: got {len(names)} symbolic edges, expected {len(self.names)}")
        self._name(names)

    def _apply(self, fn, recurse=True):
        """Cast or move everything, but keep the parameters in at least 32 bits."""
        before = self.affine.detach()
        super()._apply(fn, recurse)
        if self.affine.dtype in checks.HALF_DTYPES:
            self.affine.data = before.to(device=self.affine.device, dtype=torch.float32)
        return self

    def extra_repr(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in Counter(self.names).items())
        return f"{self.in_features}, {self.out_features}, edges: {kinds}"


def _decode(state: object) -> list[str]:
    expected = "state_dict: symbolic edges without readable names, expected what SymbolicEdges saved"
    if not isinstance(state, Tensor) or state.dtype != torch.uint8:
        raise ValueError(expected)
    try:
        names = json.loads(bytes(state.tolist()))
    except ValueError as error:
        raise ValueError(expected) from error
    if not isinstance(names, list) or not names or names != sorted(map(str, names)):
        raise ValueError(expected)
    for name in names:
        library.get(name)
    return names
