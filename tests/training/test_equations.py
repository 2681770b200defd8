"""fit on an objective that is a function of the model: equations, points, what a KAN inside gets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fit_cases import F64, make, same
from harness import DEVICE
from kan_kernels import KAN
from kan_kernels.grids import update_grid
from kan_kernels.regularization import regularization
from kan_kernels.training import fit

X = torch.linspace(-1, 1, 64, dtype=F64, device=DEVICE)[:, None]


def growth(model: nn.Module, x: Tensor = X) -> Tensor:
    """u' = u with u(0) = 1."""
    u, slope = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    return (slope - u).square().mean() + (model(x.new_zeros(1, 1)) - 1).square().sum()


def make_line(**options: Any) -> KAN:
    return make([1, 1], **options)


def test_solves_an_equation() -> None:
    """u' = u becomes exp(x); the history holds the objective, whose last entry is the model's."""
    model = make_line(grid_size=10)
    metrics = {"at 1": lambda m: m(X[-1:]).sum()}
    history = fit(model, objective=growth, points=X, steps=20, metrics=metrics)
    assert float((model(X) - X.exp()).abs().max()) < 1e-4
    assert history.train_loss[-1] == pytest.approx(float(growth(model).detach()), rel=1e-9)
    assert history.train_loss[-1] < 1e-6 * history.train_loss[0] and history.test_loss == []
    assert history.metrics["at 1"][-1] == pytest.approx(math.e, rel=1e-4)


def test_same_as_a_plain_loop() -> None:
    """Adam, a penalty on the points, and a grid update: the steps of a loop that a user writes."""
    fitted, plain = make_line(), make_line()
    fit(fitted, objective=growth, points=X, optimizer="adam", steps=6, lamb=0.1, update_grid_at=[3])
    fused = DEVICE.partition(":")[0] in ("cpu", "cuda")
    for begin in (0, 3):
        if begin:
            update_grid(plain, X)
        optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2, fused=fused)
        for _ in range(3):
            optimizer.zero_grad()
            (growth(plain) + 0.1 * regularization(plain, X)).backward()
            optimizer.step()
    for name, value in fitted.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-12, atol=1e-14)


class Clamped(nn.Module):
    """1 + x kan(x): a KAN inside of a module that holds u(0) = 1 exactly."""

    def __init__(self, kan: nn.Module) -> None:
        super().__init__()
        self.kan = kan

    def forward(self, x: Tensor) -> Tensor:
        return 1 + x * self.kan(x)


def test_a_kan_inside_a_module(tmp_path: Path) -> None:
    """Penalty, refinement, grid update and checkpoint reach the KAN inside; a resumed run gives the bits."""

    def run(steps: int, resume: bool) -> tuple[Clamped, Any]:
        model = Clamped(make_line())
        options = {"lamb": 1e-6, "refine_at": {2: 10}, "update_grid_at": [4]}
        file = tmp_path / ("whole" if steps == 8 and not resume else "parts")
        history = fit(
            model, objective=growth, points=X, steps=steps, checkpoint=file, resume=resume, **options
        )
        return model, history

    whole, history = run(8, False)
    assert [event["kind"] for event in history.events] == ["refine", "grid_update"]
    assert whole.kan.layers[0].grid_size == 10 and float((whole(X) - X.exp()).abs().max()) < 1e-3
    assert len(history.regularization) == 9
    run(5, False)
    resumed, again = run(8, True)
    assert same(whole, resumed) and again.train_loss == history.train_loss


def drawn(count: int = 32) -> tuple[list[Tensor], Any]:
    """Points that are drawn by a function, and all that were drawn."""
    generator, made = torch.Generator().manual_seed(3), []

    def points(model: nn.Module) -> Tensor:
        assert not model.training
        made.append((torch.rand(count, 1, dtype=F64, generator=generator) * 2 - 1).to(DEVICE))
        return made[-1]

    return made, points


def test_points_that_are_drawn() -> None:
    """A function of the model is asked at the start and where it is told; the objective gets its points."""
    made, points = drawn()
    seen: list[Tensor] = []

    def objective(model: nn.Module, x: Tensor) -> Tensor:
        seen.append(x)
        return growth(model, x)

    model = make_line()
    history = fit(model, objective=objective, points=points, steps=6, resample_at=[2, 4], update_grid_at=[4])
    assert len(made) == 3 and [e["kind"] for e in history.events] == ["resample", "resample", "grid_update"]
    order = [next(n for n, x in enumerate(made) if torch.equal(x, s)) for s in seen]
    assert sorted(order) == order and set(order) == {0, 1, 2}
    low = float(model.layers[0].grid[0, 3])
    assert low == pytest.approx(float(made[2].min()) - 0.02 * 0.01, abs=1e-9)  # the grid saw the last points


