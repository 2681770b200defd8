"""A step of LBFGS in one call: what it does evaluation by evaluation, and no more."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fit_cases import F64, data, make
from harness import DEVICE
from kan_kernels import KAN
from kan_kernels.backends import native
from kan_kernels.training import direct, fit, lbfgs

F32 = torch.float32
pytestmark = pytest.mark.skipif(
    native.NAMESPACE is None or DEVICE not in direct.ONE_CALL, reason=f"no op of the whole for {DEVICE}"
)


def masked(net: KAN) -> KAN:
    net.layers[0].set_edge_mask(torch.tensor([[1, 0, 1, 0], [1, 1, 0, 1]]))
    return net


def steps(
    net: KAN, count: int, weights: direct.Weights | None, one_call: bool,
    xy: tuple[Tensor, Tensor] | None = None, **options: Any,
) -> tuple[lbfgs.LBFGS, list[float], int]:  # fmt: skip
    """Take some; return the optimizer, the losses before each, and the evaluations that were calls."""
    x, y = data(dtype=next(net.parameters()).dtype) if xy is None else xy
    optimizer = lbfgs.LBFGS(net.parameters(), **{"tolerance_grad": 0.0, "tolerance_change": 0.0, **options})
    calls = 0

    def on_vector(vector: lbfgs.Vector) -> lbfgs.Function:
        errors = direct.squared_errors(net, x, y, weights, vector)
        assert errors is not None
        iterate: Callable[..., Any] | None = errors().iterate

        def evaluate() -> tuple[float, Tensor]:
            nonlocal calls
            calls += 1
            error = errors()
            return float(error.total), error.gradient()

        def scaled(*arguments: Any) -> Any:
            assert iterate is not None
            return iterate(1.0, *arguments)

        return lbfgs.Function(evaluate, scaled if one_call else None)

    def closure() -> Tensor:
        raise AssertionError("the objective is a function of the vector")

    losses = [float(optimizer.step(lbfgs.VectorClosure(closure, on_vector))) for _ in range(count)]
    return optimizer, losses, calls


PENALTY = direct.Weights(0.02, 1.0, 2.0)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "float32": {"dtype": F32},
    "bias": {"bias": True},
    "penalty": {"weights": PENALTY},
    "mask": {"mask": True},
    "mask and penalty, float32": {"mask": True, "weights": PENALTY, "dtype": F32, "bias": True},
    "no memory": {"history_size": 0},
    "a short memory": {"history_size": 3},
    "a rate": {"lr": 0.3},
    "a long first step": {"lr": 40.0},  # the first line searches zoom
    "few evaluations": {"max_eval": 3, "lr": 10.0},
    "one evaluation": {"max_eval": 1},
    "one and a half evaluations": {"max_eval": 1.5, "lr": 10.0},
    "no iterations": {"max_iter": 0},
    "one iteration": {"max_iter": 1},
    # what ends the iterations: each of these alone
    "small changes": {"tolerance_change": 0.05},
    "small slopes": {"tolerance_change": 0.03},
    "small steps": {"tolerance_change": 0.3},
    "small gradients": {"tolerance_grad": 0.05},
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_in_one_call(name: str) -> None:
    """The parameters, losses and state of evaluations one by one, up to rounding; as many of them."""
    case = dict(CASES[name])
    mask, weights = case.pop("mask", False), case.pop("weights", None)
    dtype, bias = case.pop("dtype", F64), case.pop("bias", False)
    net = make(dtype=dtype, bias=bias)
    nets = [masked(net) if mask else net, copy.deepcopy(net)]
    options = {"max_iter": 6, **case}
    one, losses, calls = steps(nets[0], 2, weights, True, **options)
    each, wanted, more = steps(nets[1], 2, weights, False, **options)
    states = [o.state[o._params[0]] for o in (one, each)]
    assert calls == 2 and more == states[1]["func_evals"]
    # rounding grows from iteration to iteration
    near = {"rtol": 1e-7, "atol": 1e-9} if dtype == F64 else {"rtol": 2e-3, "atol": 2e-4}
    torch.testing.assert_close(losses, wanted, **near)
    for found, expected in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(found, expected, **near)
    assert (states[0]["n_iter"], states[0]["func_evals"]) == (states[1]["n_iter"], states[1]["func_evals"])
    assert states[0].keys() == states[1].keys()
    if dtype == F64:
        for key in states[0]:
            torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-5, atol=1e-7)


def test_line_searches() -> None:
    """Of first steps too short and too long, over kinks of penalties and slopes of large weights, with few
    evaluations and many: all end where those of evaluations one by one end, after as many.
    """
    searched = 0
    for seed in range(120):
        draw = torch.Generator().manual_seed(seed)

        def uniform(low: float, high: float, draw: torch.Generator = draw) -> float:
            return float(torch.rand((), generator=draw, dtype=F64)) * (high - low) + low

        widths = ([1, 1], [1, 3, 1], [2, 4, 1])[seed % 3]
        net = make(widths, seed)
        with torch.no_grad():
            for p in net.parameters():
                p *= 10 ** uniform(-1, 1.5)
        x = (torch.rand(40, widths[0], generator=draw, dtype=F64) * 2 - 1).to(DEVICE)
        y = torch.randn(40, 1, generator=draw, dtype=F64).to(DEVICE)
        weights = direct.Weights(10 ** uniform(-3, 1), 1.0, uniform(0, 2)) if seed % 2 else None
        options = {"lr": 10 ** uniform(-2, 2.5), "max_iter": 1 + seed % 3}
        options["max_eval"] = (1, 2, 3, 4, 6, 9, 25, 80)[int(uniform(0, 8))]
        nets = [net, copy.deepcopy(net)]
        ends = []
        for model, one_call in zip(nets, (True, False), strict=True):
            optimizer, _, _ = steps(model, 1, weights, one_call, (x, y), **options)
            state = optimizer.state[optimizer._params[0]]
            ends.append((state["func_evals"], state["n_iter"], state["t"], state["prev_loss"]))
        assert ends[0] == pytest.approx(ends[1], rel=1e-5, abs=1e-12), seed
        torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict(), rtol=1e-6, atol=1e-9)
        searched += ends[0][0] > options["max_iter"] + 1
    assert searched > 60


@pytest.mark.parametrize("rate", (1e60, 1e160, 1e308))
def test_a_line_search_backs_off(rate: float) -> None:
    """From a first step to huge objectives, infinite ones and NaN, as evaluation by evaluation."""
    x, y = data()
    found = []
    for one_call in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not one_call:
                patch.setattr(direct.SquaredError, "iterate", None)
            history = fit(
                make(), (x, y), steps=2, progress=False,
                optimizer=lambda p: lbfgs.LBFGS(p, lr=rate, max_iter=2, max_eval=40),
            )  # fmt: skip
        assert history.stopped == "steps"
        found.append(history.train_loss)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0][-1] <= found[0][0]


def test_the_scale_of_the_objective() -> None:
    """`fit` scales a small error up: from 1e-9 it goes on to rounding error in one call, too."""
    x, _ = data()
    near = make([2, 1])
    with torch.no_grad():
        y = near(x)
        for p in near.parameters():
            p += 1e-4 * torch.randn(p.shape, dtype=F64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    losses = []
    for one_call in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not one_call:
                patch.setattr(direct.SquaredError, "iterate", None)
            losses.append(fit(copy.deepcopy(near), (x, y), steps=20, progress=False).train_loss)
    assert losses[0][0] < 1e-7 and losses[0][-1] < 1e-17 and losses[1][-1] < 1e-17
    assert losses[0][:3] == pytest.approx(losses[1][:3], rel=1e-4)


def test_long_steps_are_looked_at_in_between() -> None:
    """With many rows, or many evaluations, an interrupt does not wait for a step."""
    net = make([2, 1])
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    for rows, weights, offered in (
        (1 << 18, None, True),
        ((1 << 18) + 1, None, False),
        (1 << 16, PENALTY, True),
        (1 << 17, PENALTY, False),
    ):
        x = torch.zeros(1, 2, dtype=F64, device=DEVICE).expand(rows, 2)
        vector = lbfgs.Vector(flat, list(net.parameters()))
        errors = direct.squared_errors(net, x, x[:, :1], weights, vector)
        assert errors is not None and (errors().iterate is not None) == offered
    assert steps(make(), 1, None, True, max_eval=100)[2] == 1
    assert steps(make(), 1, None, True, max_eval=101)[2] > 20


def test_bad_arguments() -> None:
    """What does not fit is an error before anything moves."""
    net = make()
    x, y = data()
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    errors = direct.squared_errors(net, x, y, None, lbfgs.Vector(flat, list(net.parameters())))
    assert errors is not None
    error, n = errors(), flat.numel()
    pairs, rhos = torch.zeros(2, 4, n, dtype=F64), torch.zeros(4, dtype=F64)

    def arguments(**changed: Any) -> tuple[Any, ...]:
        good = {"given": errors.args[0].arguments, "vector": flat, "read": None, "mask": None}
        good |= {"scale": 1.0, "value": float(error.value), "gradient": error.gradient(), "pairs": pairs}
        good |= {"rhos": rhos, "first": 0, "count": 0, "inverse": 1.0, "iterations": 0, "previous": None}
        good |= {"d": None, "t": 0.0, "lr": 1.0, "max_iter": 1, "max_eval": 3, "grad": 0.0, "change": 0.0}
        first, *rest = (good | changed).values()
        return *first, *rest

    call = torch.ops.kan_kernels.kan_network_lbfgs
    before = flat.clone()
    ones = torch.ones(n, dtype=F64)
    for changed, message in (
        ({"vector": flat.clone()}, "tensors must be the parts of vector"),
        ({"vector": flat[:-1]}, r"vector has shape \(\d+\), expected"),
        ({"read": ones, "mask": ones}, "tensors must be the parts of read"),
        ({"mask": ones}, "read and mask belong together"),
        ({"gradient": ones.float()}, "gradient must be contiguous, of the vector's dtype"),
        ({"pairs": pairs[0]}, r"pairs must have shape \(2, size, n\)"),
        ({"pairs": pairs[..., 1:]}, r"pairs has shape \(2, 4, \d+\), expected"),
        ({"pairs": pairs.float()}, "pairs of the vector's dtype"),
        ({"rhos": rhos[1:]}, r"inverse_curvatures has shape \(3\), expected \(4\)"),
        ({"rhos": rhos.float()}, "inverse_curvatures must be float64"),
        ({"count": 5}, r"first and count must be in 0\.\.4, got 0 and 5"),
        ({"first": 4}, r"first and count must be in 0\.\.4, got 4 and 0"),
        ({"iterations": 1}, "previous and d: got none after 1 iterations"),
        ({"d": ones}, "previous and d belong together"),
        ({"d": ones, "previous": ones[1:]}, r"previous has shape \(\d+\), expected"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call(*arguments(**changed))
        assert torch.equal(flat, before)
    made = call(*arguments())
    assert made[4] == 1 and not torch.equal(flat, before)
