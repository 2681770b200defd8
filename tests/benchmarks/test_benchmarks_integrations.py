"""The contests with other codebases: gate, timing and table on tiny layers, without a word about speed."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import basis_forms, contests
from benchmarks import integrations as bench
from benchmarks.contests import CONTESTS, Contest
from benchmarks.measure import SMOKE

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"

TINY = Contest(
    "tiny",
    "FastKAN",
    "[3,4] B=20",
    lambda: torch.rand(20, 3),
    lambda: basis_forms.FastKANLayer(3, 4, num_grids=5),
    contests.accelerated,
    compiled=False,
    target=1.0,
)
META = {
    "threads": 1, "cpu": "a CPU", "torch": "2", "isa_kan_kernels": "avx", "python": "3", "date": "today",
}  # fmt: skip


def doubled(module: nn.Module) -> nn.Module:
    """Accelerated, but of twice the base weights: gradients and outputs that are wrong."""
    contests.accelerated(module)
    with torch.no_grad():
        module.base_linear.weight.mul_(2)  # type: ignore[union-attr, operator]
    return module


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return 1.001 * grad


class Leaning(basis_forms.FastKANLayer):
    """Right outputs, right dx, and a gradient of one parameter that is off by a thousandth."""

    def forward(self, x: torch.Tensor, use_layernorm: bool = True) -> torch.Tensor:
        bias = self.base_linear.bias
        return (
            super().forward(x, use_layernorm)
            - bias.detach()
            + WrongGradient.apply(bias)
            - bias
            + bias.detach()
        )


def leaning(module: nn.Module) -> nn.Module:
    module.__class__ = Leaning
    return module


def test_a_contest_is_gated_timed_and_tabled() -> None:
    """Both sides have times and memory; the table names the shape, the ratio and what was asked."""
    result = bench.run(TINY, SMOKE)
    assert "reason" not in result, result
    assert 0 < result["error_float32"] <= bench.TOLERANCE and result["error_float64"] <= bench.EXACT
    for side in ("own", "ours"):
        assert result[side]["median_ms"] > 0 and result[side]["samples"] >= SMOKE.least
        assert "peak_bytes" in result[side]
    text = bench.table({"meta": META, "results": [result]})
    assert "| FastKAN | [3,4] B=20 |" in text and "(asked 1x)" in text and "a CPU" in text


@pytest.mark.parametrize("wrong", [doubled, leaning])
def test_a_wrong_one_is_gated(wrong: Any) -> None:
    """Other numbers, or the gradient of one parameter: a reason in place of a time, and exit status 1."""
    result = bench.run(dataclasses.replace(TINY, fast=wrong), SMOKE)
    assert "numbers differ" in result["reason"] and "own" not in result and "ours" not in result
    assert "numbers differ" in bench.table({"meta": META, "results": [result]})


def test_compiling_is_no_part_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first call takes to compile is in no sample, however short the patience for long calls."""

    def slow_once(module: nn.Module, **options: Any) -> Any:
        waits = [0.3]

        def call(x: torch.Tensor) -> torch.Tensor:
            time.sleep(waits.pop() if waits else 0.0)
            return module(x)

        return call

    monkeypatch.setattr(torch, "compile", slow_once)
    patience = dataclasses.replace(SMOKE, single=0.2)
    result = bench.run(dataclasses.replace(TINY, compiled=True), patience)
    for key in ("compiled", "ours_compiled"):
        assert result[key]["median_ms"] < 200 and result[key]["samples"] >= SMOKE.least, result


def test_gate_sees_the_penalty() -> None:
    """A penalty is part of the loss: what only it makes wrong is gated too."""

    def penalty(module: Any) -> torch.Tensor:
        off = 1.0 if type(module) is basis_forms.FastKANLayer else 1.01
        return off * module.spline_linear.weight.square().sum()

    assert "numbers differ" in bench.run(dataclasses.replace(TINY, penalty=penalty), SMOKE)["reason"]
    fair = dataclasses.replace(TINY, penalty=lambda module: module.spline_linear.weight.square().sum())
    assert "reason" not in bench.run(fair, SMOKE)


def test_not_taken_is_an_error() -> None:
    """A layer that `accelerate` leaves alone cannot appear as ours."""
    with pytest.raises(RuntimeError, match="0 taken"):
        contests.accelerated(nn.Linear(2, 2))
    result = bench.run(dataclasses.replace(TINY, unavailable=lambda: "not installed"), SMOKE)
    assert result["reason"] == "not installed"


def test_main_writes_nothing_for_some(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    """--only and --quick print; a whole run puts the table between the page's markers; --check sees it."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    monkeypatch.setattr(bench, "PAGE", page)
    monkeypatch.setattr(bench, "PATH", tmp_path / "result.json")
    monkeypatch.setattr(bench, "CONTESTS", (TINY,))
    monkeypatch.setattr(bench, "FULL", SMOKE)
    monkeypatch.setattr(bench, "QUICK", SMOKE)
    threads = torch.get_num_threads()
    try:
        assert bench.main(["--only", "tiny"]) == 0 and bench.main(["--quick"]) == 0
        assert "| FastKAN |" in capsys.readouterr().out and not (tmp_path / "result.json").exists()
        assert bench.main([]) == 0 and bench.main(["--check"]) == 0
        assert "| FastKAN |" in page.read_text() and page.read_text().endswith("after\n")
        page.write_text(page.read_text().replace("FastKAN", "SlowKAN"))
        assert bench.main(["--check"]) == 1
        monkeypatch.setattr(bench, "CONTESTS", (dataclasses.replace(TINY, fast=doubled),))
        assert bench.main(["--quick"]) == 1
        with pytest.raises(SystemExit):
            bench.main(["--only", "tinny"])
        assert "tinny" in capsys.readouterr().err
    finally:
        torch.set_num_threads(threads)


def test_the_contests() -> None:
    """Every key once, and what the project promised of them is what is asked."""
    asked = {contest.key: contest.target for contest in CONTESTS}
    assert len(asked) == len(CONTESTS)
    wanted = {"pykan-64": 50.0, "pykan-toy": 5.0, "efficient-kan": 8.0, "conv2d": 4.0}
    names = ("wide-g5", "wide-g20", "protocol", "medium", "mnist", "toy", "memory")
    wanted |= {f"{peer}-{name}": 1.0 for peer in ("fastkan", "chebykan") for name in names}
    wanted |= {f"fourierkan-{name}": 1.0 for name in ("medium", "mnist", "toy", "300")}
    assert {key: target for key, target in asked.items() if target is not None} == wanted


@pytest.mark.parametrize("key", ["pykan-toy-penalty", "fastkan-toy", "chebykan-toy", "fourierkan-toy"])
def test_small_contests_agree(key: str) -> None:
    """The real contests that take a moment pass their gate."""
    contest = next(c for c in CONTESTS if c.key == key)
    if key.startswith("pykan"):
        importlib.import_module("kan")  # a test dependency: it must not be skipped
    result = bench.run(dataclasses.replace(contest, compiled=False), SMOKE)
    assert "reason" not in result, result


def test_disagreement_of_what_is_missing() -> None:
    """A gradient that one side lacks counts as wrong where names are the same."""
    found = bench.numbers(basis_forms.ChebyKANLayer(2, 2, 3), torch.rand(4, 2))
    fewer = copy.copy(found)
    del fewer["cheby_coeffs"]
    assert bench.disagreement(fewer, found, True) == float("inf")
    assert bench.disagreement(fewer, found, False) == 0.0