def test_resuming_keeps_the_points(tmp_path: Path) -> None:
    """A checkpoint holds the points that were drawn, so that going on does not draw others."""

    def run(steps: int, resume: bool) -> Any:
        model, file = make_line(), tmp_path / "drawn"
        _, points = drawn()
        if resume:
            points(model.eval())  # another state of the generator: what it draws must not matter
        history = fit(
            model.train(), objective=growth, points=points, steps=steps, resample_at=[2], checkpoint=file,
            resume=resume,
        )  # fmt: skip
        return history.train_loss

    run(4, False)
    resumed = run(7, True)
    (tmp_path / "drawn").unlink()
    assert resumed == run(7, False)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no scalar": ({"objective": lambda m: m(X)}, "objective: got shape"),
    "no tensor": ({"objective": lambda m: 1.0}, "objective: got float"),
    "detached": ({"objective": lambda m: growth(m).detach()}, "objective: its value has no gradient"),
    "of something else": (
        {"objective": lambda m: torch.ones((), requires_grad=True) * 2},
        "objective: its value has no gradient",
    ),
    "no function": ({"objective": 3}, "objective: got 3"),
    "data too": ({"objective": growth, "data": (X, X)}, "data: got it beside objective"),
    "loss too": ({"objective": growth, "loss": nn.functional.mse_loss}, "loss: got it beside objective"),
    "batches": ({"objective": growth, "batch_size": 4}, "batch_size: got it beside objective"),
    "no points for a grid": ({"objective": growth, "update_grid_at": [1]}, "points: got None"),
    "no points for a penalty": ({"objective": growth, "lamb": 1.0}, "points: got None"),
    "wrong points": ({"objective": growth, "points": X.expand(-1, 2)}, "points: got shape"),
    "NaN points": ({"objective": growth, "points": X / 0}, "points: sample"),
    "fixed points": ({"objective": growth, "points": X, "resample_at": [1]}, "resample_at: got steps"),
    "nothing drawn": ({"objective": growth, "points": lambda m: None}, "points: returned None"),
    "NaN drawn": ({"objective": growth, "points": lambda m: X / 0}, "points: returned x: sample"),
    "points of data": ({"data": (X, X), "points": X}, "points, resample_at: got them without objective"),
    "neither": ({}, "data: train is NoneType"),
    "complex": ({"objective": lambda m: m(X).sum() * 1j}, "objective: got torch.complex128"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_come_before_training(case: str) -> None:
    """Each names the argument, and the model is as it was."""
    options, message = BAD[case]
    model = make_line()
    with pytest.raises((TypeError, ValueError), match=message.replace("(", r"\(")):
        fit(model, **{"steps": 2, **options})
    assert same(model, make_line())


def test_two_kans_have_no_grid_in_common() -> None:
    """Two KANs train on one objective, but a grid update would have to know which."""
    pair = nn.ModuleList([make_line(), make_line(seed=1)])

    def both(m: Any) -> Tensor:
        return growth(m[0]) + growth(m[1])

    history = fit(pair, objective=both, steps=3)
    assert history.train_loss[-1] < history.train_loss[0]
    with pytest.raises(TypeError, match="ModuleList has 2 KANs, expected one"):
        fit(pair, objective=both, steps=3, points=X, update_grid_at=[1])


def test_an_objective_that_fails_later() -> None:
    """After an exception, and after a value that is not finite, the model is in its last good state."""
    for value in (RuntimeError, float("nan")):
        model, calls = make_line(), 0

        def objective(m: nn.Module, value: Any = value) -> Tensor:
            nonlocal calls
            calls += 1
            if calls > 80 and value is RuntimeError:
                raise RuntimeError("no more")
            return growth(m) * (value if calls > 80 else 1.0)

        if value is RuntimeError:
            with pytest.raises(RuntimeError, match="no more"):
                fit(model, objective=objective, steps=5)
        else:
            with pytest.warns(RuntimeWarning, match="diverged"):
                assert fit(model, objective=objective, steps=5).stopped == "diverged"
        assert float(growth(model).detach()) < float(growth(make_line()).detach())
