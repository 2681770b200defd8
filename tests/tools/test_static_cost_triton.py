"""The machine-code reader on small Triton kernels that can be counted by hand. No GPU is touched."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cases import sparse
from tools.static_cost import elf, providers, tools
from tools.static_cost.__main__ import main
from tools.static_cost.arch import architecture
from tools.static_cost.cost import LoopCost, kernel_costs
from tools.static_cost.measure import Cubin, measure

triton = pytest.importorskip("triton", reason="triton is not installed: no compiler for the test kernels")
tl = pytest.importorskip("triton.language")
GPUTarget = pytest.importorskip("triton.backends.compiler").GPUTarget

TILE = (128, 128, 64)
ELEMENTS = {"bf16": (tl.bfloat16, "*bf16"), "fp16": (tl.float16, "*fp16"), "tf32": (tl.float32, "*fp32")}


@triton.jit
def gemm(  # type: ignore[no-untyped-def]
    a_ptr,
    b_ptr,
    c_ptr,
    k_size,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    FMAS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """One tile of A B, after FMAS dependent multiply-adds on each element of A."""
    rows, columns, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros((M, N), dtype=tl.float32)
    for start in range(0, k_size, K):
        a = tl.load(a_ptr + rows[:, None] * k_size + (start + inner)[None, :])
        b = tl.load(b_ptr + (start + inner)[:, None] * N + columns[None, :])
        if FMAS > 0:
            value = a.to(tl.float32)
            for _ in tl.static_range(FMAS):
                value = value * value + 0.5
            a = value.to(DTYPE)
        total = tl.dot(a, b, total)
    tl.store(c_ptr + rows[:, None] * N + columns[None, :], total)


def compiled(
    sm: int, dtype: str = "bf16", fmas: int = 0, warps: int = 4, n: int = 128, **options: Any
) -> Cubin:
    """The test kernel for one target, by Triton's compiler alone; a second call finds Triton's cache."""
    element, pointer = ELEMENTS[dtype]
    constants = {"M": TILE[0], "N": n, "K": TILE[2], "FMAS": fmas, "DTYPE": element}
    signature = {"a_ptr": pointer, "b_ptr": pointer, "c_ptr": "*fp32", "k_size": "i32"}
    source = triton.compiler.ASTSource(
        fn=gemm,
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        attrs={(position,): [["tt.divisibility", 16]] for position in range(4)},
    )
    # the next Triton no longer fuses by default, and the counts below are of fused multiply-adds
    fixed = {"num_warps": warps, "num_stages": 3, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", sm, 32), options={**fixed, **options})
    return Cubin(
        "gemm",
        dtype,
        sm,
        f"fmas={fmas}",
        made.asm["cubin"],
        shared=made.metadata.shared,
        warps=warps,
        toolchain=f"triton {triton.__version__}",
    )


def hot(cubin: Cubin) -> LoopCost:
    """The hot loop of the only kernel."""
    (kernel,) = measure([cubin])
    return kernel.cost.hot


@pytest.mark.parametrize("warps,dtype", sparse([(w, d) for d in ("bf16", "tf32") for w in (4, 8)], 4))
@pytest.mark.parametrize(("sm", "opcode"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
def test_flops_of_an_iteration(sm: int, opcode: str, dtype: str, warps: int) -> None:
    """One iteration of the hot loop does 2 M N K, whatever instruction does it, and no opcode is unknown."""
    loop = hot(compiled(sm, dtype, warps=warps))
    assert loop.matrix_flops == 2 * TILE[0] * TILE[1] * TILE[2]
    assert {name.split(".")[0] for name in loop.matrix} == {opcode}
    assert loop.dtype == dtype
    assert not loop.unknown
    rate = architecture(sm).matrix[dtype]
    assert loop.matrix_cycles == loop.matrix_flops / rate


@pytest.mark.parametrize("sm", [80, 90])
def test_plain_gemm_is_bound_by_the_matrix_pipe(sm: int) -> None:
    """A tile of 128 x 256: the matrix pipe is busy longest, and the rest issues in a fraction of it."""
    loop = hot(compiled(sm, "bf16", warps=8, n=256))
    assert loop.bound == "tensor" and loop.fraction == 1.0
    assert loop.ratio is not None and loop.ratio < 0.5


@pytest.mark.parametrize(
    ("sm", "opcode", "per_element"),
    # mma.sync lays its four warps out two by two: each element of A is computed by two of them
    [(80, "FFMA", 2), (90, "FFMA", 1), (100, "FFMA2", 0.5)],
)
def test_generation_is_counted_exactly(sm: int, opcode: str, per_element: float) -> None:
    """Six more multiply-adds for each element of A are M K 6 / 32 / warps more instructions in each warp."""
    few, many = hot(compiled(sm, fmas=4)), hot(compiled(sm, fmas=10))
    more = TILE[0] * TILE[2] * 6 * per_element / (32 * 4)
    assert many.instructions[opcode] - few.instructions[opcode] == more
    assert many.matrix_flops == few.matrix_flops and many.matrix_cycles == few.matrix_cycles
    assert many.ratio is not None and few.ratio is not None and many.ratio > few.ratio


def test_a_operand() -> None:
    """On sm_90 A is used from registers where it was computed there, else from shared memory."""
    assert hot(compiled(90, fmas=4)).a_operands == {"registers"}
    assert hot(compiled(90, fmas=0)).a_operands == {"shared"}


def test_spills_are_seen() -> None:
    """Too few registers: loads and stores of local memory are counted, and the stack is read."""
    (good,) = measure([compiled(80, fmas=4)])
    (bad,) = measure([compiled(80, fmas=4, maxnreg=64)])
    assert good.cost.spills == 0 and good.cost.stack == 0
    assert bad.cost.spills > 0 and bad.cost.stack > 0 and bad.cost.registers <= 64


@pytest.mark.parametrize("sm", [80, 90, 100])
def test_resources_agree_with_cuobjdump(sm: int, tmp_path: Path) -> None:
    """Registers, stack and static shared memory as NVIDIA's own tool prints them."""
    cubin = compiled(sm, fmas=4, maxnreg=64) if sm == 80 else compiled(sm, fmas=4)
    path = tmp_path / "k.cubin"
    path.write_bytes(cubin.cubin)
    found = elf.resources(cubin.cubin)["gemm"]
    said = tools.run_tool("cuobjdump", "-res-usage", str(path))
    assert f"REG:{found.registers} STACK:{found.stack} SHARED:{found.shared} " in said
    assert elf.architecture(cubin.cubin) == sm and found.threads == 128
    (kernel,) = kernel_costs(cubin.cubin)
    assert kernel.warps == 4 and kernel.shared == 0  # what a launch asks for is not in the ELF


