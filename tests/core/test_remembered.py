"""What is kept for a tensor: how long, and that neither hidden writes nor inference mode spoil it."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from kan_kernels import KANLinear
from kan_kernels._core import tensor_cache
from kan_kernels._core.tensor_cache import Remembered, readable
from kan_kernels.functional import linear as functional
from kan_kernels.integrations.efficient_kan import KANLinear as EfficientKANLinear
from kan_kernels.integrations.fast_kan import FastKANLayer


def test_an_answer_is_for_one_state_of_one_tensor() -> None:
    """The count of writes, or the values; an equal tensor is another one."""
    counted, compared = Remembered[str](), Remembered[str](by_value=True)
    t = torch.rand(3)
    for kept in (counted, compared):
        assert kept.get(t) is None
        kept.put(t, "a")
        assert kept.get(t) == "a" and kept.get(t.clone()) is None
    t.data.add_(1)  # not counted
    assert counted.get(t) == "a" and compared.get(t) is None
    t.data.sub_(1)
    compared.put(t, "b")
    t.add_(0)
    assert counted.get(t) is None and compared.get(t) == "b"
    for change in (torch.zeros(3), t.detach().double(), torch.rand(2)):
        compared.put(t, "c")
        t.data = change
        assert compared.get(t) is None


@pytest.mark.parametrize("shape", [(2, 9), (50, 12)])
@pytest.mark.parametrize("by_bytes", [True, False])
def test_every_value_is_compared(shape: tuple[int, int], by_bytes: bool, monkeypatch: Any) -> None:
    """Small ones and large ones, with memcmp and without: values, shape, dtype, NaN, another layout."""
    if not by_bytes:
        monkeypatch.setattr(tensor_cache, "_memcmp", None)
    elif tensor_cache._memcmp is None:
        pytest.skip("memcmp is not among the symbols of this process")
    kept, t = Remembered[int](by_value=True), torch.rand(shape)
    for place in (0, t.numel() // 2, t.numel() - 1):
        kept.put(t, 1)
        t.data.view(-1)[place] += 1
        assert kept.get(t) is None
        t.data.view(-1)[place] -= 1
    values = t.clone()
    for other in (
        values.view(-1),
        values[:1],
        torch.cat([values, values]),
        values.double(),
        values.t().contiguous(),
    ):
        kept.put(t, 1)
        t.data = other
        assert kept.get(t) is None, other.shape
        t.data = values
    kept.put(t, 2)
    t.data = values.t().contiguous().t()  # the same values in another order of memory
    assert kept.get(t) == 2
    kept.put(t, 3)
    assert kept.get(t) == 3
    t.data = values.t().contiguous().t() + 1
    assert kept.get(t) is None
    wide = torch.rand(shape[0], 2 * shape[1])
    t.data = wide[:, ::2]
    kept.put(t, 4)
    wide[0, 1] += 1  # not one of its values
    assert kept.get(t) == 4
    wide[0, 2] += 1
    assert kept.get(t) is None


def test_an_answer_goes_with_its_tensor() -> None:
    for kept in (Remembered[int](), Remembered[int](by_value=True)):
        tensors = [torch.rand(2) for _ in range(5)]
        for t in tensors:
            kept.put(t, 1)
        assert len(kept._entries) == 5
        del t, tensors
        gc.collect()
        assert not kept._entries


def test_inference_tensors() -> None:
    """They count no writes: kept by their values only."""
    with torch.inference_mode():
        t = torch.rand(3)
    counted, compared = Remembered[int](), Remembered[int](by_value=True)
    counted.put(t, 1), compared.put(t, 1)
    assert counted.get(t) is None and compared.get(t) == 1
    with torch.inference_mode():
        t.add_(1)
    assert compared.get(t) is None


def test_readable() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert readable(torch.rand(2)) and not readable(torch.rand(2, device="meta"))
    with FakeTensorMode():
        assert not readable(torch.rand(2))
    torch.func.vmap(lambda t: t.sum() if not readable(t) else 1 / 0)(torch.rand(2, 2))


LAYERS = {
    "KANLinear": lambda: KANLinear(4, 5, dtype=torch.bfloat16),
    "efficient-kan": lambda: EfficientKANLinear(4, 5),
    "efficient-kan, 16 bits": lambda: EfficientKANLinear(4, 5).bfloat16(),
    "FastKAN": lambda: FastKANLayer(4, 5),
}


@pytest.mark.parametrize("name", LAYERS)
def test_inference_then_training(name: str) -> None:
    """Nothing that was first made under inference mode is saved for a backward later."""
    layer: Any = LAYERS[name]()
    x = torch.rand(6, 4).to(next(layer.parameters()).dtype)
    with torch.inference_mode():
        want = layer(x)
    y = layer(x)
    assert torch.equal(y, want)
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("way", ["write", "assign"])
def test_hidden_writes(name: str, way: str) -> None:
    """Knots and centres changed through .data are the ones of the next call."""
    layer: Any = LAYERS[name]()
    x = torch.rand(6, 4).to(next(layer.parameters()).dtype)
    before = layer(x)
    grid = layer.rbf.grid if name == "FastKAN" else layer.grid
    if way == "write":
        grid.data.mul_(1.5)
    else:
        grid.data = grid.data * 1.5
    got = layer(x)
    fresh: Any = LAYERS[name]()
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(got, fresh(x)) and not torch.equal(got, before)


def test_copy_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One copy while no write is counted, its values those of the knots; it can be saved for a backward."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    grid = torch.linspace(-1, 1, 9).repeat(2, 1).bfloat16()
    with torch.inference_mode():
        copy = functional._kept_copy(grid, torch.float32)
    version = copy._version
    assert not copy.is_inference() and torch.equal(copy, grid.float())
    for mode in (torch.inference_mode(False), torch.inference_mode(True)):
        grid.data.mul_(1.5)
        with mode:
            assert functional._kept_copy(grid, torch.float32) is copy
        assert torch.equal(copy, grid.float()) and copy._version == version
    grid.mul_(2)
    other: Tensor = functional._kept_copy(grid, torch.float32)
    assert other is not copy and torch.equal(other, grid.float()) and not torch.equal(copy, other)
