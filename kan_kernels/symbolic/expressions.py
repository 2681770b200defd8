"""A model whose edges all have a formula, as sympy expressions, LaTeX, source of Python."""

import ast
import keyword
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch

from .._core import checks
from ..composition import check_chain, layers_of, opened, products_of
from ..data import Dataset, _numbered
from ..nn import KANLinear, SelectedInputs
from ..nn import function_library as library
from .curves import active_pairs, fixed_edges
from .printers import _printer

PRECISION = 17  # decimal digits that tell all float64 apart
_NOISE = 13  # decimal digits that a polished constant has
_TERMS = 1000  # that products are multiplied out to, at most


def formula(
    model: torch.nn.Module,
    names: Sequence[str] | None = None,
    digits: int | None = None,
    *,
    simplify: bool = False,
    normalizer: Any = None,
    output_normalizer: Any = None,
    data: Dataset | None = None,
) -> list[Any]:
    """Return a sympy expression for each output.

    Constants are collected: shifts and scales of one layer are multiplied into those of the next. Powers are
    not expanded. Products of nodes are multiplied out where the formula is shorter for it.

    Args:
        model: a KAN or a KANLinear, or `SelectedInputs` of one; each edge is off (`edge_mask`) or has a
            formula.
        names: of the inputs; x_1, x_2, ... by default. They become sympy symbols and are never evaluated.
        digits: decimals that numbers are rounded to, last, after constants were collected and the result
            simplified; whole numbers become integers, and what becomes 0 disappears. None: no rounding.
        simplify: let sympy.simplify look for a shorter form; this may take minutes.
        normalizer: (mean, std) of the data that the model was trained on as (x - mean) / std, a number or one
            for each input: the formula is then of x itself. Folded into its constants, before rounding,
            which is an error where it takes an input away.
        output_normalizer: the same of y: the formula is then y itself, std * output + mean.
        data: the data set that it was trained on, whose names and normalizers are taken where none are given.

    Raises:
        ImportError: sympy is missing.
        TypeError, ValueError: naming the argument, or the first edge without a formula.

    Example:
        >>> layer = KANLinear(1, 1)
        >>> symbolic.fix(layer, 0, 0, "x^2", params=(1, 0, 3, 0.5))
        >>> formula(layer, ["x"], digits=2)
        [3*x**2 + 0.5]
        >>> formula(layer, ["x"], digits=2, normalizer=(1.0, 2.0))
        [3*(0.5*x - 0.5)**2 + 0.5]
    """
    sympy = _sympy()
    kan = opened(model)[0]
    layers, products = layers_of(kan), products_of(kan)
    check_chain(kan)
    names = _names(names, data, model)
    if data is not None:
        normalizer = data.normalizer if normalizer is None else normalizer
        output_normalizer = data.output_normalizer if output_normalizer is None else output_normalizer
    units = _normalizer("normalizer", normalizer, len(names))
    output_units = _normalizer("output_normalizer", output_normalizer, products[-1].nodes)
    if digits is not None:
        digits = checks.integer("digits", digits, 0, PRECISION)
    simplify = checks.boolean("simplify", simplify)
    _check_fixed(layers)
    values = [sympy.Symbol(name) for name in names]
    if units is not None:
        values = [
            _scaled(x, 1 / std, -mean / std, sympy) for x, mean, std in zip(values, *units, strict=True)
        ]
    if isinstance(model, SelectedInputs):
        values = [values[i] for i in model.kept.tolist()]
    inner: dict[Any, Any] = {}  # products of nodes are symbols until constants are collected around them
    for layer, multiply in zip(layers, products, strict=True):
        values = _layer(layer, values, sympy)
        for group in multiply.groups()[multiply.sums :]:
            inner[product := sympy.Dummy()] = sympy.Mul(*(values[s] for s in group))
            values.append(product)
        del values[multiply.sums : multiply.subnodes]
    if output_units is not None:
        values = [_scaled(y, std, mean, sympy) for y, mean, std in zip(values, *output_units, strict=True)]
    for product, factors in reversed(inner.items()):
        values = [value.xreplace({product: factors}) for value in values]
    if simplify:
        if digits is not None:  # 1 + 1e-15 is 1 to the rules that shorten, and no more is lost than that
            values = [_round(value, lambda n: float(f"{n:.{_NOISE}g}"), sympy) for value in values]
        values = [sympy.simplify(value) for value in values]
    exact, values = values, [_shortest(value, digits, bool(inner), sympy) for value in values]
    if digits is not None:
        _check_rounded(exact, values, digits, units is not None or output_units is not None)
    _check_numbers(values, sympy)
    return values


