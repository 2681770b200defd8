"""Fused kernels for Kolmogorov-Arnold Networks.

    from kan_kernels import KAN
    model = KAN([2, 5, 1])

Without torch installed, only the NumPy model of a trained KAN is here.
"""

import importlib.util
import sys

if sys.version_info < (3, 10):  # noqa: UP036  (a clone on the path, which no installer has checked)
    raise ImportError(f"kan_kernels needs Python >= 3.10; this is {sys.version.split()[0]}")

from ._core.bases import MAX_DERIVATIVE, MAX_SPLINE_ORDER, MIN_TORCH
from .deploy.numpy_model import NumpyKAN, to_numpy_model

__version__ = "0.1.0"
__all__ = ["MAX_DERIVATIVE", "MAX_SPLINE_ORDER", "NumpyKAN", "__version__", "to_numpy_model"]

if importlib.util.find_spec("torch") is not None:
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < MIN_TORCH:
        raise ImportError(
            f"kan_kernels needs torch >= {'.'.join(map(str, MIN_TORCH))}; this is {torch.__version__}"
        )
    from . import functional
    from ._core.graphs import warm_up
    from ._engine.dispatch import available_backends, explain, use_backend
    from ._engine.flops import register as _register_flops
    from ._engine.sharding import register as _register_sharding
    from .nn import KAN, KANActivation, KANFeedForward, KANLinear, MultiHeadKANLinear
    from .nn.conv import KANConv1d, KANConv2d, KANConv3d

    _register_flops()
    _register_sharding()
    __all__ += ["KAN", "KANActivation", "KANConv1d", "KANConv2d", "KANConv3d", "KANFeedForward", "KANLinear"]
    __all__ += ["MultiHeadKANLinear"]
    __all__ += ["available_backends", "explain", "functional", "use_backend", "warm_up"]