def test_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A provider's kernels as a table and as JSON, a budget written, kept and broken."""
    pytest.importorskip("rich", reason="rich is not installed: no tables")

    def provide(selection: providers.Selection) -> list[Cubin]:
        cubins = [compiled(sm, fmas=4) for sm in selection.archs or (80, 90)]
        return [cubin for cubin in cubins if selection.wants(cubin.kernel, cubin.dtype, cubin.options)]

    monkeypatch.setitem(providers.PROVIDERS, "triton", provide)
    budget, document = tmp_path / "b.json", tmp_path / "out.json"
    common = ["triton", "--budget", str(budget)]
    assert main([*common, "--update-budget", "--json", str(document)]) == 0
    text = capsys.readouterr().out
    assert "HGMMA.64x128x16.F32.BF16" in text and "H100" in text and "sm_80" in text
    kernels = json.loads(document.read_text())
    assert [kernel["arch"] for kernel in kernels] == [80, 90]
    assert kernels[1]["loops"][0]["matrix_flops"] == 2 * TILE[0] * TILE[1] * TILE[2]
    assert main([*common, "--check"]) == 0
    entries = json.loads(budget.read_text())
    entries["kernels"]["gemm/bf16/sm_90/fmas=4"]["registers"] = 8
    budget.write_text(json.dumps(entries))
    assert main([*common, "--check", "--arch", "80"]) == 0
    assert main([*common, "--check", "--opcodes"]) == 1
    assert "registers: " in capsys.readouterr().out
    assert main([*common, "--kernel", "nothing"]) == 2


def test_triton_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider asks the backend for its specialisations, keeps the selection, passes the launch on."""
    specs = [
        SimpleNamespace(kernel="gemm", dtype=dtype, options="fmas=0", archs=(80, 90, 100))
        for dtype in ("bf16", "tf32")
    ]

    def compile_spec(spec: SimpleNamespace, arch: int) -> SimpleNamespace:
        return SimpleNamespace(cubin=compiled(arch, spec.dtype, warps=8).cubin, shared=4321, num_warps=8)

    backend = SimpleNamespace(specializations=lambda: specs, compile_spec=compile_spec)
    monkeypatch.setitem(sys.modules, "kan_kernels.backends.triton", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "kan_kernels.backends.triton.compile_only", backend)
    everything = list(providers.triton_cubins(providers.Selection()))
    assert [(cubin.dtype, cubin.arch) for cubin in everything] == [
        (dtype, arch) for dtype in ("bf16", "tf32") for arch in (80, 90, 100)
    ]
    (one,) = measure(providers.triton_cubins(providers.Selection(archs=[90], dtypes=["tf32"])))
    assert one.key == "gemm/tf32/sm_90/fmas=0" and one.source.toolchain == f"triton {triton.__version__}"
    assert (one.cost.shared, one.cost.warps) == (4321, 8)