def latex(
    model: torch.nn.Module,
    names: Sequence[str] | None = None,
    digits: int | None = 4,
    *,
    normalizer: Any = None,
    output_normalizer: Any = None,
    data: Dataset | None = None,
) -> list[str]:
    """Return a line of LaTeX for each output.

    Args:
        model, names, digits, normalizer, output_normalizer, data: as for `formula`.

    Raises:
        ImportError, TypeError, ValueError: as `formula`.

    Example:
        >>> layer = KANLinear(1, 1)
        >>> symbolic.fix(layer, 0, 0, "x^2", params=(1, 0, 3, 0.5))
        >>> latex(layer, ["x"])
        ['3 x^{2} + 0.5']
    """
    sympy = _sympy()
    units = {"normalizer": normalizer, "output_normalizer": output_normalizer, "data": data}
    return [sympy.latex(value) for value in formula(model, names, digits, **units)]


def to_python(
    model: torch.nn.Module,
    names: Sequence[str] | None = None,
    digits: int | None = None,
    *,
    function: str = "kan",
    module: str = "math",
    normalizer: Any = None,
    output_normalizer: Any = None,
    data: Dataset | None = None,
) -> str:
    """Return the source of a Python function of the inputs, a number or a tuple of them, without torch.

    Where the model gives NaN or inf the module `math` raises ValueError, OverflowError or ZeroDivisionError,
    as it does. A formula may have a wider domain than its model: sqrt(x)^2 is x, also where x < 0.

    Args:
        model, digits, normalizer, output_normalizer, data: as for `formula`.
        names: of the arguments, identifiers; those of `data`, or x_1, x_2, ..., by default.
        function: its name.
        module: "math" for numbers or "numpy" for arrays, the only import of the source.

    Raises:
        TypeError, ValueError: as `formula`, and for a name that is no identifier, or one that the source
            calls, and for a registered function that the module does not have.

    Example:
        >>> layer = KANLinear(1, 1)
        >>> symbolic.fix(layer, 0, 0, "x^2", params=(1, 0, 3, 0.5))
        >>> exec(to_python(layer), names := {})
        >>> names["kan"](2.0)
        12.5
    """
    sympy = _sympy()
    if module not in ("math", "numpy"):
        raise ValueError(f"module: got {module!r}, expected 'math' or 'numpy'")
    names = _names(names, data, model)
    expected = "an identifier that the source does not use itself"
    for name in (*names, function):
        if not name.isidentifier() or keyword.iskeyword(name) or name == module:
            raise ValueError(f"names, function: {name!r} cannot be a name in Python, expected {expected}")
    units = {"normalizer": normalizer, "output_normalizer": output_normalizer, "data": data}
    values = formula(model, names, digits, **units)
    steps, results = _steps(values, (*names, function), sympy)
    printer = _printer(module)
    try:
        body = [f"    {symbol} = {printer.doprint(step)}" for symbol, step in steps]
        body.append(f"    return {', '.join(printer.doprint(result) for result in results)}")
    except NotImplementedError as error:
        raise ValueError(f"model: has a function that the module {module} does not have: {error}") from error
    if others := sorted({name.partition(".")[0] for name in printer.module_imports} - {module}):
        raise ValueError(
            f"model: has a function that the module {module} does not have, but {', '.join(others)}"
        )
    if module == "numpy":  # whole numbers would overflow without a word
        body.insert(0, f"    {', '.join(names)} = {', '.join(f'1.0*{name}' for name in names)}")
    source = "\n".join([f"import {module}", "", "", f"def {function}({', '.join(names)}):", *body, ""])
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    for name in {call.id for call in calls if isinstance(call, ast.Name)} & {*names, function}:
        raise ValueError(f"names, function: the source calls the built-in {name!r}, expected {expected}")
    return source


