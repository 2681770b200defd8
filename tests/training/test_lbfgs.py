"""The LBFGS of fit: torch's steps in fewer calls, and a line search that keeps its conditions."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fit_cases import F64, data, make, mse
from harness import DEVICE
from kan_kernels.training import fit, lbfgs
from kan_kernels.training.lbfgs import ARMIJO, CURVATURE, LBFGS

OPTIONS: dict[str, Any] = {"history_size": 5, "tolerance_grad": 0.0, "tolerance_change": 0.0}


class Point(nn.Module):
    """Nothing but its parameters."""

    def __init__(self, *values: Tensor) -> None:
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(value.clone()) for value in values)


def run(optimizer: torch.optim.Optimizer, objective: Any, steps: int) -> tuple[list[float], int]:
    """The losses before every step, and the number of evaluations."""
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    return [float(optimizer.step(closure).detach()) for _ in range(steps)], calls


def test_same_steps_as_torch() -> None:
    """A KAN, and Rosenbrock's valley from far away: the same losses from as many evaluations."""
    x, y = data()
    pairs: list[tuple[nn.Module, Any, int]] = [(make(), lambda m: mse(m(x), y), 4)]
    start = torch.tensor([-1.2, 1.0, -0.5, 2.0], dtype=F64, device=DEVICE)

    def valley(m: Any) -> Tensor:
        p = m.parts[0]
        return (100 * (p[1:] - p[:-1].square()).square() + (1 - p[:-1]).square()).sum()

    pairs.append((Point(start), valley, 3))
    for model, function, steps in pairs:
        other = copy.deepcopy(model)
        torchs = torch.optim.LBFGS(other.parameters(), line_search_fn="strong_wolfe", **OPTIONS)
        want, evaluations = run(torchs, lambda m=other, f=function: f(m), steps)
        got, calls = run(LBFGS(model.parameters(), **OPTIONS), lambda m=model, f=function: f(m), steps)
        assert got == pytest.approx(want, rel=1e-5) and calls == evaluations
        assert got[-1] < 0.05 * got[0]


@pytest.mark.parametrize(
    "options",
    (
        {},
        *(pytest.param({"max_eval": most}, marks=pytest.mark.long) for most in (4, 1)),
        {**OPTIONS, "max_eval": 60, "lr": 0.3},
    ),
    ids=str,
)
def test_same_evaluations_from_random_starts(options: dict[str, Any]) -> None:
    """Functions with many minima and steep valleys: as many evaluations and iterations, the same points."""
    gen = torch.Generator().manual_seed(4)
    matrix = torch.randn(5, 5, dtype=F64, generator=gen).to(DEVICE)
    functions = (
        lambda p: (100 * (p[1:] - p[:-1].square()).square() + (1 - p[:-1]).square()).sum(),
        lambda p: 3 * (matrix @ p).sin().sum() + 0.1 * p.square().sum(),
        lambda p: (p**4 - 8 * p**2 + p).sum() + (matrix @ p).cos().sum(),
    )
    for _ in range(20):
        start = 2 * torch.randn(5, dtype=F64, generator=gen).to(DEVICE)
        for function in functions:
            results = []
            for kind in (torch.optim.LBFGS, LBFGS):
                p = start.clone().requires_grad_()
                optimizer = kind([p], line_search_fn="strong_wolfe", **options)
                _, calls = run(optimizer, lambda p=p, f=function: f(p), 2)
                state = optimizer.state[p]
                results.append((calls, state["func_evals"], state["n_iter"], p.detach()))
            assert results[0][:3] == results[1][:3]
            torch.testing.assert_close(results[0][3], results[1][3], rtol=1e-6, atol=1e-6)


def test_no_more_evaluations_than_allowed() -> None:
    """A line search without an end stops at max_eval, where torch's does."""
    counts = []
    for kind in (torch.optim.LBFGS, LBFGS):
        p = torch.ones(3, dtype=F64, device=DEVICE, requires_grad=True)
        optimizer = kind([p], lr=0.1, max_eval=4, line_search_fn="strong_wolfe")
        counts.append(run(optimizer, lambda p=p: p.sum(), 1)[1])
    assert counts[0] == counts[1] <= 5


def test_parameters_cast_after_construction() -> None:
    """net.double() gives the optimizer float64 parameters: steps are not rounded to float32."""
    p = nn.Linear(3, 1, bias=False, device=DEVICE)
    optimizer = LBFGS(p.parameters(), **OPTIONS)
    p.double()
    target = torch.tensor([[1 / 3, 1 / 7, 1 / 11]], dtype=F64, device=DEVICE)
    run(optimizer, lambda: (p.weight - target).square().sum(), 2)
    assert p.weight.dtype == F64
    torch.testing.assert_close(p.weight.detach(), target, rtol=0, atol=1e-14)


