"""A small KAN as a C99 header that needs nothing but math.h."""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .._core import checks
from .._core.bases import BASE_CODES
from ..backends import reference
from ..composition import products_of
from ..nn import KANLinear, Products
from .c_names import check_name
from .numpy_model import plain_layers

_SILU_SLOPE, _SILU_CURVATURE = 1.1, 0.5  # above the largest |silu'| (1.0998) and |silu''| (at 0)


class _Layer(NamedTuple):
    """The float64 values of a layer, as the header will hold them."""

    knots: NDArray  # (in, K)
    spline: NDArray  # (in, G+k, out)
    base_weight: NDArray | None
    bias: NDArray | None
    order: int
    base: str | None


def to_c(model: Any, *, name: str = "kan", dtype: str | None = None, table: int | None = None) -> str:
    """Return a C99 header with `static inline void NAME(const TYPE *x, TYPE *y)`, of one row.

    It computes what the model does, NaN, inf and x beyond the knots included, up to rounding in its type, as
    long as the compiler keeps to IEEE numbers (no -ffast-math).

    Args:
        model: a KAN or KANLinear without formulas.
        name: of the function, and in capitals of the guard and of NAME_INPUTS and NAME_OUTPUTS.
        dtype: "float32" or "float64"; None: float64 for a model of that, else float32.
        table: so many straight pieces a cell in place of the splines: no polynomials, and no exp inside the
            knots. NAME_TABLE_ERROR in the header bounds what that changes in any output, for all finite x,
            before rounding. None: exact; so are networks with multiplication nodes, as no number bounds their
            error.

    Raises:
        TypeError, ValueError: naming the argument; weights that are not finite; functions that jump.

    Example:
        >>> print(to_c(KANLinear(1, 1, 1, 0, base=None), name="step").splitlines()[-4])
        static inline void step(const float *x, float *y) {
    """
    model = getattr(model, "_orig_mod", model)  # in what torch.compile returned
    layers = _layers(model)
    check_name("name", name, function=True)
    if dtype is None:
        dtype = "float64" if _first(model).spline_weight.dtype == torch.float64 else "float32"
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype: got {dtype!r}, expected 'float32', 'float64' or None")
    if table is not None:
        table = checks.integer("table", table, 1, 1 << 16)
    products = products_of(model)
    if table is not None and any(p.arities for p in products):
        raise ValueError(
            f"table: got {table} for a network with multiplication nodes, whose error no number bounds for "
            "all x; expected None"
        )
    layers = [_rounded(layer, n, dtype) for n, layer in enumerate(layers)]
    writer = _Writer(name, dtype)
    upper = name.upper()
    widths = [layers[0].spline.shape[0], *(p.width for p in products)]
    error = None if table is None else _table_error(layers, table)
    made_by = f"/* A KAN {widths} in C99, {dtype}. It needs math.h and IEEE numbers (no -ffast-math). */"
    lines = [made_by, f"#ifndef {upper}_H", f"#define {upper}_H", "#include <math.h>", ""]
    lines += [f"#define {upper}_INPUTS {widths[0]}", f"#define {upper}_OUTPUTS {products[-1].nodes}"]
    if error is not None:
        said = "/* no output differs by more from the splines', for any finite x, before rounding */"
        lines += [said, f"#define {upper}_TABLE_ERROR {_up(error)!r}"]
    lines.append("")
    for n, layer in enumerate(layers):
        lines += writer.exact(n, layer) if table is None else writer.tabulated(n, layer, table)
    lines += writer.network(products)
    return "\n".join([*lines, f"#endif /* {upper}_H */", ""])


def _first(model: Any) -> KANLinear:
    return model if isinstance(model, KANLinear) else model.layers[0]


def _layers(model: Any) -> list[_Layer]:
    found = []
    for layer in plain_layers("model", model, "kan_kernels.symbolic.to_c"):
        spline, base = layer.masked_weights()
        values: list[Any] = [
            None if t is None else t.detach().cpu().double().numpy()
            for t in (layer.grid, spline, base, layer.bias)
        ]
        grid, spline, base, bias = values
        found.append(_Layer(grid, spline, base, bias, layer.spline_order, layer.base))
    return found


