"""fit trains and records: optimizers, forms of data, metrics, rates, grids, penalties."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fit_cases import F64, data, make, mse, same
from harness import DEVICE
from kan_kernels.grids import refine, update_grid
from kan_kernels.regularization import regularization
from kan_kernels.training import History, fit


@pytest.mark.parametrize("optimizer", ("lbfgs", "adam", "adamw"))
def test_fits(optimizer: str) -> None:
    """Every optimizer lowers the loss; entry t is the loss after t steps, the last that of the model."""
    net, (x, y) = make(), data()
    first = float(mse(net(x).detach(), y))
    steps = 15 if optimizer == "lbfgs" else 150
    history = fit(net, {"train": (x, y), "test": (x[:50], y[:50])}, steps=steps, optimizer=optimizer)
    assert len(history.train_loss) == steps + 1 and history.stopped == "steps" and history.events == []
    assert history.train_loss[0] == pytest.approx(first, rel=1e-12)
    assert history.train_loss[-1] == pytest.approx(float(mse(net(x).detach(), y)), rel=1e-12)
    assert history.train_loss[-1] < (1e-3 if optimizer == "lbfgs" else 0.1) * first
    assert history.evaluated == list(range(0, steps + 1, 1 if optimizer == "lbfgs" else 10))
    assert history.test_loss[-1] == pytest.approx(float(mse(net(x[:50]).detach(), y[:50])), rel=1e-12)
    assert len(history.test_loss) == len(history.evaluated) and history.seconds > 0


@pytest.mark.parametrize("unit", (1.0, 1e-3, 1e5))
def test_lbfgs_reaches_machine_precision(unit: float) -> None:
    """A target that the network can be is found to 1e-10 of its size, whatever the unit.

    torch's LBFGS alone stalls at 3e-6 here: it stops to learn about the curvature.
    """
    x, _ = data()
    y = unit * make([2, 1], seed=1, base=None)(x).detach()
    net = make([2, 1], base=None)
    history = fit(net, (x, y), steps=40)
    assert history.train_loss[-1] < (1e-10 * unit) ** 2
    assert float((net(x).detach() - y).abs().max()) < 1e-9 * unit


def test_same_as_a_plain_loop() -> None:
    """Adam through fit is Adam in a loop that a user writes."""
    x, y = data()
    net, plain = make(), make()
    fit(net, (x, y), steps=20, optimizer="adam", lr=3e-3)
    optimizer = torch.optim.Adam(plain.parameters(), lr=3e-3, fused=x.device.type in ("cpu", "cuda"))
    for _ in range(20):
        optimizer.zero_grad()
        mse(plain(x), y).backward()
        optimizer.step()
    assert same(net, plain)


def test_mini_batches() -> None:
    """Every sample is seen once an epoch, in an order that is the seed's; the last batch may be smaller."""
    x = torch.arange(10.0, device=DEVICE).unsqueeze(1)
    seen: list[list[float]] = []

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(y.flatten().tolist())
        return mse(prediction, y)

    def orders(seed: int) -> list[list[float]]:
        seen.clear()
        fit(
            nn.Linear(1, 1, device=DEVICE),
            (x, x),
            steps=6,
            optimizer="adam",
            batch_size=4,
            loss=loss,
            seed=seed,
        )
        return seen[:6]

    first = copy.deepcopy(orders(3))
    assert [len(b) for b in first] == [4, 4, 2, 4, 4, 2]
    epochs = [[row for batch in part for row in batch] for part in (first[:3], first[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]
    assert orders(3) == first and orders(4) != first


def test_forms_of_data() -> None:
    """Pairs, dicts, pykan's dicts and loaders train the same."""
    x, y = data(64)
    dataset = TensorDataset(x, y)
    loader = DataLoader(dataset, batch_size=64)
    forms = [
        {"train": (x, y), "test": (x[:9], y[:9])},
        {"train_input": x, "train_label": y, "test_input": x[:9], "test_label": y[:9]},
        {"train": loader, "test": DataLoader(TensorDataset(x[:9], y[:9]), batch_size=4)},
        {"train": [x, y], "test": [x[:9], y[:9]]},
    ]
    assert fit(make(), {"train_input": x, "train_label": y}, steps=1).test_loss == []
    nets, histories = [], []
    for form in forms:
        nets.append(make())
        histories.append(fit(nets[-1], form, steps=4))
        assert same(nets[-1], nets[0])
        assert histories[-1].test_loss == pytest.approx(histories[0].test_loss, rel=1e-12)
    fit(net := make(), loader, steps=4)
    assert same(net, nets[0])


def test_loaders_go_round() -> None:
    x, y = data(30)
    seen: list[int] = []

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(len(y))
        return mse(prediction, y)

    fit(make(), DataLoader(TensorDataset(x, y), batch_size=20), steps=5, optimizer="adam", loss=loss)
    assert seen == [20, 10, 20, 10, 20]


def test_metrics_and_classes() -> None:
    """Metrics on the test data, or else on the training data; integer labels with their own loss."""
    x, _ = data()
    labels = (x[:, 0] > x[:, 1]).long()
    net = make([2, 2])

    def accuracy(prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction.argmax(1) == y).double().mean()

    options: dict[str, Any] = {"loss": nn.functional.cross_entropy, "metrics": {"accuracy": accuracy}}
    history = fit(net, (x, labels), steps=10, **options)
    assert history.metrics["accuracy"][-1] == float(accuracy(net(x), labels)) > 0.9
    assert history.test_loss == []
    test = (x[:7], 1 - labels[:7])
    history = fit(net, {"train": (x, labels), "test": test}, steps=1, evaluate_every=5, **options)
    assert history.metrics["accuracy"][-1] == float(accuracy(net(test[0]), test[1])) < 0.5
    assert history.evaluated == [0, 1]


def test_metrics_see_all_rows_of_a_loader() -> None:
    """At once: a root of a mean, or a maximum, is no mean over batches."""
    x, y = data()
    metrics = {
        "rmse": lambda prediction, y: (prediction - y).square().mean().sqrt(),
        "worst": lambda prediction, y: (prediction - y).abs().max(),
    }
    net = make()
    loader = DataLoader(TensorDataset(x, y), batch_size=7)
    history = fit(net, {"train": (x, y), "test": loader}, steps=2, metrics=metrics)
    for name, metric in metrics.items():
        assert history.metrics[name][-1] == pytest.approx(float(metric(net(x), y)), rel=1e-12)


def test_rates() -> None:
    """A function of the step sets the rate of every step; a function of parameters makes the optimizer."""
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):  # type: ignore[no-untyped-def, override]
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    fit(make(), data(), steps=3, optimizer=lambda p: Watched(p, lr=1.0), lr=lambda step: 0.1 / (1 + step))
    assert rates == [0.1, 0.05, 0.1 / 3]
    rates.clear()
    fit(make(), data(), steps=2, optimizer=lambda p: Watched(p, lr=1e-3))
    assert rates == [1e-3, 1e-3]


def test_history_round_trip() -> None:
    x, y = data()
    history = fit(make(), {"train": (x, y), "test": (x, y)}, steps=2, metrics={"mse": mse})
    assert History.from_json(history.to_json()) == history == History(**history.to_dict())
    assert pickle.loads(pickle.dumps(history)) == history


def test_leaves_modes_and_random_state_alone() -> None:
    """Evaluation is in eval mode, training in whatever mode each module was; no random number is drawn."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Linear(3, 1)).to(DEVICE, F64)
    net[0].eval()
    modes: list[bool] = []
    net[1].register_forward_hook(lambda module, *_: modes.append(module.training))
    x, y = data()
    state = torch.get_rng_state()
    net[1].p = 0.0
    fit(net, {"train": (x, y), "test": (x, y)}, steps=2, optimizer="adam", batch_size=16)
    assert [m.training for m in net] == [False, True, True]
    assert modes == [False, False, True, True, False, True]  # the first looks for errors
    assert torch.equal(torch.get_rng_state(), state)


def test_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar when asked for; without tqdm an error that names the extra; by default none outside terminals."""
    pytest.importorskip("tqdm")
    x, y = data()
    fit(make(), (x, y), steps=3)
    assert capsys.readouterr().err == ""
    fit(make(), (x, y), steps=3, progress=True)
    assert "3/3" in capsys.readouterr().err
    with pytest.raises(ValueError, match="y has shape"):
        fit(make(), (x, y[:, 0]), steps=3, progress=True)
    assert capsys.readouterr().err == "", "a bar was opened, and nobody closes it"
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install tqdm"):
        fit(make(), (x, y), steps=3, progress=True)
    fit(make(), (x, y), steps=1)


@pytest.mark.parametrize("optimizer", ("lbfgs", "adam"))
def test_grids_change_on_schedule(optimizer: str) -> None:
    """Refinements and updates happen before their step, the optimizer goes on with the new parameters."""
    x, y = data()
    net = make(grid_size=3)
    events = [
        {"step": 2, "kind": "grid_update"},
        {"step": 4, "kind": "refine", "grid_size": 6},
        {"step": 4, "kind": "grid_update"},
    ]
    schedule: dict[str, Any] = {"update_grid_at": [2, 4, 99], "refine_at": {4: 6, 50: 9}}
    history = fit(net, (x, y), steps=8, optimizer=optimizer, **schedule)
    assert history.events == events
    assert [layer.grid_size for layer in net.layers] == [6, 6]
    manual = make(grid_size=3)
    fit(manual, (x, y), steps=2, optimizer=optimizer)
    update_grid(manual, x)
    assert float(mse(manual(x).detach(), y)) == pytest.approx(history.train_loss[2], rel=1e-9)
    fit(manual, (x, y), steps=2, optimizer=optimizer)
    refine(manual, 6, x)
    update_grid(manual, x)
    assert float(mse(manual(x).detach(), y)) == pytest.approx(history.train_loss[4], rel=1e-6)
    fit(manual, (x, y), steps=4, optimizer=optimizer)
    for a, b in zip(net.parameters(), manual.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert history.train_loss[8] < history.train_loss[4]


def test_options_of_grid_updates() -> None:
    """Uniform knots by grid_eps=1; a loader's first rows are what they are fitted to."""
    x, y = data()
    net = make([2, 1])
    with torch.no_grad():
        net.layers[0].grid *= 3.0
    loader = DataLoader(TensorDataset(x, y), batch_size=50)
    fit(net, loader, steps=1, update_grid_at=[0], update_grid={"grid_eps": 1.0, "margin": 0.0})
    inner = net.layers[0].grid[:, 3:-3]
    torch.testing.assert_close(inner[:, 0], x.amin(0))
    torch.testing.assert_close(inner[:, -1], x.amax(0))
    assert float(inner.diff(dim=1).std(1).max()) < 1e-12


@pytest.mark.parametrize("optimizer", ("lbfgs", "adam"))
def test_regularization_is_part_of_the_objective(optimizer: str) -> None:
    """lamb times the penalty is minimised with the loss; both are recorded."""
    x, y = data()
    net, free = make(), make()
    options: dict[str, Any] = {"steps": 10 if optimizer == "lbfgs" else 400, "optimizer": optimizer}
    start = regularization(net, x, lamb_entropy=0.5).item()
    history = fit(net, (x, y), lamb=0.05, regularization={"lamb_entropy": 0.5}, **options)
    fit(free, (x, y), **options)
    assert history.regularization[0] == pytest.approx(start, rel=1e-9)
    final = regularization(net, x, lamb_entropy=0.5).item()
    assert history.regularization[-1] == pytest.approx(final, rel=1e-9)
    assert history.train_loss[-1] == pytest.approx(float(mse(net(x).detach(), y)), rel=1e-9)
    assert final < 0.8 * regularization(free, x, lamb_entropy=0.5).item()
    assert len(history.regularization) == len(history.train_loss)
    with pytest.raises(TypeError, match="model: got Linear"):
        fit(nn.Linear(2, 1).to(DEVICE, F64), (x, y), lamb=0.1, steps=1)


@pytest.mark.parametrize("function", (torch.log, torch.sqrt))
def test_lbfgs_backs_off_from_nan(function: Any) -> None:
    """A line search that steps out of the domain of a function comes back instead of leaving it for good."""
    net = nn.Linear(1, 1, bias=False).to(DEVICE, F64)
    nn.init.constant_(net.weight, 3.0)
    x = torch.ones(1, 1, dtype=F64, device=DEVICE)

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        return mse(function(prediction), function(y))

    history = fit(net, (x, 1e-3 * x), steps=10, loss=loss)
    assert history.stopped == "steps" and history.train_loss[-1] < 1e-20
    assert net.weight.item() == pytest.approx(1e-3, rel=1e-9)
