"""What the CUDA backend says where it cannot run, which path a shape takes, and what is in the library."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from harness import ROOT
from kan_kernels import available_backends, diagnostics, explain
from kan_kernels._core import cuda_support, library
from kan_kernels._core.problem import Problem
from kan_kernels._engine import cost_model, dispatch, layer
from kan_kernels.backends import BACKENDS

needs_cuda_build = pytest.mark.skipif(
    "cuda" not in library.DEVICES, reason="the library was built without CUDA kernels: there was no nvcc"
)


@pytest.mark.parametrize(
    "capability,compiled,runs",
    [
        ((9, 0), "80-real 80-virtual", True),
        ((9, 0), "80-real", False),
        ((8, 9), "86-real", True),
        ((8, 0), "86-real 86-virtual", False),
        ((10, 0), "90-real", False),
        ((10, 0), "90-real 90-virtual", True),
        ((12, 1), "90-real 120-real", True),
    ],
)
def test_architectures(capability: tuple[int, int], compiled: str, runs: bool) -> None:
    """Machine code runs on its own family from its own number on, PTX on everything newer."""
    reason = cuda_support.why_not_on(capability, compiled, 13000, 13000)
    assert (reason is None) is runs
    if reason is not None:
        assert f"TORCH_CUDA_ARCH_LIST={capability[0]}.{capability[1]}" in reason


@pytest.mark.parametrize(
    "driver,runtime,words",
    [
        (12040, 13000, ("CUDA 13.0", "CUDA 12.4", "580 or newer", "nvcc 12.4 or older")),
        (11080, 12010, ("CUDA 12.1", "CUDA 11.8", "525 or newer")),
        (12020, 12080, ()),  # machine code of the same major version
        (13000, 12080, ()),
        (13010, 13000, ()),
    ],
)
def test_driver_older_than_the_library(driver: int, runtime: int, words: tuple[str, ...]) -> None:
    """A driver of an older CUDA: both versions and what to do, before any call; else it runs."""
    reason = cuda_support.why_not_on((9, 0), "80-real 90-real 90-virtual", driver, runtime)
    assert (reason is None) is (words == ())
    assert all(word in str(reason) for word in words)


def test_ptx_needs_a_driver_as_new() -> None:
    """PTX is compiled by the driver, which knows none of a later CUDA's, in the same major version too."""
    assert cuda_support.why_not_on((12, 0), "90-real 90-virtual", 12080, 12080) is None
    reason = cuda_support.why_not_on((12, 0), "90-real 90-virtual", 12040, 12080)
    assert reason is not None
    assert all(word in reason for word in ("12.8", "12.4", "PTX", "update", "TORCH_CUDA_ARCH_LIST=12.0"))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda:0 is an H100 and the current device, cuda:1 a T4; the library and the driver have CUDA 13.0."""
    capabilities = {None: (9, 0), 0: (9, 0), 1: (7, 5)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: capabilities[index])
    monkeypatch.setattr(library, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setitem(BACKENDS["native"]._DEVICES, "kan_linear", ("cpu", "cuda"))
    monkeypatch.setattr(library, "LOAD_ERROR", None)
    monkeypatch.setattr(cuda_support, "built", lambda: ("80-real 90-real", (13000, 13000)))
    costs = {name: cost_model.Cost("dense", {"forward": 1.0}) for name in ("native", "triton")}
    monkeypatch.setattr(cost_model, "gpu_costs", lambda *_: costs)
    monkeypatch.setattr(cost_model, "native_path", lambda *_: "dense path")


def test_the_device_of_x_is_asked(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer on cuda:1 is judged by cuda:1, whichever device is current: reasons, choice and cost model."""
    case = Problem("cuda", torch.float32, torch.float32, 64, 64, 8, 3, index=1)
    for name in ("native", "triton"):
        reason = str(BACKENDS[name].can_run(case))
        if name == "native" or "not installed" not in reason:
            assert "7.5" in reason and "8.0" in reason and "CPU" in reason
            assert available_backends("cuda:1")[name] == reason
            with pytest.raises(RuntimeError, match=r"7\.5"):
                dispatch.choose(case, name)
            assert reason in explain((64, 64), device="cuda:1")
    assert BACKENDS["native"].can_run(dataclasses.replace(case, index=0)) is None
    assert available_backends("cuda:0")["native"] is None
    monkeypatch.setattr(dispatch, "_warned", set())
    with FakeTensorMode(), pytest.warns(RuntimeWarning, match=r"7\.5"):
        chosen = [layer.spec_of(*_layer(f"cuda:{index}"), 3, "silu", 0, None).backend for index in (1, 0)]
    assert chosen[0].NAME == "reference" and chosen[1].NAME != "reference"


