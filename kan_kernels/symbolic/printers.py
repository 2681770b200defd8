"""Formulas as Python: what sympy's printers leave to be done."""

import functools
from typing import Any


def _printer(module: str) -> Any:
    """Return sympy's printer for a module, without what makes numbers complex, or numbers of NaN."""
    import sympy
    from sympy.printing.numpy import NumPyPrinter
    from sympy.printing.pycode import PythonCodePrinter

    kind, power = {"math": (PythonCodePrinter, "math.pow"), "numpy": (NumPyPrinter, "numpy.power")}[module]

    class Printer(kind):  # type: ignore[misc, valid-type]
        def _print_Pow(self, expression: Any, rational: bool = False) -> str:
            base, exponent = expression.args
            if exponent.is_Number and not exponent.is_Integer and abs(exponent) != sympy.S.Half:
                return f"{power}({self._print(base)}, {self._print(exponent)})"
            return str(super()._print_Pow(expression, rational))

        def _print_Max(self, expression: Any, name: str = "max") -> str:
            printed = [self._print(argument) for argument in expression.args]
            call = name if module == "math" else f"numpy.{name}imum"
            return functools.reduce(lambda a, b: f"{call}({a}, {b})", printed)

        def _print_Min(self, expression: Any) -> str:
            return self._print_Max(expression, "min")

        def _print_sign(self, expression: Any) -> str:
            if module == "numpy":
                return str(super()._print_sign(expression))
            z = f"({self._print(expression.args[0])})"
            return f"({z} if {z} == 0 or {z} != {z} else math.copysign(1, {z}))"

    return Printer({"fully_qualified_modules": True, "strict": True})