def to_function(
    model: torch.nn.Module,
    digits: int | None = None,
    *,
    normalizer: Any = None,
    output_normalizer: Any = None,
    data: Dataset | None = None,
) -> Callable[..., Any]:
    """Return a function of NumPy arrays, one for each input, that returns a list with each output.

    Made by sympy.lambdify from expressions in symbols of our own: no text of the user's is run.

    Args:
        model, digits, normalizer, output_normalizer, data: as for `formula`.

    Raises:
        ImportError, TypeError, ValueError: as `formula`.

    Example:
        >>> layer = KANLinear(1, 1)
        >>> symbolic.fix(layer, 0, 0, "x^2", params=(1, 0, 3, 0.5))
        >>> to_function(layer)(2.0)
        [12.5]
    """
    sympy = _sympy()
    names = _numbered(len(_names(None, None, model)))
    units = {"normalizer": normalizer, "output_normalizer": output_normalizer, "data": data}
    values = formula(model, names, digits, **units)
    symbols = [sympy.Symbol(name) for name in names]
    compiled = sympy.lambdify(symbols, values, cse=True)

    def function(*inputs: Any, **named: Any) -> list[Any]:
        """Return the outputs, each of the shape of all inputs together."""
        inputs = tuple(_real(value) for value in inputs)
        named = {name: _real(value) for name, value in named.items()}
        outputs: list[Any] = compiled(*inputs, **named)
        every = (*inputs, *named.values())
        if not all(isinstance(value, (np.ndarray, Number)) for value in every):
            return outputs  # of another library
        shape = np.broadcast_shapes(*map(np.shape, every))
        # an output that depends on few inputs, or on none, has their shape until here
        return [y if np.shape(y) == shape else np.full(shape, y, np.float64) for y in outputs]

    return function


def _real(value: Any) -> Any:
    """Return NumPy's whole numbers in float64, in which powers do not overflow without a word."""
    whole = isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "iub"
    return value.astype(np.float64) if whole else value


def _steps(values: list[Any], taken: Iterable[str], sympy: Any) -> tuple[list[Any], list[Any]]:
    """Return (symbol, expression) of what is computed once, and the expressions of the results."""
    taken = set(taken)
    free = (symbol for symbol in sympy.numbered_symbols("t") if symbol.name not in taken)
    steps, results = sympy.cse(values, symbols=free, order="none")
    return steps, results


def _sympy() -> Any:
    try:
        import sympy
    except ImportError as error:
        raise ImportError("formulas need sympy: pip install sympy") from error
    return sympy


def _names(names: Sequence[str] | None, data: Dataset | None, model: torch.nn.Module) -> list[str]:
    """Return the names of all columns of x: those given, the data's, the model's, or x_1, x_2, ..."""
    if data is not None and not isinstance(data, Dataset):
        raise TypeError(f"data: got {type(data).__name__}, expected a kan_kernels.data.Dataset")
    names = data.names if names is None and data is not None else names
    if isinstance(model, SelectedInputs):
        count, names = model.in_features, model.column_names if names is None else names
    else:
        count = layers_of(model)[0].in_features
    return checks.names("names", _numbered(count) if names is None else names, count, "input")


def _normalizer(name: str, pair: object, count: int) -> tuple[list[float], list[float]] | None:
    """Return (mean, std) as numbers of `count` columns; None where there is none to fold in."""
    if pair is None:
        return None
    expected = f"a pair (mean, std) of a number or {count} numbers each, finite, std > 0"
    try:
        parts = [torch.as_tensor(part, dtype=torch.float64).reshape(-1) for part in pair]  # type: ignore
        mean, std = (part.expand(count).tolist() for part in parts)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: got {pair!r}, expected {expected}") from None
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise ValueError(f"{name}: got {pair!r}, expected {expected}")
    return mean, std


