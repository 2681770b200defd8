"""The machine-code reader's budgets, tools and providers, on figures made up here; no compiler is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from listings import listing, loop_of
from tools.static_cost import budget as budgets
from tools.static_cost import elf, providers, tools
from tools.static_cost.__main__ import main
from tools.static_cost.arch import architecture
from tools.static_cost.cost import KernelCost, function_loops
from tools.static_cost.measure import Cubin, Measured, measure


def measured(**changes: Any) -> Measured:
    """A kernel for sm_90 with one HGMMA in its hot loop; ``changes`` go to its cost or its source."""
    body = loop_of("HGMMA.64x128x16.F32.BF16 R88, R164, gdesc[UR16], R88")
    loops = function_loops(listing(body), architecture(90), 4)
    cost = KernelCost("k", 90, 4, registers=201, shared=98304, stack=0, spills=0, loops=loops)
    source = Cubin("forward", "bf16", 90, "O=128", b"", toolchain="triton 3.9.0")
    for name, value in changes.items():
        if hasattr(source, name) and not hasattr(cost, name):
            source = replace(source, **{name: value})
        else:
            assert hasattr(cost, name), name
            setattr(cost, name, value)
    return Measured(source, cost)


KEY = "forward/bf16/sm_90/O=128"


def test_budget_is_written_with_headroom(tmp_path: Path) -> None:
    """Registers are rounded up to eights, shared memory is exact, and what was written is kept."""
    path = tmp_path / "b.json"
    budget = budgets.write(path, [measured()])
    assert budget == budgets.load(path) == json.loads(path.read_text())
    assert budget["kernels"][KEY] == {
        "registers": 208,
        "shared": 98304,
        "spills": 0,
        "matrix": "HGMMA",
        "a_operand": "registers",
    }
    assert budgets.check(budget, [measured()]) == []
    high = budgets.write(path, [measured(registers=255)])
    assert high["kernels"][KEY]["registers"] == 255


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"registers": 209}, "registers: 209, allowed 208"),
        ({"shared": 98305}, "shared bytes: 98305, allowed 98304"),
        ({"spills": 1}, "spills: 1, allowed 0"),
        ({"shared": 300000}, "shared bytes on sm_90: 300000, allowed 232448"),
        ({"options": "O=64"}, "not in the budget"),
    ],
)
def test_budget_violations(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """Each limit that is passed is named with both numbers."""
    budget = budgets.write(tmp_path / "b.json", [measured()])
    assert any(words in violation for violation in budgets.check(budget, [measured(**changes)]))


def test_budget_of_the_hot_loop(tmp_path: Path) -> None:
    """Another matrix instruction, another place of A, too slow a generation, and a kernel that is gone."""
    budget = budgets.write(tmp_path / "b.json", [measured()])
    entry = budget["kernels"][KEY]
    entry["ratio"] = 0.01
    (violation,) = budgets.check(budget, [measured()])
    assert "generation / matrix time" in violation and "allowed 0.01" in violation
    entry["ratio"] = 1.0
    others = {
        "HMMA.16816.F32.BF16 R4, R8, R12, R4": "HMMA.16816.F32.BF16 in the hot loop, wanted HGMMA",
        "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24": "A operand: in shared, wanted registers",
        "FFMA R1, R2, R3, R1": "none in the hot loop, wanted HGMMA",
    }
    for text, words in others.items():
        loops = function_loops(listing(loop_of(text)), architecture(90), 4)
        assert any(words in violation for violation in budgets.check(budget, [measured(loops=loops)])), words
    assert budgets.check(budget, []) == [f"{KEY}: in the budget, but not measured"]
    assert budgets.check(budget, [], complete=False) == []


def test_budget_of_another_compiler(tmp_path: Path) -> None:
    """Registers and shared memory are of one compiler; the rest is wanted of every compiler."""
    budget = budgets.write(tmp_path / "b.json", [measured()])
    other = measured(toolchain="triton 3.6.0", registers=250, shared=100000)
    assert budgets.check(budget, [other]) == []
    (violation,) = budgets.check(budget, [measured(toolchain="triton 3.6.0", spills=4)])
    assert "spills: 4" in violation


def test_budget_keeps_decisions(tmp_path: Path) -> None:
    """Writing anew takes new counts and leaves what a person named; a selection leaves the other entries."""
    path = tmp_path / "b.json"
    budget = budgets.write(path, [measured(), measured(options="O=64")])
    budget["kernels"][KEY] |= {"ratio": 0.9, "matrix": "HGMMA.64x128x16.F32.BF16"}
    path.write_text(json.dumps(budget))
    again = budgets.write(path, [measured(registers=180)], complete=False)
    assert again["kernels"][KEY]["registers"] == 184
    assert again["kernels"][KEY]["ratio"] == 0.9
    assert again["kernels"][KEY]["matrix"] == "HGMMA.64x128x16.F32.BF16"
    assert "forward/bf16/sm_90/O=64" in again["kernels"]
    assert list(budgets.write(path, [measured()])["kernels"]) == [KEY]
    with pytest.raises(ValueError, match="write all of it"):
        budgets.write(path, [measured(toolchain="triton 3.6.0")], complete=False)


def test_bad_budgets(tmp_path: Path) -> None:
    """A missing file, a missing field and an unknown field are named."""
    with pytest.raises(FileNotFoundError, match="--update-budget"):
        budgets.load(tmp_path / "none.json")
    path = tmp_path / "b.json"
    budget = budgets.write(path, [measured()])
    budget["kernels"][KEY]["regsiters"] = 1
    path.write_text(json.dumps(budget))
    with pytest.raises(ValueError, match="regsiters"):
        budgets.load(path)


def test_missing_tool_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the tool: its name and two ways to get it."""
    monkeypatch.setattr(tools, "find_program", lambda name, first: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    tools.find_tool.cache_clear()
    try:
        with pytest.raises(tools.MissingTool, match=r"nvdisasm .*install triton .* or the CUDA toolkit"):
            tools.find_tool("nvdisasm")
    finally:
        tools.find_tool.cache_clear()


def test_not_a_cubin() -> None:
    """Other files are refused by name."""
    with pytest.raises(ValueError, match="cubin: expected a little-endian 64-bit ELF"):
        elf.resources(b"\x7fELF\x01\x01 and more")
    x86 = b"\x7fELF\x02\x01".ljust(18, b"\0") + (62).to_bytes(2, "little") + bytes(64)
    with pytest.raises(ValueError, match="machine 62"):
        elf.resources(x86)


@pytest.mark.parametrize(
    ("demangled", "parts"),
    [
        ("void kan::forward<3, float, true>(float const*, int)", ("forward", "fp32", "3,true")),
        ("void kan::a::weight<__nv_bfloat16, (int)2>(int)", ("weight", "bf16", "2")),
        ("void k<kan::Tile<64, (bool)1>, __half>(T1*)", ("k", "fp16", "kan::Tile<64,(bool)1>")),
        ("plain(double*)", ("plain", "", "")),
    ],
)
def test_kernel_names(demangled: str, parts: tuple[str, str, str]) -> None:
    """Kernel, dtype and options out of a C++ name."""
    assert providers.split_name(demangled) == parts


def test_command_line_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One line and status 2 for what cannot be done."""
    assert main(["cuda", "--library", str(tmp_path / "none.so")]) == 2
    assert "build the package first" in capsys.readouterr().err
    assert main(["triton", "--arch", "hopper"]) == 2
    assert "--arch takes SM versions" in capsys.readouterr().err


@pytest.mark.skipif(not providers.LIBRARY.exists(), reason="not built in place: no library to read")
def test_library_of_this_build() -> None:
    """The CUDA provider on the library of this build: kernels, or the reason why there are none."""
    try:
        tools.find_tool("cuobjdump")
    except tools.MissingTool as error:
        pytest.skip(str(error))
    cubins = providers.cuda_cubins(providers.Selection())
    try:
        first = next(cubins)
    except providers.Unavailable as reason:
        assert "carries no CUDA kernel" in str(reason)
    else:
        (kernel,) = measure([first])
        assert kernel.cost.registers > 0


CUDA = """
namespace kan {
template <typename T, int K>
__global__ void __launch_bounds__(256) scale(const T* x, T* y) {
  __shared__ T row[256];
  row[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = row[255 - threadIdx.x] * T(K);
}
template __global__ void scale<float, 2>(const float*, float*);
template __global__ void scale<double, 3>(const double*, double*);
}  // namespace kan
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed: no CUDA library to read")
def test_cuda_library(tmp_path: Path) -> None:
    """A library of two kernels for two architectures: names, block sizes and shared memory are read."""
    source, library = tmp_path / "k.cu", tmp_path / "libk.so"
    source.write_text(CUDA)
    targets = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in (80, 90)]
    command = ["nvcc", "-shared", "-Xcompiler", "-fPIC", *targets, "-o", str(library), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        kernels = list(measure(providers.cuda_cubins(providers.Selection(library=library))))
    except tools.MissingTool as error:
        pytest.skip(str(error))
    assert {kernel.key: kernel.cost.shared for kernel in kernels} == {
        "scale/fp32/sm_80/2": 1024,
        "scale/fp64/sm_80/3": 2048,
        "scale/fp32/sm_90/2": 1024,
        "scale/fp64/sm_90/3": 2048,
    }
    assert all(kernel.cost.warps == 8 and kernel.cost.registers > 0 for kernel in kernels)
    assert all(kernel.source.toolchain.startswith("ptxas ") for kernel in kernels)
