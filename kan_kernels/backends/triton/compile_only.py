"""Compile the kernels for GPUs that are not here: what `launch` would launch for given shapes, as machine
code.

The contractions run on meta tensors with the launch itself replaced by a recorder, so that what is compiled
is what would run, tile and constants included. Used by tests and by `python -m tools.static_cost`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..._core.bases import BASES, FULL_SUPPORT
from . import launch, launcher, tiling
from .blocking import ceil_div

ARCHS = (80, 90, 100)
SMALL = 86  # like 89 and 120 it has 99 KiB of shared memory for a block
_POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}
_SHORT = {
    torch.float32: "strict fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


class Launch(NamedTuple):
    """A launch: its arguments are meta tensors and numbers."""

    kernel: Any
    arguments: tuple
    constants: dict[str, Any]
    tile: dict[str, int]
    blocks: int

    @property
    def name(self) -> str:
        """Return the kernel's name."""
        return self.kernel.fn.__name__

    def turns(self) -> list[int]:
        """Return how often a block runs each loop of products, that with the most work a turn first."""
        names = (parameter.name for parameter in self.kernel.params)
        sizes = dict(zip(names, self.arguments, strict=False))
        tile, facts = self.tile, self.constants
        if self.name in ("dense_backward", "base_gradient"):
            return [ceil_div(min(sizes["ROWS"], sizes["B"]), tile["BM"])]
        groups = ceil_div(facts["R"], tile["RG"]) if "RG" in tile else 1
        if self.name == "dense_forward":
            spline = ceil_div(sizes["I"], tile["BI"]) * (groups if groups > 4 else 1)
            return [spline, *([ceil_div(sizes["I"], tile["BK"])] if facts["BASE"] else [])]
        if self.name == "dense_input":
            outputs = ceil_div(sizes["O"], tile["BK"])
            together = groups == 1 and tile["TOGETHER"]
            return [outputs * groups, *([outputs] if facts["BASE"] and not together else [])]
        return []


@dataclass(frozen=True)
class Spec:
    """A kernel in one dtype ("tf32" and "strict fp32" both store float32) and one situation."""

    kernel: str
    dtype: str
    options: str
    archs: tuple[int, ...]  # it is checked for
    launched: Callable[[int], Launch] = field(compare=False, repr=False)  # arch -> an entry of `record`


@dataclass(frozen=True)
class Compiled:
    """The outcome of Triton's compiler. `binary` is a cubin, or an hsaco for AMD."""

    binary: bytes
    assembly: str
    ttgir: str
    shared: int
    num_warps: int

    @property
    def cubin(self) -> bytes:
        return self.binary