def _rounded(layer: _Layer, n: int, dtype: str) -> _Layer:
    """Return the layer with the numbers that its type can hold, in float64."""
    values: list[Any] = []
    for what, array in zip(_Layer._fields[:4], layer[:4], strict=True):
        rounded = None if array is None else array.astype(dtype).astype(np.float64)  # type: ignore[union-attr]
        if rounded is not None and not np.isfinite(rounded).all():
            raise ValueError(
                f"model: the {what} of layer {n} is not finite in {dtype}, expected finite numbers"
            )
        values.append(rounded)
    knots, spline, base, bias = values
    return _Layer(knots, spline, base, bias, layer.order, layer.base)


def _windows(layer: _Layer) -> NDArray:
    """Return the polynomials of the window of every cell, (in, cells, k+1, k+1), powers of u last.

    u is in [-1, 1] over the cell. Function r of the window of cell c is number c - k + r; those that the
    layer does not have are zero, and so are all in a cell of length zero, where no x can be.
    """
    k, functions, knots = layer.order, layer.spline.shape[1], layer.knots
    cells = knots.shape[1] - 1
    u = np.cos(np.pi * (np.arange(k + 1) + 0.5) / (k + 1))  # inside of the cell
    inverse = np.linalg.inv(np.vander(u, increasing=True))
    low, high = knots[:, :-1], knots[:, 1:]
    x = low[..., None] * 0.5 * (1 - u) + high[..., None] * 0.5 * (1 + u)
    grid = torch.from_numpy(knots)
    points = torch.from_numpy(x.reshape(len(knots), -1).T.copy())
    dense = reference.bspline_basis(points, grid, k).numpy().reshape(cells, k + 1, len(knots), functions)
    found = np.zeros((len(knots), cells, k + 1, k + 1))
    for c, r in itertools.product(range(cells), range(k + 1)):
        if 0 <= c - k + r < functions:
            found[:, c, r] = (inverse @ dense[c, :, :, c - k + r]).T
    return np.where((high > low)[..., None, None], found, 0.0)


def _derivative(coefficients: NDArray, knots: NDArray, order: int) -> NDArray:
    """Return those of the derivative: (in, n, out) of order k -> (in, n + 1, out) of order k - 1."""
    span = knots[:, order:] - knots[:, : -order or None]
    padded = np.pad(coefficients, ((0, 0), (1, 1), (0, 0)))
    return order * np.diff(padded, axis=1) / span[:, :, None]


def _table_error(layers: list[_Layer], pieces: int) -> float:
    """Return a bound of what tables change in any output.

    A straight piece of length h is off by h^2 / 8 times the largest second derivative there, which the
    largest coefficient of the derivative's window bounds. Each layer hands on what it gets, times slopes.
    """
    entering: NDArray = np.zeros(layers[0].spline.shape[0])
    for n, layer in enumerate(layers):
        k, knots = layer.order, layer.knots
        if k < 1 or (np.diff(knots, axis=1) <= 0).any():
            raise ValueError(
                f"table: layer {n} has spline_order 0 or knots that coincide, where functions can jump and "
                "no bound holds; expected spline_order 1 or more and distinct knots, or table=None"
            )
        first = _derivative(layer.spline, knots, k)
        slopes = np.abs(first).max(1)
        curves = np.zeros((knots.shape[0], knots.shape[1] - 1, layer.spline.shape[2]))
        if k >= 2:
            second = np.abs(_derivative(first, knots, k - 1))
            for c in range(curves.shape[1]):
                window = second[:, max(0, c - k + 2) : c + 1]
                curves[:, c] = window.max(1) if window.shape[1] else 0.0
        if layer.base_weight is not None:
            size = np.abs(layer.base_weight)
            slopes += size * (_SILU_SLOPE if layer.base == "silu" else 1.0)
            curves += size[:, None] * (_SILU_CURVATURE if layer.base == "silu" else 0.0)
        length = np.diff(knots, axis=1)[..., None] / pieces
        edges = (length**2 / 8 * curves).max(1)
        entering = (edges + slopes * entering[:, None]).sum(0)
    return float(entering.max())


