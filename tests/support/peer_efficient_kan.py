"""A stand-in for efficient-kan, held to its golden numbers in test_integrations_efficient_kan.py."""

from benchmarks.efficient_kan_form import KAN, KANLinear
from kan_kernels.integrations._shared.revisions import KNOWN
from kan_kernels.integrations._shared.source import definition, fingerprint

__all__ = ["KAN", "KANLinear"]

# its methods around update_grid count as known; its forward does not, and is read as a copy's is
for _name in ("update_grid", "curve2coeff", "b_splines", "scaled_spline_weight"):
    _value = vars(KANLinear)[_name]
    _function = _value.fget if isinstance(_value, property) else _value
    KNOWN["efficient-kan"][_name] += (fingerprint(definition(_function)),)