def test_arguments() -> None:
    """torch's, in torch's order; another line search and complex parameters are refused."""
    p = torch.ones(2, requires_grad=True, device=DEVICE)
    group = LBFGS([p], 0.5, 7, 9, 1e-3, 1e-4, 6, "strong_wolfe").param_groups[0]
    assert group == torch.optim.LBFGS([p], 0.5, 7, 9, 1e-3, 1e-4, 6, "strong_wolfe").param_groups[0]
    with pytest.raises(ValueError, match="line_search_fn: got None, expected 'strong_wolfe'"):
        LBFGS([p], line_search_fn=None)
    with pytest.raises(TypeError, match=r"params: parameter 1 is torch\.complex64"):
        LBFGS([p, torch.ones(2, dtype=torch.complex64, requires_grad=True)])


@pytest.mark.parametrize("scale", (1e-6, 1e-2, 1.0, 30.0))
@pytest.mark.parametrize("name", ("quartic", "wavy", "cliff"))
def test_line_search_keeps_the_wolfe_conditions(name: str, scale: float) -> None:
    """From first steps that are much too short or too long; past a cliff of infinite values too."""
    functions = {
        "quartic": lambda t: (t - 1) ** 4 + 0.1 * (t - 1) ** 2,
        "wavy": lambda t: -t + 0.3 * torch.sin(6 * t) + 0.1 * t.square(),
        "cliff": lambda t: -torch.log(1.5 - t) - 2 * torch.log(t + 0.5),
    }
    function = functions[name]
    point = Point(torch.zeros(1, dtype=F64, device=DEVICE))
    optimizer = LBFGS(point.parameters(), **OPTIONS)

    def evaluate() -> tuple[float, Tensor]:
        optimizer.zero_grad()
        with torch.enable_grad():
            value = function(point.parts[0]).sum()
            value.backward()
        return float(value.nan_to_num(torch.inf, torch.inf)), optimizer._gradient()

    value, gradient = evaluate()
    d = torch.full_like(gradient, -math.copysign(1.0, float(gradient)))
    start = lbfgs.Point(0.0, value, gradient, float(gradient * d))
    with torch.no_grad():
        found, calls = optimizer._search(evaluate, False, d, 1.0, start, scale, 25)
    assert point.parts[0].item() == pytest.approx(float(found.t * d), rel=1e-15)
    assert found.value <= value + ARMIJO * found.t * start.slope
    assert abs(found.slope) <= CURVATURE * abs(start.slope)
    assert calls <= 26


def test_a_start_that_is_not_finite_stays() -> None:
    """Where value and gradient are NaN no step is taken, not even one of NaN."""
    point = Point(torch.full((3,), -1.0, dtype=F64, device=DEVICE))
    optimizer = LBFGS(point.parameters(), **OPTIONS)
    run(optimizer, lambda: point.parts[0].sqrt().sum(), 1)
    assert point.parts[0].tolist() == [-1.0] * 3


def test_parameters_without_a_part_in_the_loss() -> None:
    """Stay, beside parameters of other shapes and with gradients that are not contiguous."""
    gen = torch.Generator().manual_seed(2)
    unused, square = (torch.randn(2, 2, dtype=F64, generator=gen).to(DEVICE) for _ in range(2))
    point = Point(unused, square, torch.ones((), dtype=F64, device=DEVICE))
    losses, _ = run(
        LBFGS(point.parameters(), **OPTIONS),
        lambda: (point.parts[1].t() - 2).square().sum() + (point.parts[2] - 3).square(),
        2,
    )
    assert torch.equal(point.parts[0], unused) and losses[1] < 1e-20
    torch.testing.assert_close(point.parts[1].detach(), torch.full_like(square, 2.0))
    assert point.parts[2].item() == pytest.approx(3.0)


