"""The public LBFGS: an optimizer of torch, with a closure, that goes on to rounding error."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fit_cases import F64, data, make, mse, same
from harness import DEVICE
from kan_kernels.training import LBFGS, fit


def closure_of(optimizer: torch.optim.Optimizer, model: nn.Module, x: Tensor, y: Tensor) -> Callable:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = mse(model(x), y)
        loss.backward()
        return loss

    return closure


def target(unit: float) -> tuple[Tensor, Tensor]:
    x, _ = data()
    return x, unit * make([2, 1], seed=1, base=None)(x).detach()


@pytest.mark.parametrize("unit", (1.0, 1e-3))
def test_reaches_rounding_error(unit: float) -> None:
    """A target that the network can be is found to 1e-9 of its size, where torch's stalls far above."""
    x, y = target(unit)
    found = []
    options = {"history_size": 10, "tolerance_grad": 0.0, "tolerance_change": 0.0}
    for kind, extra in ((LBFGS, {}), (torch.optim.LBFGS, {"line_search_fn": "strong_wolfe"})):
        net = make([2, 1], base=None)
        optimizer = kind(net.parameters(), **options, **extra)
        for _ in range(40):
            optimizer.step(closure_of(optimizer, net, x, y))
        found.append(float((net(x).detach() - y).abs().max()))
    assert found[0] < 1e-9 * unit < 1e-2 * found[1]


def test_same_steps_as_fit() -> None:
    """What a user's loop does with it is what fit does, up to rounding."""
    x, y = data()
    fitted, looped = make(), make()
    history = fit(fitted, (x, y), steps=6)
    optimizer = LBFGS(looped.parameters(), history_size=10, tolerance_grad=0.0, tolerance_change=0.0)
    losses = [float(optimizer.step(closure_of(optimizer, looped, x, y)).detach()) for _ in range(6)]
    assert losses == pytest.approx(history.train_loss[:6], rel=1e-5)
    assert losses[-1] < 1e-2 * losses[0]


def test_same_steps_as_torch_on_a_large_loss() -> None:
    """A loss above 1 is left alone: torch's own steps, and as many evaluations."""
    start = torch.tensor([-1.2, 1.0, -0.5, 2.0], dtype=F64, device=DEVICE)
    results = []
    for kind, extra in ((LBFGS, {}), (torch.optim.LBFGS, {"line_search_fn": "strong_wolfe"})):
        p, calls = start.clone().requires_grad_(), 0
        optimizer = kind([p], max_iter=4, **extra)

        def closure(p: Tensor = p, optimizer: Any = optimizer) -> Tensor:
            nonlocal calls
            calls += 1
            optimizer.zero_grad()
            loss = (100 * (p[1:] - p[:-1].square()).square() + (1 - p[:-1]).square()).sum()
            loss.backward()
            return loss

        losses = [float(optimizer.step(closure).detach()) for _ in range(2)]
        assert losses[-1] > 1
        results.append((losses, calls))
    assert results[0][1] == results[1][1] and results[0][0] == pytest.approx(results[1][0], rel=1e-9)


def test_gives_the_plain_loss_and_gradient() -> None:
    """The scale is the optimizer's own: step returns the loss, and grad holds its gradient."""
    x, y = target(1e-4)
    net = make([2, 1], base=None)
    optimizer = LBFGS(net.parameters())
    closure = closure_of(optimizer, net, x, y)
    before = float(mse(net(x).detach(), y))
    assert float(optimizer.step(closure).detach()) == before
    optimizer.step(closure)
    assert optimizer.state_dict()["state"][0]["scale"] > 1e3
    weight = net.layers[0].spline_weight
    closure()
    want = weight.grad.clone()
    optimizer.zero_grad()
    mse(net(x), y).backward()
    assert torch.equal(weight.grad, want)


