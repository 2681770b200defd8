"""A model whose edges all have a formula, as source of C."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ..data import Dataset
from ..deploy.c_names import check_name
from .expressions import PRECISION, _names, _steps, _sympy, formula

_CONSTANTS = {"M_PI": "3.14159265358979323846", "M_E": "2.71828182845904523536"}  # that sympy's printer names


def to_c(
    model: torch.nn.Module,
    names: Sequence[str] | None = None,
    digits: int | None = None,
    *,
    function: str = "kan",
    normalizer: Any = None,
    output_normalizer: Any = None,
    data: Dataset | None = None,
) -> str:
    """Return a C99 header of a function of the inputs, in double, that needs nothing but math.h.

    Of one output it is `static inline double NAME(double x_1, ...)`; of several the last argument takes
    them, a `double *`, and nothing is returned.

    Args:
        model, digits, normalizer, output_normalizer, data: as for `formula`.
        names: of the arguments, identifiers of C; those of `data`, or x_1, x_2, ..., by default.
        function: its name.

    Raises:
        TypeError, ValueError: as `formula`; ValueError too for a name that is no identifier, or one that the
            source calls, and for a registered function that C does not have.

    Example:
        >>> layer = KANLinear(1, 1)
        >>> symbolic.fix(layer, 0, 0, "x^2", params=(1, 0, 3, 0.5))
        >>> print(to_c(layer).splitlines()[5])
          return 3*pow(x_1, 2) + 0.5;
    """
    sympy = _sympy()
    names = _names(names, data, model)
    for name in names:
        check_name("names", name)
    check_name("function", function, function=True)
    if function in names:
        raise ValueError(f"names, function: {function!r} is both, expected different names")
    units = {"normalizer": normalizer, "output_normalizer": output_normalizer, "data": data}
    values = formula(model, names, digits, **units)
    for at, value in enumerate(values):  # an int of C ends
        large = {n: n.evalf(PRECISION) for n in value.atoms(sympy.Integer) if abs(n) > 10**9}
        values[at] = value.xreplace(large)
    steps, results = _steps(values, (*names, function), sympy)
    printer = _printer()
    several = next(s for s in ("y", "out", "result", "y_out_") if s not in (*names, function))
    try:
        body = [f"  const double {symbol} = {printer.doprint(step)};" for symbol, step in steps]
        results = [printer.doprint(result) for result in results]
    except NotImplementedError as error:
        raise ValueError(f"model: has a function that C does not have: {error}") from error
    called = set(re.findall(r"\b([A-Za-z_]\w*)\(", " ".join([*body, *results])))
    for name in called & {*names, function}:
        raise ValueError(
            f"names, function: the source calls {name!r} of math.h, expected one that it does not use itself"
        )
    guard, arguments = f"{function.upper()}_FORMULA_H", [f"double {name}" for name in names]
    if len(results) == 1:
        head, body = "double", [*body, f"  return {results[0]};"]
    else:
        head, arguments = "void", [*arguments, f"double *{several}"]
        body += [f"  {several}[{n}] = {result};" for n, result in enumerate(results)]
    body = [f"  (void){name};" for name in names if not _uses(name, body)] + body
    lines = [f"#ifndef {guard}", f"#define {guard}", "#include <math.h>", ""]
    for constant, value in _CONSTANTS.items():  # which math.h need not have in C99
        if _uses(constant, body):
            lines += [f"#ifndef {constant}", f"#define {constant} {value}", "#endif"]
    lines += [f"static inline {head} {function}({', '.join(arguments)}) {{", *body, "}"]
    lines.append(f"#endif /* {guard} */")
    return "\n".join([*lines, ""])


def _printer() -> Any:
    """Return sympy's printer of C99, of whose names `check_name` has refused what C reserves."""
    from sympy.printing.c import C99CodePrinter

    class Printer(C99CodePrinter):
        reserved_words = ()

        def _print_sign(self, expression: Any) -> str:
            z = f"({self._print(expression.args[0])})"
            return f"({z} != {z} ? {z} : ({z} > 0) - ({z} < 0))"  # NaN stays

    return Printer({"strict": True})


def _uses(name: str, lines: Iterable[str]) -> bool:
    return any(re.search(rf"\b{name}\b", line) for line in lines)