def test_triton_runs_where_the_driver_is_too_old_for_the_library(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels of a newer CUDA than the driver's are not tried, Triton's are; the answer has the reason."""
    pytest.importorskip("triton")
    monkeypatch.setattr(cuda_support, "built", lambda: ("90-real 90-virtual", (12040, 13000)))
    case = Problem("cuda", torch.float32, torch.float32, 64, 64, 8, 3, index=0)
    choice = dispatch.choose(case)
    assert choice.backend.NAME == "triton"
    assert "CUDA 13.0" in choice.passed_over["native"] and "CUDA 12.4" in choice.passed_over["native"]
    with pytest.raises(RuntimeError, match="580 or newer"):
        dispatch.choose(case, "native")


def test_the_costs_are_those_of_the_device_of_x(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost model is asked for the architecture of x's own device."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (12 if index else 9, 0))
    asked = []
    monkeypatch.setattr(cost_model, "gpu_costs", lambda case, device, tf32: asked.append(device.arch))
    for index in (1, 0, None):
        dispatch._gpu_costs(Problem("cuda", torch.float32, torch.float32, 8, 8, 8, 3, index=index))
    assert asked == [120, 90, 90]


def test_the_report_asks_every_device(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m kan_kernels`: each backend on each device, checked where it runs, else with its reason."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    checked: list[tuple[str, str]] = []
    monkeypatch.setattr(
        diagnostics, "self_check", lambda backend, device="cpu": checked.append((backend, device))
    )
    text, _ = diagnostics.report()
    assert (
        "native    cuda:0  available" in text
        and "native    cuda:1  the GPU has compute capability 7.5" in text
    )
    assert ("native", "cuda:0") in checked and ("native", "cuda:1") not in checked
    assert ("reference", "cpu") in checked


def _layer(device: str) -> tuple[torch.Tensor | None, ...]:
    """x, weight, grid, base_weight, bias."""
    shapes = ((4, 64), (64, 8, 64), (64, 12), (64, 64))
    return (*(torch.empty(shape, device=device) for shape in shapes), None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_reason_without_gpu() -> None:
    """explain() and the error give the same reason, and it names a remedy."""
    reason = cuda_support.why_not(None)
    assert reason is not None and any(word in reason for word in ("install", "rebuild", "driver"))
    case = Problem("cuda", torch.float32, torch.float32, 8, 8, 8, 3)
    with pytest.raises(RuntimeError) as error:
        dispatch.choose(case, "native")
    assert reason in str(error.value)
    assert reason in explain((8, 8), device="cuda")


@needs_cuda_build
def test_versions() -> None:
    """The library knows the CUDA that it was built with, and asks the driver for its own."""
    driver, runtime = torch.ops.kan_kernels.cuda_versions()
    assert runtime >= 12010 and (driver == 0 or driver >= 11000)


@needs_cuda_build
@pytest.mark.parametrize(
    "setting",
    [
        "torch.set_float32_matmul_precision('high')",
        "torch.set_float32_matmul_precision('highest')",
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.backends.fp32_precision = 'tf32'",
    ],
)
def test_tf32_follows_torch(setting: str) -> None:
    """The kernels and the choice of a backend ask the same, whichever of torch's settings was made."""
    code = (
        f"import torch, kan_kernels; {setting}; print(torch.ops.kan_kernels.cuda_tf32_allowed(), "
        "torch.backends.cuda.matmul.fp32_precision == 'tf32')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str("highest" not in setting)] * 2


@needs_cuda_build
def test_sizes_that_no_layer_has() -> None:
    """Numbers past 32 bits fit nowhere; codes that mean nothing are an error and not a crash."""
    ops = torch.ops.kan_kernels
    for functions in (2**19 - 1, 2**19, 2**20, 2_000_000):
        for layers in (1, 8):
            sizes = [64] * layers, [64] * layers, [functions] * layers
            said = ops.cuda_network_reason(4, *sizes, 3, 0, 0, False, 9)
            assert said == ("the parameters do not fit in shared memory",) * 2
    with pytest.raises(RuntimeError, match="functions must be"):
        ops.cuda_costs(4, 8, 8, -5, 0, 0, 0, 0, 9, 1)
    for arguments, message in (
        ((-1, 8, 8, 8, 3, 1, 0, 0, 9, 0), "must not be negative"),
        ((4, 8, 8, 8, 3, 1, 0, 2**32 + 1, 9, 0), "derivative must be"),
        ((4, 8, 8, 8, 3, 1, 0, 0, 2**32 + 9, 0), "capability_major must be"),
        ((4, 8, 8, 8, 3, 1, 99, 0, 9, 0), "dtype"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.cuda_costs(*arguments)


@needs_cuda_build
@pytest.mark.parametrize(
    "shape,dtype,batch,path",
    [
        ((512, 512, 5), torch.bfloat16, 8192, "dense"),
        ((64, 64, 5), torch.float32, 1000, "dense"),
        ((64, 64, 20), torch.float32, 1000, "gather"),  # strict: splitting the operands costs more
        ((64, 64, 20), torch.bfloat16, 1000, "dense"),
        ((512, 512, 128), torch.float32, 8192, "gather"),  # long grid
        ((2, 5, 5), torch.float32, 1000, "gather"),  # narrow
        ((64, 64, 5), torch.float64, 1000, "gather"),
        ((64, 64, 85), torch.float32, 1000, "gather"),  # strict, and nearly too long
    ],
)
def test_path(shape: tuple[int, int, int], dtype: torch.dtype, batch: int, path: str) -> None:
    """The cost model's choices; the text has both costs."""
    case = Problem("cuda", dtype, dtype, *shape[:2], shape[2] + 3, 3)
    text = cost_model.native_path(case, 8, batch)
    assert text.startswith(f"{path} path") and "cycles an edge" in text
    assert min((cost, name) for name, cost in cost_model.native_paths(case, 8, batch).items())[1] == path


@needs_cuda_build
@pytest.mark.parametrize(
    "changes,path,words",
    [
        ({"dtype": torch.bfloat16}, "matrix units", ""),
        ({"dtype": torch.float32}, "multiply-adds", "not rounded to TF32"),
        ({"dtype": torch.float64}, "multiply-adds", "float64"),
        ({"dtype": torch.float16, "derivative": 1}, "matrix units", ""),
        ({"dtype": torch.float16, "derivative": 2}, "multiply-adds", "too large for float16"),
    ],
)
@pytest.mark.parametrize("basis", ["rbf", "chebyshev"])
def test_path_of_full_support(basis: str, changes: dict[str, Any], path: str, words: str) -> None:
    """Matrix units wherever they can, with the reason where not; wide layers cost less an edge."""
    facts: dict[str, Any] = {"basis": basis, "functions": 8, **changes}
    dtype = facts.pop("dtype")
    cases = [Problem("cuda", dtype, dtype, 64, out, **facts) for out in (5, 64, 512)]
    text = cost_model.native_path(cases[0], 8)
    assert text.startswith(f"{path} path; cycles an edge:") and words in text
    costs = [cost_model.native_paths(case, 8) for case in cases]
    assert all(min((cost, name) for name, cost in each.items())[1] == path for each in costs)
    assert costs[0][path] > costs[1][path] >= costs[2][path]
