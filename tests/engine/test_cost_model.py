"""What the cost model chooses on which card, for inference and training, and what it says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kan_kernels import KANLinear, explain
from kan_kernels._core import library
from kan_kernels._core.problem import Problem
from kan_kernels._engine import cost_model, dispatch, layer
from kan_kernels.backends import BACKENDS
from tools.static_cost.arch import architecture

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
A100, H100, RTX4090 = (8, 0), (9, 0), (8, 9)
BUDGET = Path(__file__).parents[1] / "budgets" / "step.json"
needs_cuda_build = pytest.mark.skipif(
    "cuda" not in library.DEVICES, reason="the library was built without CUDA kernels: there was no nvcc"
)


def costs(card: tuple[int, int], dtype: torch.dtype, width: int, rows: int, training: bool,
          tf32: bool = False, **changes: Any) -> dict[str, cost_model.Cost]:  # fmt: skip
    facts: dict[str, Any] = {"functions": 8, "order": 3, **changes}
    problem = Problem("cuda", dtype, dtype, width, width, rows=rows, training=training, **facts)
    return cost_model.gpu_costs(problem, cost_model.device_of(None, card), tf32)


def chosen(*arguments: Any, **changes: Any) -> str:
    found = costs(*arguments, **changes)
    return min(found, key=lambda name: found[name].microseconds)


@needs_cuda_build
@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the cards are pretended: a real one has other processors"
)
@pytest.mark.parametrize(
    "card,dtype,width,rows,inference,training",
    [
        (A100, BF16, 512, 8192, "native", "native"),
        (H100, BF16, 512, 8192, "triton", "triton"),  # warp-group products
        (RTX4090, BF16, 512, 8192, "native", "native"),
        (A100, F32, 512, 8192, "triton", "native"),  # its forward is not the better one, its gradients are
        (H100, F32, 512, 8192, "triton", "triton"),
        (A100, BF16, 64, 1000, "native", "native"),  # launches decide
        (H100, BF16, 64, 1000, "native", "native"),
        (RTX4090, BF16, 64, 1000, "native", "native"),
        (H100, F32, 5, 1000, "native", "native"),
        (H100, F64, 64, 1000, "native", "native"),
    ],
)
def test_choices(
    card: tuple[int, int], dtype: torch.dtype, width: int, rows: int, inference: str, training: str
) -> None:
    """Wide layers go to the better kernels of the whole step, small ones to fewer launches."""
    assert chosen(card, dtype, width, rows, False) == inference
    assert chosen(card, dtype, width, rows, True) == training


@needs_cuda_build
def test_a_step_is_more_than_a_forward_pass() -> None:
    """Three passes, more launches; twice the rows are twice the work of the device."""
    for name in ("native", "triton"):
        once, step = (costs(H100, F32, 512, 8192, training)[name] for training in (False, True))
        assert list(once.passes) == ["forward"] and list(step.passes) == list(cost_model.PASSES)
        assert step.launches > once.launches and step.passes["forward"] == once.passes["forward"]
        more = costs(H100, F32, 512, 16384, True)[name]
        assert sum(more.passes.values()) == pytest.approx(2 * sum(step.passes.values()), rel=0.1)
        text = str(step)
        assert "a training step of 8192 rows" in text and f"{step.launches} launches" in text
        assert "weights' gradient" in text and "weights' gradient" not in str(once)


@needs_cuda_build
def test_idle_processors_and_knots_count() -> None:
    """A batch that fills half a round takes the round; exact cells cost more than fixed polynomials."""
    few, many = (costs(H100, F32, 512, rows, False)["triton"] for rows in (128, 4096))
    assert few.passes["forward"] > many.passes["forward"] / 32
    assert (
        costs(H100, BF16, 512, 8192, False, order=4)["triton"].passes["forward"]
        > costs(H100, BF16, 512, 8192, False)["triton"].passes["forward"]
    )


@needs_cuda_build
def test_measured_factors_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make gpu` finds for inference and for training weighs on each of them alone."""
    before = [costs(H100, F32, 512, 8192, training)["triton"] for training in (False, True)]
    monkeypatch.setattr(cost_model, "_FACTORS", {"triton dense": (2.0, 3.0)})
    after = [costs(H100, F32, 512, 8192, training)["triton"] for training in (False, True)]
    for factor, one, other in zip((2.0, 3.0), before, after, strict=True):
        assert other.passes["forward"] == pytest.approx(factor * one.passes["forward"])


def test_ratios_are_the_counted_ones() -> None:
    """The model's ratios of passes are those of the committed step, and its rates the reader's."""
    steps = json.loads(BUDGET.read_text())["steps"]
    names = {"bf16": "half", "tf32": "tf32", "strict fp32": "strict"}
    seen = 0
    for key, entry in steps.items():
        provider, arch, dtype, width = key.split("/")
        if width != "[512,512]" or not entry.get("passes"):
            continue
        backend = {"triton": "triton", "cuda": "native"}[provider]
        ratios = cost_model.RATIOS[backend][int(arch.removeprefix("sm_"))][names[dtype]]
        for name, ratio in zip(cost_model.PASSES, ratios, strict=True):
            assert ratio == pytest.approx(entry["passes"][name], abs=0.006), (key, name)
        seen += 1
    assert seen
    for arch, (rate, _, _) in cost_model._CARDS.items():
        assert 2 * rate == architecture(arch).matrix["bf16"]


def test_what_is_asked_of_a_gpu() -> None:
    """Rows up to a power of two; training where a gradient is recorded; no rows while compiling."""
    x, weight = torch.rand(3, 33, 5), torch.rand(5, 8, 4, requires_grad=True)
    assert layer.work(x, weight, None) == (128, True)
    assert layer.work(x, weight.detach(), None) == (128, False)
    with torch.no_grad():
        assert layer.work(x, weight) == (128, False)
    assert layer.work(torch.rand(0, 5), weight) == (0, True)
    compiled: Callable[[], Any] = torch.compile(lambda: layer.work(x, weight), backend="eager")
    assert compiled() == (0, True)


@needs_cuda_build
def test_explain_prints_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text has the time of every pass for both backends, of the call that was asked about."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: A100)
    for name in ("native", "triton"):
        monkeypatch.setattr(BACKENDS[name], "can_run", lambda problem: None)
    facts: dict[str, Any] = {"device": "cuda", "dtype": F32, "rows": 8192}
    step, once = (explain((512, 512), training=training, **facts) for training in (True, False))
    assert ": native: automatic choice: the cost model gives it" in step
    assert ": triton: automatic choice: the cost model gives it" in once
    for text, what in ((step, "training step"), (once, "inference")):
        assert text.count(f"a {what} of 8192 rows") == 2
    with pytest.raises(ValueError, match="rows: got -1"):
        explain((2, 2), rows=-1)


def test_a_module_is_trained_if_anything_needs_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """explain of a model asks for a training step, but under no_grad and where all is frozen."""
    asked: list[tuple[bool, int]] = []

    def note(widths: Any, **facts: Any) -> str:
        asked.append((facts["training"], facts["rows"]))
        return "2 -> 3 on cpu"

    monkeypatch.setattr(dispatch, "explain", note)
    model = KANLinear(2, 3)
    dispatch._explain_tree(model, 0, None, 64)
    with torch.no_grad():
        dispatch._explain_tree(model, 0, None, 64)
    dispatch._explain_tree(model.requires_grad_(False), 0, None, 0)
    assert asked == [(True, 64), (False, 64), (False, 0)]
