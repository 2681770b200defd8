"""What a CUDA graph is captured with, and memory that streams share, on the GPU that is not there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import kan_kernels
from harness import child

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

# Launches of the Triton kernels are written down in place of running; tiles are measured by taking the last.
PRETEND = """
import warnings, pretend_gpu, torch
pretend_gpu.install()
torch.cuda.get_device_capability = lambda *a: (9, 0)
from kan_kernels import warm_up
from kan_kernels.functional import linear as functional
from kan_kernels.backends import triton
from kan_kernels.backends.triton import knots, tiling, tuning
triton._PLAIN += (pretend_gpu.PretendTensor,)
launches, looks, measured, look = [], [], [], knots._look
def launch(kernel, device, blocks, arguments, constants, tile):
    launches.append((kernel.fn.__name__, constants.get("POLY") is not None, tile, arguments))
def measure(tiles, run):
    measured.append(tiles)
    return tiles[-1]
tiling.launch, tuning._measure, tuning._save = launch, measure, lambda: None
knots._look = lambda grid: looks.append(grid) or look(grid)
def layer(dtype=torch.float32, knots_dtype=torch.float32):
    grid = (torch.arange(12) / 4.0 - 2.0).to(knots_dtype).repeat(64, 1).to("cuda")
    x = torch.rand(256, 64).to("cuda")
    weights = [torch.rand(*shape).to(torch.bfloat16).to("cuda") for shape in ((64, 8, 128), (64, 128))]
    call = lambda: functional.kan_linear(
        x, weights[0], grid, spline_order=3, base_weight=weights[1], backend="triton")
    return call, grid
def captured(call):
    launches.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            call()
    forward = [entry for entry in launches if entry[0] == "dense_forward"]
    assert len(forward) == 1
    return *forward[0][1:3], [str(w.message) for w in said]
"""

CAPTURE = """
call, _ = layer()
fast, tile, said = captured(call)
assert not fast and not looks and not measured
assert len(said) == 2 and all("kan_kernels.warm_up(step) before the capture" in text for text in said), said

warm_up(call)
assert len(looks) == 1 and len(measured) == 1 and len(measured[0]) > 1
fast, tile, said = captured(call)
assert fast and not said, said
assert {**tile, "EVEN_I": 0, "EVEN_O": 0} == {**measured[0][-1], "EVEN_I": 0, "EVEN_O": 0}
assert len(looks) == 1 and len(measured) == 1

call, grid = layer(knots_dtype=torch.bfloat16)
warm_up(call)
fast, tile, said = captured(call)
assert fast and not said, said
kept = launches[-1][3][5].data_ptr()
grid.add_(0.0)
del launches[:]
call()
assert launches[-1][3][5].data_ptr() != kept, "an eager call's copy is not the graph's"
assert kept in [copy.data_ptr() for copy in functional._captured.values()], "the graph still writes it"
"""

STREAMS = """
call, _ = layer(knots_dtype=torch.bfloat16)
call()
copy, first = launches[-1][3][5], torch.cuda.current_stream()
assert copy.dtype == torch.float32
other = torch.cuda.Stream()
with torch.cuda.stream(other):
    call()
assert launches[-1][3][5] is copy and copy.streams == {other}
"""


@needs_triton
@pytest.mark.parametrize("code", (CAPTURE, STREAMS), ids=("capture", "streams"))
def test_on_the_pretended_gpu(code: str, tmp_path: Path) -> None:
    """capture: after `warm_up` a graph holds the kernels of uniform knots and the measured tile, 16-bit knots
    too; without it, it says what it lacks. streams: knots widened on one stream and read on another are kept
    for both."""
    child(PRETEND + code, {"KAN_KERNELS_CACHE": str(tmp_path), "TRITON_INTERPRET": "0"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_warm_up_needs_a_gpu() -> None:
    """One sentence, before anything runs."""

    def never() -> None:
        raise AssertionError("it ran")

    with pytest.raises(RuntimeError, match="no GPU"):
        kan_kernels.warm_up(never)
    with pytest.raises(ValueError, match="times: got 0"):
        kan_kernels.warm_up(never, times=0)
