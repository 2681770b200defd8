"""Names that a header in C can give what is ours: none of the language's, none of math.h's."""

import re

_KEYWORDS = """
auto break case char const continue default do double else enum extern float for goto if inline int long
main register restrict return short signed sizeof static struct switch typedef union unsigned void volatile
while
"""
_OF_A_TYPE = """
acos acosh acospi asin asinh asinpi atan atan2 atan2pi atanh atanpi canonicalize cbrt ceil copysign cos cosh
cospi drem erf erfc exp exp10 exp10m1 exp2 exp2m1 expm1 fabs fadd fdim fdiv ffma finite floor fma fmax
fmaximum fmaximum_mag fmaximum_mag_num fmaximum_num fmaxmag fmin fminimum fminimum_mag fminimum_mag_num
fminimum_num fminmag fmod fmul frexp fromfp fromfpx fsqrt fsub gamma getpayload hypot ilogb isinf isnan j0
j1 jn ldexp lgamma llogb llrint llround log log10 log10p1 log1p log2 log2p1 logb logp1 lrint lround modf nan
nearbyint nextafter nextdown nexttoward nextup pow pow10 remainder remquo rint round roundeven scalb scalbln
scalbn setpayload setpayloadsig significand sin sincos sinh sinpi sqrt tan tanh tanpi tgamma totalorder
totalordermag trunc ufromfp ufromfpx y0 y1 yn
"""
_OF_ALL_TYPES = """
double_t float_t fpclassify iscanonical iseqsig isfinite isgreater isgreaterequal isless islessequal
islessgreater isnormal issignaling issubnormal isunordered iszero lgamma_r lgammaf_r lgammal_r signbit
signgam
"""
_CONSTANTS = """
E LOG2E LOG10E LN2 LN10 PI PI_2 PI_4 1_PI 2_PI 2_SQRTPI SQRT2 SQRT1_2
"""
_MACROS = """
NAN INFINITY HUGE HUGE_VAL HUGE_VALF HUGE_VALL MAXFLOAT SNAN SNANF SNANL FP_NAN FP_INFINITE FP_ZERO
FP_NORMAL FP_SUBNORMAL FP_ILOGB0 FP_ILOGBNAN FP_FAST_FMA FP_FAST_FMAF FP_FAST_FMAL MATH_ERRNO MATH_ERREXCEPT
math_errhandling DOMAIN SING OVERFLOW UNDERFLOW PLOSS TLOSS
"""
KEYWORDS = frozenset(_KEYWORDS.split())
_TYPES = ("", "f", "l", "f32", "f64", "f128", "f32x", "f64x")
# what math.h declares, in C, in POSIX and in GNU's
FUNCTIONS = frozenset(f"{name}{kind}" for name in _OF_A_TYPE.split() for kind in _TYPES)
FUNCTIONS |= frozenset(_OF_ALL_TYPES.split())
MACROS = frozenset(f"M_{name}{kind}" for name in _CONSTANTS.split() for kind in _TYPES)
MACROS |= frozenset(_MACROS.split())


def check_name(argument: str, name: object, *, function: bool = False) -> None:
    """Raise unless `name` is an identifier of C and no macro of math.h, nor as a function one of its."""
    expected = "an identifier of C that math.h does not have"
    if not isinstance(name, str):
        raise TypeError(f"{argument}: got {name!r}, expected {expected}")
    known = name in KEYWORDS or name in MACROS or (function and name in FUNCTIONS)
    if known or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(f"{argument}: got {name!r}, expected {expected}")
