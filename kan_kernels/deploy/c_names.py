"""Names that a header in C can give what is ours: none of the language's, none of math.h's."""

import re

_KEYWORDS = """
auto break case char const continue default do double else enum extern float for goto if inline int long main
register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
"""
_OF_A_TYPE = """
acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp2 expm1 fabs fdim floor
fma fmax fmin fmod frexp gamma hypot ilogb j0 j1 jn ldexp lgamma llrint llround log log10 log1p log2 logb
lrint lround modf nan nearbyint nextafter nexttoward pow remainder remquo rint round scalb scalbln scalbn sin
sinh sqrt tan tanh tgamma trunc y0 y1 yn
"""
_OF_ALL_TYPES = """
fpclassify isfinite isgreater isgreaterequal isinf isless islessequal islessgreater isnan isnormal isunordered
signbit
"""
KEYWORDS = frozenset(_KEYWORDS.split())
# math.h, in C and in POSIX, declares each for double, float and long double
FUNCTIONS = frozenset(f"{name}{kind}" for name in _OF_A_TYPE.split() for kind in ("", "f", "l"))
FUNCTIONS |= frozenset(_OF_ALL_TYPES.split())
_MACRO = re.compile(r"(M|FP|MATH)_[A-Z0-9_]*|NAN|INFINITY|HUGE(_VAL[FL]?)?|MAXFLOAT|math_errhandling|signgam")


def check_name(argument: str, name: object, *, function: bool = False) -> None:
    """Raise unless `name` is an identifier of C and no macro of math.h, nor as a function one of its."""
    expected = "an identifier of C that math.h does not have"
    if not isinstance(name, str):
        raise TypeError(f"{argument}: got {name!r}, expected {expected}")
    known = name in KEYWORDS or _MACRO.fullmatch(name) or (function and name in FUNCTIONS)
    if known or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(f"{argument}: got {name!r}, expected {expected}")
