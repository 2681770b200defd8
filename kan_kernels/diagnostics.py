"""What is installed here and what of it works: the text of `python -m kan_kernels`."""

import platform
from typing import Any

import torch

import kan_kernels

from . import functional
from ._core import cuda_support, library
from ._core.bases import REMEDY
from ._engine import dispatch


def report() -> tuple[str, bool]:
    """Return the text, and whether all is well: libraries load, and every backend passes a self-check."""
    lines = [
        f"kan_kernels {kan_kernels.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{torch.get_num_threads()} threads"
    ]
    well = library.LOAD_ERROR is None
    lines += ["", "libraries"]
    if well:
        lines.append(f"  ops       {library.LIBRARY}")
        lines.append(
            f"            kernels for {', '.join(library.DEVICES)}; "
            f"on the CPU they run as {library.cpu_isa()}"
        )
        if "cuda" in library.DEVICES:
            lines.append(f"            CUDA code for {cuda_support.built()[0]}")
    else:
        lines.append(f"  ops       not loaded: {library.LOAD_ERROR}")
    path, info, error = numpy_module()
    if error is None:
        lines.append(f"  _C        {path}")
        lines += [f"            {name}: {value}" for name, value in info.items()]
    else:
        lines.append(f"  _C        not loaded: {error}; {REMEDY}")
        well = False
    lines += ["", "backends"]
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device in ("cpu", *(f"cuda:{index}" for index in range(gpus))):
        for name, reason in dispatch.available_backends(device).items():
            if reason is None:
                wrong = self_check(name, device)
                well = well and wrong is None
                reason = "available" if wrong is None else f"WRONG: {wrong}"
            lines.append(f"  {name:<10}{device:<8}{reason}")
    return "\n".join(lines), well


def numpy_module() -> tuple[str, dict[str, Any], str | None]:
    """Return the path of the module _C and its build information, or why it does not import."""
    try:
        from . import _C
    except ImportError as error:
        return "", {}, str(error)
    return _C.__file__, _C.build_info(), None


def self_check(backend: str, device: str = "cpu") -> str | None:
    """Return None if a small layer agrees with the reference here in output and gradients, or what does not.

    In float64, or on AMD's GPUs, for which Triton's kernels have none, in float32.
    """
    in_float64 = device == "cpu" or torch.version.hip is None
    dtype, tolerance = (torch.float64, 1e-12) if in_float64 else (torch.float32, 1e-4)
    generator = torch.Generator().manual_seed(0)
    grid = torch.linspace(-2.0, 2.0, 12, dtype=dtype).repeat(3, 1).to(device)
    shapes = ((16, 3), (3, 8, 5), (3, 5), (5,))
    operands = [torch.randn(shape, generator=generator, dtype=dtype).to(device) for shape in shapes]
    results = []
    for name in (backend, "reference"):
        x, weight, base_weight, bias = leaves = [operand.clone().requires_grad_() for operand in operands]
        y = functional.kan_linear(
            x, weight, grid, spline_order=3, base_weight=base_weight, bias=bias, backend=name
        )
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    for what, ours, reference in zip(("output", "dx", "dspline", "dbase", "dbias"), *results, strict=True):
        error = (ours - reference).abs().max().item() / reference.abs().max().item()
        if not error < tolerance:  # a NaN is wrong too
            return f"{what} differs from the reference by {error:.1e}"
    return None
