"""The CUDA kernels compiled by the host's compiler and run on CPU tensors: a backend for the tests.

`library(flags)` builds them into build/cuda_host; the module-level functions have the signatures of the ops.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parents[2]
ROOT = Path(
    os.environ.get("KAN_CUDA_HOST_ROOT", HERE)
)  # whose kernels: tests/mutations names a copy with a fault
BUILD = HERE / "build" / "cuda_host"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = (
    *("-std=c++20", "-O2", "-g1", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    *("-U_FORTIFY_SOURCE", "-ffp-contract=fast", "-DKAN_UNROLL="),
)
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# How a block's threads take turns; "early": rising, and asynchronous copies land when they are issued.
MODES = {"rising": 0, "falling": 1, "threads": 2, "early": 3}
PATHS = {"auto": 0, "gather": 1, "dense": 2}

NAME = "cuda_host"
DIFFERENTIABLE = False
NAMESPACE = None

_options: dict[str, Any] = {"path": "auto", "tf32": False, "flags": ()}
runner: Callable | None = (
    None  # takes (call, tensors by field) instead of the library, if set: see sanitize.py
)


def why_not() -> str | None:
    """None, or why the kernels cannot be compiled here."""
    return None if shutil.which(COMPILER) else f"there is no compiler {COMPILER}"


def sources(root: Path = ROOT) -> list[Path]:
    """What is compiled: the kernels of `root`, and the stand-ins of this folder."""
    kernels = sorted((root / "csrc" / "cuda").glob("*.cu"))
    return [*kernels, *(Path(__file__).parent / name for name in ("bindings.cpp", "runtime.cpp"))]


def compile_objects(root: Path, folder: Path, flags: tuple[str, ...], jobs: int = 2) -> list[Path]:
    """Objects of every source; a digest of it and of all headers is in their name."""
    headers = [*(root / "csrc").rglob("*.h"), *Path(__file__).parent.glob("*.h")]
    digest = hashlib.sha256(repr((COMPILER, FLAGS, flags)).encode())
    for header in sorted(headers):
        digest.update(header.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)

    def one(source: Path) -> Path:
        own = digest.copy()
        own.update(source.read_bytes())
        target = folder / f"{source.stem}-{own.hexdigest()[:16]}.o"
        if not target.exists():
            part = target.with_suffix(f".{os.getpid()}")
            include = ("-I", str(root / "csrc"), "-I", str(Path(__file__).parent))
            command = [COMPILER, *FLAGS, *flags, *include, "-x", "c++", "-c", str(source), "-o", str(part)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{source.name} does not compile:\n{done.stderr[-4000:]}")
            part.replace(target)
        return target

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, sources(root)))


@cache
def library(root: Path = ROOT, flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The kernels of `root` as a shared library of this process."""
    objects = compile_objects(root, BUILD, flags)
    name = hashlib.sha256("".join(map(str, objects)).encode()).hexdigest()[:16]
    target = BUILD / f"libcuda_host-{name}.so"
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [COMPILER, "-shared", "-pthread", *flags, *map(str, objects), "-o", str(part)], check=True
        )
        part.replace(target)
    return ctypes.CDLL(str(target))


@contextlib.contextmanager
def options(
    *, path: str = "auto", tf32: bool = False, mode: str = "rising", flags: tuple[str, ...] = ()
) -> Iterator[None]:
    """What the calls inside do: the kernels' path, whether TF32 is allowed, how threads take turns.

    flags: for a library of kernels that were compiled with them.
    """
    before = dict(_options)
    _options.update(path=path, tf32=tf32, flags=flags)
    library(flags=flags).kan_cuda_host_mode(MODES[mode])
    try:
        yield
    finally:
        _options.update(before)
        library(flags=flags).kan_cuda_host_mode(MODES["rising"])


class _View(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("dtype", "rows", "cols")))


_SIZES = ("batch", "in_features", "out_features", "grid_size", "spline_order", "base", "weight_dtype")


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in ("grid", "spline_weight", "base_weight", "bias")),
        *((name, _View) for name in ("x", "side", "g")),
        *((name, ctypes.c_int64) for name in ("derivative", "input_derivative")),
        *((name, ctypes.c_void_p) for name in ("y", "input", "d_spline", "d_base")),
        *((name, ctypes.c_int64) for name in ("path", "tf32")),
    )


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _view(tensor: Tensor | None) -> _View:
    if tensor is None:
        return _View()
    return _View(tensor.data_ptr(), DTYPES[tensor.dtype], *tensor.stride())


def _run(x, s, spline_weight, base_weight, bias, g, grid, order, base, derivative, input_derivative, **out):
    """Fill the tensors in `out` (y, input, d_spline, d_base)."""
    names = ("grid", "spline_weight", "base_weight", "bias")
    layer = {
        name: None if t is None else t.contiguous()
        for name, t in zip(names, (grid, spline_weight, base_weight, bias), strict=True)
    }
    like = spline_weight if g is None else g
    call = _Call(
        *x.shape, like.shape[-1], grid.shape[1] - 2 * order - 1, order, base, DTYPES[like.dtype],
        *map(_pointer, layer.values()), _view(x), _view(s), _view(g), derivative, input_derivative,
        *(_pointer(out.get(name)) for name in ("y", "input", "d_spline", "d_base")),
        PATHS[_options["path"]], _options["tf32"],
    )  # fmt: skip
    if runner is not None:
        return runner(call, {**layer, "x": x, "side": s, "g": g}, out)
    if library(flags=_options["flags"]).kan_cuda_host_call(ctypes.byref(call)) != 0:
        raise RuntimeError("the kernels raised; their message is on stderr")


def _empty(like: Tensor, *shape: int) -> Tensor:
    """At least one number, so that it has an address; poisoned."""
    tensor = like.new_full((max(1, torch.Size(shape).numel()),), torch.nan)
    return tensor[: torch.Size(shape).numel()].view(shape)


def forward(x, s, spline_weight, base_weight, bias, grid, order, base, derivative, basis=0):
    y = _empty(spline_weight, x.shape[0], spline_weight.shape[2])
    _run(x, s, spline_weight, base_weight, bias, None, grid, order, base, derivative, 0, y=y)
    return y


def input(x, spline_weight, base_weight, g, grid, order, base, derivative, basis=0):
    t = _empty(x, *x.shape)
    _run(x, None, spline_weight, base_weight, None, g, grid, order, base, 0, derivative, input=t)
    return t


def _gradients(x, g, grid, order, base) -> dict[str, Tensor]:
    rows = grid.shape[1] - order - 1
    shape = (x.shape[1], g.shape[1]) if base else (0,)
    return {"d_spline": _empty(g, x.shape[1], rows, g.shape[1]), "d_base": _empty(g, *shape)}


def weight(x, s, g, grid, order, base, derivative, basis=0, like=None):
    out = _gradients(x, g, grid, order, base)
    _run(x, s, None, None, None, g, grid, order, base, derivative, 0, **out)
    return out["d_spline"], out["d_base"]


def backward(x, spline_weight, base_weight, g, grid, order, base, derivative, basis=0):
    t, out = _empty(x, *x.shape), _gradients(x, g, grid, order, base)
    _run(
        x,
        None,
        spline_weight,
        base_weight,
        None,
        g,
        grid,
        order,
        base,
        derivative,
        derivative + 1,
        input=t,
        **out,
    )
    return t, out["d_spline"], out["d_base"]


def can_run(case) -> str | None:
    return why_not()