def _check_fixed(layers: list[KANLinear]) -> None:
    for n, layer in enumerate(layers):
        fixed, mask = fixed_edges(layer), layer.edge_mask
        for i, o in active_pairs(layer):
            if mask is None or mask[i, o] != 0:
                what = "a spline beside its formula" if (i, o) in fixed else "no formula"
                raise ValueError(
                    f"model: edge {i} -> {o} of layer {n} has {what}, expected a formula alone on every edge "
                    "that is on; use symbolic.auto or symbolic.fix, or switch the spline off by set_edge_mask"
                )


def _layer(layer: KANLinear, inputs: list[Any], sympy: Any) -> list[Any]:
    """Return the outputs of a layer for expressions as inputs."""
    terms: list[list[Any]] = [[] for _ in range(layer.out_features)]
    if layer.bias is not None:
        for o, value in enumerate(layer.bias.detach().double().tolist()):
            terms[o].append(_number(value, sympy))
    for edge in [] if layer.symbolic is None else layer.symbolic.edges():
        function = library.get(edge.name)
        plain = function.canonical(torch.tensor(edge.affine, dtype=torch.float64)).tolist()
        a, b, c, d = (_number(value, sympy) for value in plain)
        factor, value = _apply(function, sympy.expand_mul(a * inputs[edge.input] + b, False), sympy)
        terms[edge.output] += [sympy.expand_mul(c * factor * value, False), d]
    return [sympy.Add(*row) for row in terms]


def _check_numbers(values: list[Any], sympy: Any) -> None:
    """Raise ValueError where an output is no number whatever x is: a function left its domain."""
    for o, value in enumerate(values):
        if value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo, sympy.I):
            raise ValueError(
                f"model: output {o} is {str(value)[:80]}, which is no real number: a constant lies at a pole "
                "of a function, or outside of its domain; expected real numbers, or more digits"
            )


def _check_rounded(exact: list[Any], rounded: list[Any], digits: int, in_units: bool) -> None:
    """Raise ValueError where rounding left no input, or took one whose factor may be tiny in its units."""
    for o, (before, after) in enumerate(zip(exact, rounded, strict=True)):
        if after.free_symbols and not in_units:  # what is left out is small beside what is not
            continue
        for symbol in sorted(before.free_symbols - after.free_symbols, key=str):
            raise ValueError(
                f"digits: got {digits}, but so few decimals leave nothing of {symbol.name!r} in output {o}, "
                "whose factor is small in the units of the data; expected more, or None"
            )


def _scaled(value: Any, scale: float, shift: float, sympy: Any) -> Any:
    return sympy.expand_mul(_number(scale, sympy) * value + _number(shift, sympy), False)


def _apply(function: library.Function, z: Any, sympy: Any) -> tuple[Any, Any]:
    """Return (factor, value) whose product is f(z): of exp, a constant added to z is a factor."""
    if function.name == "exp":
        shift, rest = z.as_coeff_Add()
        if abs(shift) < 20:  # beyond that the factor is no readable number
            return sympy.exp(shift), sympy.exp(rest)
    return sympy.Integer(1), function.sympy(z)


def _shortest(value: Any, digits: int | None, multiplied: bool, sympy: Any) -> Any:
    """Return the value rounded to so many decimals, if any; of a model with products in its shorter form."""
    forms = [value, sympy.expand_mul(value)] if multiplied and _terms(value) <= _TERMS else [value]
    if digits is not None:
        forms = [_round(form, lambda n: round(n, digits), sympy) for form in forms]
    return min(forms, key=lambda form: form.count_ops())


def _terms(value: Any) -> int:
    """Return how many terms it has once it is multiplied out, arguments of functions among them."""
    inner = [_terms(part) for part in value.args]
    return math.prod(inner) if value.is_Mul else sum(inner) if value.is_Add else max(inner, default=1)


def _round(expression: Any, rounded: Callable[[float], float], sympy: Any) -> Any:
    """Round every floating number of the expression."""
    numbers = expression.atoms(sympy.Float)
    return expression.xreplace({n: _number(rounded(float(n)), sympy, 15) for n in numbers})


def _number(value: float, sympy: Any, precision: int = PRECISION) -> Any:
    """Return a sympy number, an integer where the value is one."""
    return sympy.Integer(int(value)) if value.is_integer() else sympy.Float(repr(value), precision)