def _up(value: float) -> float:
    """Return a number of four digits that is not smaller."""
    return float(np.format_float_scientific(value * 1.001 + 1e-300, 3))


class _Writer:
    """The text of a header in one type."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self.type = name, "float" if dtype == "float32" else "double"
        self.suffix = "f" if dtype == "float32" else ""

    def number(self, value: float) -> str:
        text = repr(float(np.float32(value))) if self.suffix else repr(float(value))
        text = f"{np.float32(value):.9g}" if self.suffix else text
        return f"{text if set('.e') & set(text) else text + '.0'}{self.suffix}"

    def array(self, name: str, values: NDArray) -> list[str]:
        numbers = [self.number(value) for value in values.ravel()]
        rows = [", ".join(numbers[at : at + 8]) for at in range(0, len(numbers), 8)]
        body = [f"  {row}," for row in rows[:-1]] + [f"  {rows[-1]}"]
        return [f"static const {self.type} {self.name}_{name}[{len(numbers)}] = {{", *body, "};"]

    def exact(self, n: int, layer: _Layer) -> list[str]:
        """Return the data of a layer and its function, by the polynomials of each window."""
        k, (_, functions, outputs), cells = layer.order, layer.spline.shape, layer.knots.shape[1] - 1
        name = self.name
        data = [(f"windows_{n}", _windows(layer)), (f"spline_{n}", layer.spline)]
        inside = [
            f"      const {self.type} *window = {name}_windows_{n} + (i * {cells} + cell) * {(k + 1) ** 2};",
            f"      const int row = (i * {functions} + cell - {k}) * {outputs};",
            f"      const {self.type} u = (v - knots[cell]) / (knots[cell + 1] - knots[cell]) * 2 - 1;",
            "      int r, p;",
            f"      for (r = 0; r < {k + 1}; ++r) {{",
            f"        {self.type} value = window[r * {k + 1} + {k}];",
            f"        for (p = {k - 1}; p >= 0; --p) value = value * u + window[r * {k + 1} + p];",
            f"        if (cell - {k} + r >= 0 && cell - {k} + r < {functions})",
            f"          for (o = 0; o < {outputs}; ++o)",
            f"            y[o] += value * {name}_spline_{n}[row + r * {outputs} + o];",
            "      }",
        ]
        return self._layer(n, layer, data, inside, base_inside=True)

    def tabulated(self, n: int, layer: _Layer, pieces: int) -> list[str]:
        """Return the data of a layer and its function, by straight pieces of the whole edge function."""
        k, (features, functions, outputs), cells = layer.order, layer.spline.shape, layer.knots.shape[1] - 1
        windows = _windows(layer)
        u = np.linspace(-1, 1, pieces + 1)
        powers = np.vander(u, k + 1, increasing=True)
        values = np.zeros((features, cells, pieces + 1, outputs))
        for c, r in itertools.product(range(cells), range(k + 1)):
            if 0 <= c - k + r < functions:
                basis = windows[:, c, r] @ powers.T
                values[:, c] += basis[..., None] * layer.spline[:, None, c - k + r]
        if layer.base_weight is not None:
            low, high = layer.knots[:, :-1, None], layer.knots[:, 1:, None]
            x = torch.from_numpy(low * 0.5 * (1 - u) + high * 0.5 * (1 + u))
            base = reference.base_activation(x, BASE_CODES[layer.base]).numpy()
            values += base[..., None] * layer.base_weight[:, None, None]
        if (np.abs(values) > np.finfo(np.float32 if self.suffix else np.float64).max).any():
            raise ValueError(f"table: layer {n} has values beyond the largest {self.type}, expected None")
        name, size = self.name, (pieces + 1) * outputs
        inside = [
            f"      const {self.type} *row = {name}_table_{n} + (i * {cells} + cell) * {size};",
            f"      {self.type} at = (v - knots[cell]) / (knots[cell + 1] - knots[cell]) * {pieces};",
            f"      int piece = at < {pieces} ? (int)at : {pieces - 1};",
            "      at -= piece;",
            f"      row += piece * {outputs};",
            f"      for (o = 0; o < {outputs}; ++o) y[o] += row[o] + at * (row[{outputs} + o] - row[o]);",
        ]
        return self._layer(n, layer, [(f"table_{n}", values)], inside, base_inside=False)

    def _layer(
        self, n: int, layer: _Layer, data: Iterable[tuple[str, NDArray]], inside: list[str], base_inside: bool
    ) -> list[str]:
        (features, _, outputs), knots = layer.spline.shape, layer.knots.shape[1]
        name, t = self.name, self.type
        lines = self.array(f"knots_{n}", layer.knots)
        for what, values in data:
            lines += self.array(what, values)
        if layer.base_weight is not None:
            lines += self.array(f"base_{n}", layer.base_weight)
        if layer.bias is not None:
            lines += self.array(f"bias_{n}", layer.bias)
        start = f"{name}_bias_{n}[o]" if layer.bias is not None else self.number(0.0)
        base: list[str] = []
        if layer.base_weight is not None:
            one = self.number(1.0)
            value = f"v / ({one} + exp{self.suffix}(-v))" if layer.base == "silu" else "v"
            base = [
                f"      const {t} b = {value};",
                f"      for (o = 0; o < {outputs}; ++o) y[o] += b * {name}_base_{n}[i * {outputs} + o];",
            ]
        else:  # NaN reaches every output
            base = ["      if (v != v)", f"        for (o = 0; o < {outputs}; ++o) y[o] = v;"]
        within = f"v >= knots[0] && v < knots[{knots - 1}]"
        lines += [
            f"static inline void {name}_layer_{n}(const {t} *x, {t} *y) {{",
            "  int i, o;",
            f"  for (o = 0; o < {outputs}; ++o) y[o] = {start};",
            f"  for (i = 0; i < {features}; ++i) {{",
            f"    const {t} v = x[i];",
            f"    const {t} *knots = {name}_knots_{n} + i * {knots};",
        ]
        search = [
            f"      int cell = 0, end = {knots - 1};",
            "      while (end - cell > 1) {",
            "        const int middle = (cell + end) / 2;",
            "        if (v >= knots[middle]) cell = middle; else end = middle;",
            "      }",
        ]
        if base_inside:
            lines += ["    {", *base, "    }", f"    if ({within}) {{", *search, "      {"]
            lines += [f"  {line}" for line in inside] + ["      }", "    }"]
        else:
            lines += [
                f"    if ({within}) {{",
                *search,
                "      {",
                *[f"  {line}" for line in inside],
                "      }",
            ]
            lines += ["    } else {", *base, "    }"]
        return [*lines, "  }", "}", ""]

    def network(self, products: list[Products]) -> list[str]:
        """Return the function of one row. products: the nodes behind each layer."""
        body, places, given = [], [], "x"
        for n, behind in enumerate(products):
            last = n == len(products) - 1
            to = "y" if last and not behind.arities else "ab"[n % 2]
            if to != "y":
                places.append((to, behind.subnodes))
            body.append(f"  {self.name}_layer_{n}({given}, {to});")
            given = to
            if behind.arities:  # in place, where every product lies at or before its first factor
                into = "y" if last else to
                for node, group in enumerate(behind.groups()):
                    if len(group) > 1 or into != to:
                        body.append(f"  {into}[{node}] = {' * '.join(f'{to}[{s}]' for s in group)};")
        size = max((count for _, count in places), default=0)
        buffers = ", ".join(f"{name}[{size}]" for name in sorted({name for name, _ in places}))
        head = [f"static inline void {self.name}(const {self.type} *x, {self.type} *y) {{"]
        if buffers:
            head.append(f"  {self.type} {buffers};")
        return [*head, *body, "}"]
