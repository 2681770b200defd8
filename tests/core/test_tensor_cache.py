"""What is kept for a tensor: how long, and that neither hidden writes nor inference mode spoil it."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from kan_kernels import KANLinear
from kan_kernels._core.tensor_cache import TensorCache, readable
from kan_kernels._engine import layer as engine
from kan_kernels.integrations.efficient_kan import KANLinear as EfficientKANLinear
from kan_kernels.integrations.fast_kan import FastKANLayer


def test_an_answer_is_for_one_state_of_one_tensor() -> None:
    """An equal tensor is another one, and a counted write is another state."""
    cache, t = TensorCache[str](), torch.rand(3)
    assert cache.get(t) is None
    cache.put(t, "a")
    assert cache.get(t) == "a" and cache.get(t.clone()) is None
    t.add_(0)
    assert cache.get(t) is None


def test_an_answer_goes_with_its_tensor() -> None:
    cache = TensorCache[int]()
    tensors = [torch.rand(2) for _ in range(5)]
    for t in tensors:
        cache.put(t, 1)
    assert len(cache._entries) == 5
    del t, tensors
    gc.collect()
    assert not cache._entries


def test_inference_tensors() -> None:
    """They count no writes: nothing is kept for them."""
    with torch.inference_mode():
        t = torch.rand(3)
    cache = TensorCache[int]()
    cache.put(t, 1)
    assert cache.get(t) is None


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
        copy = engine._kept_copy(grid, torch.float32)
    version = copy._version
    assert not copy.is_inference() and torch.equal(copy, grid.float())
    for mode in (torch.inference_mode(False), torch.inference_mode(True)):
        grid.data.mul_(1.5)
        with mode:
            assert engine._kept_copy(grid, torch.float32) is copy
        assert torch.equal(copy, grid.float()) and copy._version == version
    grid.mul_(2)
    other: Tensor = engine._kept_copy(grid, torch.float32)
    assert other is not copy and torch.equal(other, grid.float()) and not torch.equal(copy, other)
