"""What is installed here and what of it works: the text of `python -m kan_kernels`."""

import platform
from typing import Any

import torch

import kan_kernels

from . import dispatch, functional, ops


def report() -> tuple[str, bool]:
    """The text, and whether all is well: the libraries load, and every backend passes a self-check."""
    lines = [
        f"kan_kernels {kan_kernels.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{torch.get_num_threads()} threads"
    ]
    well = ops.LOAD_ERROR is None
    lines += ["", "libraries"]
    if well:
        lines.append(f"  ops       {ops.LIBRARY}")
        lines.append(
            f"            kernels for {', '.join(ops.DEVICES)}; on the CPU they run as {ops.cpu_isa()}"
        )
        if "cuda" in ops.DEVICES:
            lines.append(f"            CUDA code for {torch.ops.kan_kernels.cuda_architectures()}")
    else:
        lines.append(f"  ops       not loaded: {ops.LOAD_ERROR}")
    path, info, error = numpy_module()
    if error is None:
        lines.append(f"  _C        {path}")
        lines += [f"            {name}: {value}" for name, value in info.items()]
    else:
        lines.append(f"  _C        not loaded: {error}")
        well = False
    lines += ["", "backends"]
    for name, reason in dispatch.available_backends().items():
        if reason is None:
            wrong = self_check(name)
            well = well and wrong is None
            reason = "available" if wrong is None else f"WRONG: {wrong}"
        lines.append(f"  {name:<10}{reason}")
    return "\n".join(lines), well


def numpy_module() -> tuple[str, dict[str, Any], str | None]:
    """The path of the module _C and its build information, or the reason why it does not import."""
    try:
        from kan_kernels import _C
    except ImportError as error:
        return "", {}, str(error)
    return _C.__file__, _C.build_info(), None


def self_check(backend: str) -> str | None:
    """None if a small layer's output and gradients agree with the reference in float64, or what does not."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.linspace(-2.0, 2.0, 12, dtype=torch.float64).repeat(3, 1)
    shapes = ((16, 3), (3, 8, 5), (3, 5), (5,))
    operands = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    results = []
    for name in (backend, "reference"):
        x, weight, base_weight, bias = leaves = [operand.clone().requires_grad_() for operand in operands]
        y = functional.kan_linear(
            x, weight, grid, spline_order=3, base_weight=base_weight, bias=bias, backend=name
        )
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    for what, ours, reference in zip(("output", "dx", "dspline", "dbase", "dbias"), *results, strict=True):
        error = (ours - reference).abs().max().item() / reference.abs().max().item()
        if not error < 1e-12:  # a NaN is wrong too
            return f"{what} differs from the reference by {error:.1e}"
    return None