def test_a_state_dict_goes_on_with_the_same_bits() -> None:
    """Saved and loaded between two steps, through a file of plain data."""
    x, y = target(1e-3)
    whole, parts = make([2, 1], base=None), make([2, 1], base=None)
    optimizer = LBFGS(whole.parameters())
    for _ in range(8):
        optimizer.step(closure_of(optimizer, whole, x, y))
    file = io.BytesIO()
    for begin in (0, 4):
        other = LBFGS(parts.parameters())
        if begin:
            file.seek(0)
            other.load_state_dict(torch.load(file, weights_only=True))
        for _ in range(4):
            other.step(closure_of(other, parts, x, y))
        file.seek(0)
        torch.save(other.state_dict(), file)
    assert same(whole, parts)


def test_starts_anew_where_its_memory_leads_nowhere() -> None:
    """At a minimum the line search finds nothing: the memory goes, and the next objective is taken up."""
    p = torch.ones(3, dtype=F64, device=DEVICE, requires_grad=True)
    optimizer, place = LBFGS([p]), 1.0

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (p - place).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not optimizer.state
    place = 3.0
    optimizer.step(closure)
    assert float((p.detach() - 3).abs().max()) < 1e-12


@pytest.mark.parametrize("options", [{"max_iter": 1, "max_eval": 25}, {"max_iter": 2}, {"max_eval": 2}])
def test_short_steps_keep_their_memory(options: dict[str, Any]) -> None:
    """A step of one iteration is one of torch's: what it learned is there in the next."""
    x = torch.rand(64, 2, dtype=F64, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0)) * 2 - 1
    y, ends = torch.exp(torch.sin(3 * x[:, :1]) + x[:, 1:] ** 2), []
    for kind, more in ((LBFGS, {}), (torch.optim.LBFGS, {"line_search_fn": "strong_wolfe"})):
        torch.manual_seed(1)
        net = make([2, 3, 1])
        optimizer = kind(net.parameters(), **options, **more)
        closure = closure_of(optimizer, net, x, y)
        ends.append([float(optimizer.step(closure)) for _ in range(30)])
    torch.testing.assert_close(*map(torch.tensor, ends), rtol=1e-3, atol=0)
    assert ends[0][-1] < 1e-2 * ends[0][0]


def test_fit_goes_on_without_a_line_search() -> None:
    """One evaluation a step says nothing of where it led: the memory stays, as in torch's own loop."""
    x, y = target(1.0)
    torch.manual_seed(1)
    net = make([2, 3, 1])
    other = copy.deepcopy(net)
    build = lambda parameters: torch.optim.LBFGS(parameters, max_iter=1, lr=0.1)  # noqa: E731
    fit(net, (x, y), steps=60, optimizer=build)
    optimizer = build(other.parameters())
    for _ in range(60):
        optimizer.step(closure_of(optimizer, other, x, y))
    ends = [float(mse(model(x), y).detach()) for model in (net, other)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-2)


def test_fit_takes_it_as_an_optimizer() -> None:
    """Given to fit it rescales once, not twice: the same end."""
    x, y = target(1e-3)
    net = make([2, 1], base=None)
    build = lambda parameters: LBFGS(parameters, tolerance_grad=0.0, tolerance_change=0.0)  # noqa: E731
    fit(net, (x, y), steps=40, optimizer=build)
    assert float((net(x).detach() - y).abs().max()) < 1e-12


@pytest.mark.parametrize(
    "bad, message", (("text", "closure: returned str"), (None, "closure: returned None"))
)
def test_a_closure_that_returns_no_loss(bad: Any, message: str) -> None:
    """Is an error that says so; more than one number is too."""
    p = torch.ones(3, dtype=F64, requires_grad=True)
    with pytest.raises(TypeError, match=message):
        LBFGS([p]).step(lambda: bad)
    with pytest.raises(ValueError, match=r"closure: returned shape \(3,\)"):
        LBFGS([p]).step(lambda: p * 1)
