"""What LBFGS stores: the library's rings against torch's tensors, and how much of either."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fit_cases import F64, data, make, mse
from kan_kernels.backends import native
from kan_kernels.training import lbfgs_memory
from kan_kernels.training.lbfgs import LBFGS


@pytest.mark.skipif(native.NAMESPACE is None, reason="the library is not built")
@pytest.mark.parametrize("size", (0, 1, 3, 5))
@pytest.mark.parametrize("dtype", (torch.float32, F64))
def test_directions_of_few_parameters(dtype: torch.dtype, size: int) -> None:
    """Of more steps than are stored, from a state of torch's whose scalars are tensors: the library's
    directions are those of torch's tensors, and so is what it stores.
    """
    gen = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(7, dtype=dtype, generator=gen)

    hessian = torch.randn(7, 7, dtype=dtype, generator=gen)
    hessian = hessian @ hessian.t() + torch.eye(7, dtype=dtype)
    steps = [draw() for _ in range(min(size, 2))]
    state: dict[str, Any] = {"old_stps": steps, "old_dirs": [hessian @ s for s in steps]}
    state["ro"] = [1 / s.dot(y) for s, y in zip(steps, state["old_dirs"], strict=True)]
    state["H_diag"] = torch.tensor(0.7, dtype=dtype)
    lists, few = lbfgs_memory.Memory(state, size), lbfgs_memory.memory_of(state, size, draw(), 7)
    assert type(few) is lbfgs_memory.FewNumbers
    near: dict[str, Any] = {"rtol": 200 * torch.finfo(dtype).eps, "atol": 200 * torch.finfo(dtype).eps}
    previous, d = draw(), draw()
    for n in range(7):
        # the third one shows no curvature, and is not stored
        gradient = previous + (0.5 * hessian @ d if n != 2 else 0.0)
        kept = gradient.clone()
        found, wanted = (memory.next(gradient, previous, d, 0.5) for memory in (few, lists))
        torch.testing.assert_close(found.d, wanted.d, **near)
        assert (found.slope, found.largest) == pytest.approx((wanted.slope, wanted.largest), rel=near["rtol"])
        assert torch.equal(gradient, kept) and found.slope < 0
        states: list[dict[str, Any]] = [{}, {}]
        for memory, written in zip((few, lists), states, strict=True):
            memory.write(written)
        torch.testing.assert_close(*states, **near)
        for name in ("old_dirs", "old_stps"):  # a file holds what is stored, and no more
            assert all(
                t.untyped_storage().nbytes() == 2 * len(states[0][name]) * t.nbytes for t in states[0][name]
            )
        assert len(states[0]["ro"]) == min(size, 2 + n + (n < 2))
        previous, d = gradient, draw()
    few.clear()
    assert few.next(gradient, gradient, d, 0.5).d.tolist() == (-gradient).tolist()
    assert math.isnan(few.next(gradient * math.nan, gradient, d, 0.5).largest)


@pytest.mark.skipif(native.NAMESPACE is None, reason="the library is not built")
def test_directions_of_bad_arguments() -> None:
    """Shapes, dtypes and places that do not fit are errors before anything is read."""
    call = torch.ops.kan_kernels.lbfgs_direction
    v = torch.ones(3, dtype=F64)

    def arguments(**changed: Any) -> tuple[Any, ...]:
        good = {"pairs": torch.zeros(2, 4, 3, dtype=F64), "rhos": torch.zeros(4, dtype=F64)}
        good |= {"first": 0, "count": 0, "scale": 1.0, "gradient": v, "previous": v, "d": v, "t": 1.0}
        return tuple((good | changed).values())

    assert call(*arguments())[0].tolist() == [-1.0] * 3
    for changed, message in (
        ({"pairs": torch.zeros(4, 3, dtype=F64)}, r"pairs must have shape \(2, size, n\)"),
        ({"pairs": torch.zeros(2, 4, 3).half()}, "pairs must be float32 or float64"),
        ({"pairs": torch.zeros(2, 3, 4, dtype=F64).mT}, "must be contiguous"),
        ({"rhos": torch.zeros(3, dtype=F64)}, r"inverse_curvatures has shape \(3\), expected \(4\)"),
        ({"rhos": torch.zeros(4)}, "inverse_curvatures must be float64"),
        ({"first": 4}, r"first and count must be in 0\.\.4, got 4 and 0"),
        ({"count": 5}, r"first and count must be in 0\.\.4, got 0 and 5"),
        ({"gradient": v[:2]}, r"gradient has shape \(2\), expected \(3\)"),
        ({"previous": v.float()}, "previous must be contiguous, of pairs' dtype"),
        ({"d": torch.ones(6, dtype=F64)[::2]}, "d must be contiguous, of pairs' dtype"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call(*arguments(**changed))


@pytest.mark.parametrize("size", (10**9, 2))
def test_another_history_size(size: int) -> None:
    """Memory is taken for what is stored; of what was stored before, the last are kept."""
    x, y = data()
    net = make()
    optimizer = LBFGS(net.parameters(), history_size=5, tolerance_grad=0.0, tolerance_change=0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = mse(net(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.param_groups[0]["history_size"] = size
    state = optimizer.state[next(net.parameters())]
    kept = state["old_stps"][-min(size, 5) :]
    found = [
        kind(state, size).steps if kind is lbfgs_memory.Memory else kind(state, size, kept[0], 20).steps
        for kind in (lbfgs_memory.Memory, lbfgs_memory.FewNumbers)
    ]
    for steps in found:
        assert len(steps) == len(kept) and all(map(torch.equal, steps, kept))
    losses = [float(optimizer.step(closure)) for _ in range(2)]
    assert losses[1] < losses[0] and len(state["ro"]) <= min(size, 5 + 2 * 20)