def record(op: str, dtype: torch.dtype, shape: tuple[int, int, int], *, grid_size: int = 5, order: int = 3,
           derivative: int = 0, base: int = 1, side: bool = False, bias: bool = False, uniform: bool = True,
           tf32: bool = False, basis: str = "bspline", arch: int = 90) -> list[Launch]:  # fmt: skip
    """Return the launches of one contraction, on meta tensors.

    shape: (batch, in_features, out_features or heads). uniform: as if every feature's knots were.
    basis: one of full support has grid_size functions, and no order.
    arch: the compute capability for which tiles are chosen.
    """
    rows, features, width = shape
    code = BASES[basis].code
    if not BASES[basis].local:
        order = 0
    functions = grid_size + order
    columns = BASES[basis].columns(functions, order)

    def empty(*size: int, as_dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(size, dtype=as_dtype, device="meta")

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, narrow = empty(rows, features, as_dtype=wide), empty(rows, features)
    s = empty(rows, features, as_dtype=wide) if side else None
    spline, base_weight = empty(features, functions, width), empty(features, width) if base else None
    g, grid = empty(rows, width), empty(features, columns, as_dtype=wide)
    heads = empty(rows, width, features).transpose(1, 2)
    tail = (grid, functions, order, base, derivative, code)
    arguments = {
        "kan_linear": (x, s, spline, base_weight, empty(width) if bias else None, *tail),
        "kan_linear_grad_input": (x, spline, base_weight, g, *tail),
        "kan_linear_grad_weight": (x, s, g, *tail),
        "kan_linear_backward": (x, spline, base_weight, g, *tail),
        "kan_activation": (narrow, s, spline, base_weight, *tail),
        "kan_activation_grad_input": (narrow, spline, base_weight, heads, *tail),
        "kan_activation_grad_weight": (narrow, s, heads, *tail),
        "kan_activation_backward": (narrow, spline, base_weight, heads, *tail),
    }[op]
    launches: list[Launch] = []

    def recorder(kernel, device, blocks, arguments, constants, tile) -> None:
        launches.append(Launch(kernel, arguments, constants, tile, blocks))

    with (
        mock.patch.object(tiling, "launch", recorder),
        mock.patch.object(launch, "are_uniform", lambda grid: uniform),
        mock.patch.object(launch, "tf32_allowed", lambda: tf32),
        mock.patch.object(tiling, "architecture", lambda device: arch),
    ):
        launcher(op)(*arguments)
    return launches


def specializations() -> Iterator[Spec]:
    """Return each kernel in each dtype for each architecture; what strains the compiler, for sm_90 alone."""
    wide, narrow, medium = (8192, 512, 512), (1000, 2, 5), (4096, 128, 128)
    half = (torch.bfloat16, torch.float16)
    for dtype, tf32 in [*((d, False) for d in half), (torch.float32, True), (torch.float32, False)]:
        yield from _specs("kan_linear", dtype, wide, "[512,512] G=5", tf32=tf32)
        yield from _specs("kan_linear_grad_input", dtype, wide, "[512,512] G=5", derivative=1, tf32=tf32)
        yield from _specs("kan_linear_grad_weight", dtype, wide, "[512,512] G=5", tf32=tf32)
    for dtype in half:
        yield from _specs("kan_linear_backward", dtype, medium, "[128,128] G=5, one pass", (90, 100))
        yield from _specs("kan_linear_backward", dtype, (4096, 32, 32), "[32,32] G=5, one pass")
    for dtype in (*half, torch.float32, torch.float64):
        for op, derivative in (("kan_linear", 0), ("kan_linear_grad_input", 1), ("kan_linear_backward", 0)):
            yield from _specs(op, dtype, narrow, "[2,5] G=5", derivative=derivative)
    once: dict[str, Any] = {"archs": (90,)}
    for dtype, tf32 in ((torch.bfloat16, False), (torch.float32, True), (torch.float32, False)):
        yield from _specs(
            "kan_linear", dtype, wide, "[512,512] G=28", grid_size=28, tf32=tf32, archs=(SMALL,)
        )
        yield from _specs(
            "kan_linear_grad_weight", dtype, wide, "[512,512] G=28", grid_size=28, tf32=tf32, archs=(SMALL,)
        )
        yield from _specs(
            "kan_linear_grad_input",
            dtype,
            wide,
            "[512,512] G=28, m=1",
            grid_size=28,
            derivative=1,
            tf32=tf32,
            archs=(SMALL,),
        )
    for dtype in (torch.bfloat16, torch.float32):
        yield from _specs("kan_linear", dtype, wide, "[512,512] G=20", grid_size=20, **once)
        yield from _specs(
            "kan_linear", dtype, wide, "[512,512] G=5, any knots, side, bias, identity, m=1",
            uniform=False, side=True, bias=True, base=2, derivative=1, **once,
        )  # fmt: skip
        yield from _specs("kan_linear", dtype, wide, "[512,512] G=6 k=10", grid_size=6, order=10, **once)
        yield from _specs(
            "kan_linear_grad_weight", dtype, wide, "[512,512] G=6 k=10", grid_size=6, order=10, **once
        )
        yield from _specs(
            "kan_linear_grad_input",
            dtype,
            wide,
            "[512,512] G=6 k=10, m=1",
            grid_size=6,
            order=10,
            derivative=1,
            **once,
        )
    yield from _specs("kan_linear", torch.float32, wide, "[512,512] G=20", grid_size=20, tf32=True, **once)
    yield from _specs(
        "kan_linear_backward",
        torch.bfloat16,
        medium,
        "[128,128] G=5, one pass, any knots",
        uniform=False,
        **once,
    )
    yield from _specs("kan_linear_grad_weight", torch.float64, (1000, 64, 64), "[64,64] G=5", **once)
    for basis in FULL_SUPPORT:
        yield from _full_support(basis)
    yield from _activations()


def _activations() -> Iterator[Spec]:
    """Return the kernels of kan_activation: heads 1 and 4, then whatever takes another path."""
    ops = (("kan_activation", 0), ("kan_activation_grad_input", 1), ("kan_activation_backward", 0))
    once: dict[str, Any] = {"archs": (90,)}
    half = torch.bfloat16
    for op, m in ops:
        for dtype, heads, archs in ((half, 1, ARCHS), (half, 4, (90,)), (torch.float32, 1, (80, 90))):
            shape = (4096, 1024, heads)
            for spec in _specs(op, dtype, shape, f"[1024] x {heads} G=5", archs, derivative=m):
                table = op == "kan_activation" and spec.kernel == "polynomial_table"
                if table or spec.kernel.startswith("activation"):
                    yield spec
        for dtype, heads, options, settings in (
            (torch.float16, 1, "G=5", {}),
            (torch.float64, 3, "G=5", {}),
            (half, 1, "G=5, any knots", {"uniform": False}),
            (torch.float32, 2, "G=6 k=5", {"grid_size": 6, "order": 5}),
            (half, 1, "rbf R=8", {"basis": "rbf", "grid_size": 8}),
            (half, 1, "chebyshev R=8", {"basis": "chebyshev", "grid_size": 8}),
        ):
            settings = {**settings, **once, "derivative": m}
            for spec in _specs(op, dtype, (4096, 1024, heads), f"[1024] x {heads} {options}", **settings):
                if spec.kernel.startswith("activation"):
                    yield spec
    many = (4096, 1024, 8), "[1024] x 8 G=28, side"
    for spec in _specs("kan_activation_grad_weight", half, *many, grid_size=28, side=True, **once):
        if spec.kernel.startswith("activation"):
            yield spec


def step(dtype: torch.dtype, shape: tuple[int, int, int], arch: int, tf32: bool) -> list[Launch]:
    """Return the launches of a training step of one layer: forward, and both gradients."""
    settings: dict[str, Any] = {"tf32": tf32, "arch": arch}
    return [
        *record("kan_linear", dtype, shape, **settings),
        *record("kan_linear_backward", dtype, shape, **settings),
    ]


def _full_support(basis: str) -> Iterator[Spec]:
    """Return the kernels of a basis of full support, each in what strains it."""
    wide, both = (8192, 512, 512), (80, 90)
    facts: dict[str, Any] = {"basis": basis, "grid_size": 8, "base": 0}
    for dtype, tf32 in ((torch.bfloat16, False), (torch.float32, True), (torch.float32, False)):
        yield from _specs("kan_linear", dtype, wide, f"[512,512] {basis} R=8", both, tf32=tf32, **facts)
    for dtype in (torch.bfloat16, torch.float32):
        yield from _specs("kan_linear_grad_weight", dtype, wide, f"[512,512] {basis} R=8", both, **facts)
        yield from _specs(
            "kan_linear_grad_input", dtype, wide, f"[512,512] {basis} R=8, m=1", (90,), derivative=1, **facts
        )
    yield from _specs(
        "kan_linear_backward",
        torch.bfloat16,
        (4096, 128, 128),
        f"[128,128] {basis} R=8, one pass",
        (90,),
        **facts,
    )
    facts["grid_size"] = 40
    yield from _specs(
        "kan_linear",
        torch.bfloat16,
        wide,
        f"[512,512] {basis} R=40, side, m=2",
        (90,),
        side=True,
        derivative=2,
        **facts,
    )
    yield from _specs(
        "kan_linear_grad_weight",
        torch.float32,
        wide,
        f"[512,512] {basis} R=40, side",
        (90,),
        side=True,
        **facts,
    )
    for op, m in (("kan_linear", 0), ("kan_linear_grad_input", 1), ("kan_linear_backward", 0)):
        yield from _specs(
            op,
            torch.float64,
            (1000, 2, 5),
            f"[2,5] {basis} R=8",
            (90,),
            derivative=m,
            basis=basis,
            grid_size=8,
        )


def _specs(
    op: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    options: str,
    archs: tuple[int, ...] = ARCHS,
    **settings,
) -> Iterator[Spec]:
    name = "tf32" if settings.get("tf32") else _SHORT[dtype]
    kernels = {arch: [one.name for one in record(op, dtype, shape, **settings, arch=arch)] for arch in archs}
    # The parts of d_spline and d_base are summed by one kernel, where there are parts.
    for kernel in dict.fromkeys(name for names in kernels.values() for name in names):

        def launched(arch: int, kernel=kernel) -> Launch:
            made = record(op, dtype, shape, **settings, arch=arch)
            return next(entry for entry in made if entry.name == kernel)

        yield Spec(kernel, name, options, tuple(arch for arch in archs if kernel in kernels[arch]), launched)


def compile_spec(spec: Spec, arch: int | str) -> Compiled:
    """Return the code of one specialisation. arch: 80, 90, 100 for CUDA, or an AMD name such as "gfx942"."""
    return compile_launch(spec.launched(arch if isinstance(arch, int) else 90), arch)


def compile_launch(launched: Launch, arch: int | str) -> Compiled:
    """Return machine code of one launch."""
    kernel, arguments, constants, tile, _ = launched
    options: dict[str, Any] = {"enable_fp_fusion": True}
    constants = dict(constants)
    for name, value in tile.items():
        (options if name in ("num_warps", "num_stages") else constants)[name] = value
    names = [parameter.name for parameter in kernel.params]
    signature, attributes, fixed = {}, {}, dict(constants)
    for position, (name, value) in enumerate(zip(names, arguments, strict=False)):
        if value is None or (isinstance(value, int) and value == 1):
            signature[name], fixed[name] = "constexpr", value
            continue
        if isinstance(value, int):
            signature[name] = "i32" if value < 2**31 else "i64"
        else:
            signature[name] = _POINTERS[value.dtype]
        if not isinstance(value, int) or value % 16 == 0:
            attributes[(position,)] = [["tt.divisibility", 16]]
    for name in names[len(arguments) :]:
        signature[name] = "constexpr"
    if isinstance(arch, str):
        target = GPUTarget("hip", arch, 64)
        options["num_stages"] = min(options["num_stages"], 2)
        fixed = {name: "ieee" if name == "PRECISION" else value for name, value in fixed.items()}
    else:
        target = GPUTarget("cuda", arch, 32)
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=attributes)
    made = triton.compile(source, target=target, options=options)
    binary, assembly = ("hsaco", "amdgcn") if isinstance(arch, str) else ("cubin", "ptx")
    return Compiled(
        made.asm[binary], made.asm[assembly], made.asm["ttgir"], made.metadata.shared, made.metadata.num_warps
    )
