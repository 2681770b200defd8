"""The cost of a training step: how loops and the rest of a kernel are summed, and its budget and page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.static_cost import cuda_step, step
from tools.static_cost.__main__ import main
from tools.static_cost.cost import KernelCost, LoopCost
from tools.static_cost.providers import LIBRARY, Unavailable


def loop(begin: int, flops: int, **pipes: float) -> LoopCost:
    """A loop of 8 warps with two warp-group instructions of so many FLOP in all."""
    cost = LoopCost(begin, begin + 16, 8, pipes=dict(pipes))
    if flops:
        cost.matrix["HGMMA.64x256x16.F32.BF16"] = 2
        cost.matrix_flops, cost.matrix_cycles = flops, flops / 4096
        cost.pipes["tensor"] = flops / 4096
    cost.global_bytes = 1000.0
    return cost


def kernel(*loops: LoopCost, rest: LoopCost | None = None) -> KernelCost:
    return KernelCost("k", 90, 8, 100, 0, 0, 0, list(loops), rest)


def test_loops_run_their_turns_and_the_rest_once() -> None:
    """The busiest pipe of the sum, not the sum of the busiest; L2 and bytes by the same turns."""
    cost = kernel(loop(0, 40960, alu=8.0), loop(64, 4096, alu=3.0), rest=loop(128, 0, alu=50.0))
    flops = 2 * (10 * 40960 + 4 * 4096)
    got = step.summed("k", cost, [10, 4], 2, flops, "bf16")
    assert got.cycles == 2 * (8.0 * 10 + 3.0 * 4 + 50.0) and got.bound == "alu"
    assert got.apart == 2 * (10.0 * 10 + 3.0 * 4 + 50.0)
    assert got.matrix == flops / 4096 and got.ratio == pytest.approx(284 / 208)
    assert got.bytes == 2 * 1000 * 15 and got.instructions == 2 * (10 + 4) * 2 * 8 / 4
    assert got.l2 == pytest.approx(got.bytes / 22.8 / got.cycles)


def test_what_does_not_fit_is_an_error() -> None:
    """Other loops than expected, or fewer products than the launch is for; unrolled turns count once."""
    cost = kernel(loop(0, 4096))
    with pytest.raises(ValueError, match="1 loops of products, expected 2"):
        step.summed("k", cost, [10, 4], 1, 40960, "bf16")
    with pytest.raises(ValueError, match=r"of 8\.19e\+04 that it is for"):
        step.summed("k", cost, [10], 1, 81920, "bf16")
    assert step.summed("k", kernel(loop(0, 2 * 4096, alu=1.0)), [10], 1, 40960, "bf16").cycles == 10.0


def test_turns_of_the_compiled_kernels() -> None:
    """A loop turns as often as its products take, what is around it once for its inner turns."""
    products = 2.0 * step.ROWS * 512**2
    for tile in cuda_step.tiles("bf16", 512):
        per_block = products * 9 / tile.blocks
        main = loop(0, int(per_block / 36), alu=5.0)
        main.around = loop(64, 0, alu=7.0)
        other = loop(128, int(per_block / 9), alu=1.0, xu=1.0)
        loops = (main, other, loop(256, int(per_block / 9), alu=9.0)) if tile.name == "forward" else (main,)
        got = cuda_step._launch(tile, kernel(*loops, rest=loop(512, 0, alu=11.0)), "bf16", 512)
        turns = 32 if tile.name == "forward" else 36
        alu = turns * 5.0 + turns / tile.inner * 7.0 + (1.0 if tile.name == "forward" else 0.0) + 11.0
        assert got.matrix == pytest.approx(products * 9 / 4096)
        tensor = per_block / 4096
        assert got.cycles == pytest.approx(tile.blocks * max(alu, tensor), rel=1e-3)
    strict = cuda_step.tiles("strict fp32", 512)
    assert [tile.last for tile in strict] == [8, 2, 4] and [tile.inner for tile in strict] == [4, 2, 4]
    assert [tile.last for tile in cuda_step.tiles("bf16", 128)] == [16, 4, 4]


@pytest.mark.long
def test_no_compiled_ratio_has_risen() -> None:
    """The steps of the library's own architectures, read anew."""
    try:
        found = list(cuda_step.cuda_steps(step.ARCHS["cuda"], step.DTYPES, step.WIDTHS, LIBRARY))
    except Unavailable as error:
        pytest.skip(str(error))
    assert not step.check(step.load(), found)


def test_the_budget_is_kept_and_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio that rises is named; another compiler's is not compared; the table has every kernel."""
    monkeypatch.setattr(step, "BUDGET", tmp_path / "step.json")
    one = step.Kernel("dense_forward", 110.0, 120.0, 100.0, "alu", 5000.0, 10.0, 0.5)
    two = step.Kernel("dense_input", 220.0, 220.0, 200.0, "memory", 9000.0, 10.0, None)
    found = step.Step("triton", 90, "bf16", 512, "triton 1", [one, two])
    step.write([found])
    budget = step.load()
    entry = budget["steps"]["triton/sm_90/bf16/[512,512]"]
    assert (entry["ratio"], entry["apart"]) == (1.1, 1.133) and entry["passes"] == {}
    assert not step.check(budget, [found])
    slower = step.Kernel("dense_input", 260.0, 260.0, 200.0, "memory", 9000.0, 10.0, None)
    worse = step.Step("triton", 90, "bf16", 512, "triton 1", [one, slower])
    assert step.check(budget, [worse]) == [f"{worse.key}: 1.233 of the products' time, allowed 1.100"]
    assert not step.check(budget, [step.Step("triton", 90, "bf16", 512, "triton 2", [one, slower])])
    (said,) = step.check(budget, [step.Step("triton", 90, "bf16", 128, "triton 1", [one])])
    assert "not in the budget" in said
    table = step.page(budget)
    assert "`dense_forward` 1.10 (alu), 500, 50%" in table and "`dense_input` 1.10 (memory), 900" in table
    json.loads((tmp_path / "step.json").read_text())


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/gpu.md has the committed ratios; dtypes and pages that are none are errors."""
    assert main(["step", "--page", "--check"]) == 0, capsys.readouterr().out
    assert main(["step", "triton", "--dtype", "fp8"]) == 2


@pytest.mark.long
def test_no_ratio_has_risen() -> None:
    """Committed steps of the Triton kernels, of the wide layer, compiled and counted anew."""
    pytest.importorskip("triton", reason="Triton is not installed: there is nothing to compile with")
    budget = step.load()
    for key in budget["steps"]:
        provider, arch, dtype, widths = key.split("/")
        if (
            provider == "triton"
            and widths == "[512,512]"
            and (arch, dtype) in (("sm_80", "bf16"), *(("sm_90", one) for one in step.DTYPES))
        ):
            facts = [int(arch.removeprefix("sm_"))], [dtype], [int(widths.strip("[]").split(",")[0])]
            assert not step.check(budget, step.triton_steps(*facts))