def test_state_goes_to_torch_and_back() -> None:
    """A state dict of one continues in the other."""
    x, y = data()
    losses = []
    for first, second in ((LBFGS, torch.optim.LBFGS), (torch.optim.LBFGS, LBFGS)):
        net = make()
        extra = {LBFGS: {}, torch.optim.LBFGS: {"line_search_fn": "strong_wolfe"}}
        a = first(net.parameters(), **OPTIONS, **extra[first])
        run(a, lambda net=net: mse(net(x), y), 2)
        b = second(net.parameters(), **OPTIONS, **extra[second])
        b.load_state_dict(a.state_dict())
        losses.append(run(b, lambda net=net: mse(net(x), y), 2)[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_another_default_device() -> None:
    """What an optimizer makes lies where the parameters do."""
    x, y = data()
    net = make()
    with torch.device("meta"):
        losses, _ = run(LBFGS(net.parameters(), **OPTIONS), lambda: mse(net(x), y), 2)
    assert losses[1] < losses[0]


def test_parameters_cast_between_steps() -> None:
    """The memory is cast with them."""
    x, y = data()
    net = make(dtype=torch.float32)
    optimizer = LBFGS(net.parameters(), **OPTIONS)
    before = run(optimizer, lambda: mse(net(x.float()), y.float()), 2)[0]
    net.double()
    after = run(optimizer, lambda: mse(net(x), y), 2)[0]
    assert after[-1] < after[0] < before[-1] and optimizer.state[next(net.parameters())]["d"].dtype == F64


def test_an_interrupted_step_leaves_parameters_and_memory() -> None:
    """At a vector both are those of before the step."""
    x, y = data()
    net = make()
    optimizer = LBFGS(net.parameters(), **OPTIONS)
    run(optimizer, lambda: mse(net(x), y), 2)
    kept = copy.deepcopy((net.state_dict(), optimizer.state_dict()["state"]))
    left = 7

    def on_vector(vector: lbfgs.Vector) -> lbfgs.Function:
        def evaluate() -> tuple[float, Tensor]:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return float((vector.numbers**2).sum()), 2 * vector.numbers

        return lbfgs.Function(evaluate)

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(lbfgs.VectorClosure(lambda: mse(net(x), y), on_vector))
    found = net.state_dict(), optimizer.state_dict()["state"]
    torch.testing.assert_close(found, kept, rtol=0, atol=0)


def test_gradients_of_a_subclass_are_its_own() -> None:
    """fit evaluates where a subclass looks for them."""
    seen: list[int] = []

    class Clipped(LBFGS):
        def _gradient(self) -> Tensor:
            seen.append(1)
            return super()._gradient().clamp(-1, 1)

    x, y = data()
    fit(make(), (x, y), steps=1, optimizer=lambda p: Clipped(p))
    assert len(seen) >= 20


def test_optimizers_of_others_get_tensors() -> None:
    """A subclass of torch's LBFGS sees the loss as a tensor, as torch passes it on."""

    class Mine(torch.optim.LBFGS):
        def step(self, closure):
            loss = super().step(closure)
            seen.append(loss.item())
            return loss

    seen: list[float] = []
    x, y = data()
    fit(make(), (x, y), steps=2, optimizer=lambda p: Mine(p, lr=0.1))
    assert len(seen) == 2


def test_evaluations_of_a_step() -> None:
    """26 at most, one more than max_eval as in torch; the model ends with the best of them."""
    x, y = data()
    net, seen = make(), []

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        value = mse(prediction, target)
        if torch.is_grad_enabled():
            seen.append(float(value.detach()))
        return value

    history = fit(net, (x, y), steps=5, loss=loss)
    assert 5 * 20 <= len(seen) <= 5 * 26
    assert history.train_loss[-1] == pytest.approx(min(seen), rel=1e-12)


@pytest.mark.parametrize("size", (1, 3, 10, 30))
def test_history_size(size: int, tmp_path: Path) -> None:
    """What fit's LBFGS remembers, and the steps that torch's takes with as much; 10 by default."""
    x, y = data()
    path = tmp_path / "run.pt"
    net, other, loss = make(), make(), mse(make()(x), y).item()
    history = fit(net, (x, y), steps=2, history_size=size, checkpoint=path)
    optimizer = torch.load(path, weights_only=True)["snapshot"]["minimizer"]["optimizer"]
    assert optimizer["param_groups"][0]["history_size"] == size
    assert [len(optimizer["state"][0][name]) for name in ("ro", "old_dirs", "old_stps")] == [size] * 3
    assert loss > 1  # or fit would scale it
    torchs = torch.optim.LBFGS(
        other.parameters(), line_search_fn="strong_wolfe", **{**OPTIONS, "history_size": size}
    )
    want, _ = run(torchs, lambda: mse(other(x), y), 1)
    assert history.train_loss[0] == pytest.approx(want[0], rel=1e-12)
    assert history.train_loss[1] == pytest.approx(mse(other(x), y).item(), rel=1e-6)
    default = fit(make(), (x, y), steps=2).train_loss
    assert (history.train_loss[2] == default[2]) == (size == 10)


def test_complex_parameters() -> None:
    """Are torch's LBFGS's."""
    net = nn.Linear(2, 1, dtype=torch.complex128, device=DEVICE)
    x = torch.randn(20, 2, dtype=torch.complex128, device=DEVICE)
    y = x @ torch.tensor([[1 + 2j], [-1j]], device=DEVICE, dtype=x.dtype) + 0.5
    history = fit(net, (x, y), steps=3, loss=lambda p, y: (p - y).abs().square().mean())
    assert history.train_loss[-1] < 1e-20
    assert complex(net.weight[0, 1].detach()) == pytest.approx(-1j, abs=1e-8)
