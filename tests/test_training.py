"""fit trains, records, falls back, resumes; and refuses what it cannot train on before anything changes."""

from __future__ import annotations

import copy
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import DEVICE, child
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kan_kernels import KAN, KANLinear
from kan_kernels.grids import refine, update_grid
from kan_kernels.regularization import regularization
from kan_kernels.training import History, fit

F64 = torch.float64


def make(widths: list[int] | None = None, seed: int = 0, **options: Any) -> KAN:
    torch.manual_seed(seed)
    return KAN(widths or [2, 4, 1], **{"dtype": F64, "device": DEVICE, **options})


def data(samples: int = 200, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(samples, 2, dtype=F64, generator=generator) * 2 - 1
    y = torch.exp(torch.sin(math.pi * x[:, :1]) + x[:, 1:] ** 2)
    return x.to(DEVICE, dtype), y.to(DEVICE, dtype)


def mse(prediction: Tensor, y: Tensor) -> Tensor:
    return (prediction - y).square().mean()


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


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


def test_patience_ends_with_the_best() -> None:
    """A test loss that only rises stops the training, and the model is the one before it rose."""
    x, y = data()
    net = make()
    start = copy.deepcopy(net)
    mean = float(net(x).detach().mean())
    bad = (x, mean - 10 * (y - mean))
    history = fit(net, {"train": (x, y), "test": bad}, steps=50, patience=3)
    assert history.stopped == "early_stop" and len(history.train_loss) == 1
    assert same(net, start)
    assert history.events == [{"step": 3, "kind": "early_stop", "restored": 0}]
    net = make()
    history = fit(net, (x, y), steps=30, patience=1000, optimizer="adam", lr=0.5, evaluate_every=1)
    assert history.stopped == "steps"
    assert float(mse(net(x).detach(), y)) == pytest.approx(min(history.train_loss), rel=1e-9)


@pytest.mark.parametrize("optimizer", ("adam", "lbfgs"))
def test_divergence_falls_back(optimizer: str) -> None:
    """A loss that becomes NaN ends the training at the last state whose loss was finite."""
    x, y = data()
    calls = 0

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return mse(prediction, target) * (math.nan if calls > (13 if optimizer == "adam" else 60) else 1.0)

    net, plain = make(), make()
    with pytest.warns(RuntimeWarning, match="training diverged"):
        history = fit(net, (x, y), steps=40, optimizer=optimizer, evaluate_every=4, loss=loss)
    assert history.stopped == "diverged"
    event = history.events[-1]
    step = 12 if optimizer == "adam" else event["restored"]
    assert event["kind"] == "diverged" and event["restored"] == step and event["step"] > step
    assert len(history.train_loss) == step + 1 and all(map(math.isfinite, history.train_loss))
    fit(plain, (x, y), steps=max(step, 1), optimizer=optimizer, evaluate_every=4)
    if step:
        assert same(net, plain)
    assert float(mse(net(x), y)) == pytest.approx(history.train_loss[-1], rel=1e-12)


def test_divergence_at_once() -> None:
    """Where even the first loss is not finite, the model stays as it was."""
    net = make()
    with torch.no_grad():
        net.layers[0].spline_weight[0, 0, 0] = torch.nan
    before = copy.deepcopy(net)
    x, y = data()
    x[0, 0] = -1.0  # the first spline is not zero there
    with pytest.warns(RuntimeWarning, match="step 0 is not finite"):
        history = fit(net, (x, y), steps=5, optimizer="adam")
    assert history.stopped == "diverged"
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before.state_dict()[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("optimizer", ("adam", "lbfgs"))
def test_interrupt(optimizer: str, tmp_path: Path) -> None:
    """Ctrl-C in the middle of a step returns the history and the state before that step, saved too."""
    x, y = data()
    calls = 0

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == 60:
            raise KeyboardInterrupt
        return mse(prediction, target)

    net, path = make(), tmp_path / "run.pt"
    options: dict[str, Any] = {"optimizer": optimizer, "evaluate_every": 1}
    history = fit(net, (x, y), steps=100, loss=loss, checkpoint=path, **options)
    restored = history.events[-1]["restored"]
    assert history.stopped == "interrupted" and len(history.train_loss) == restored + 1
    assert restored == 58 if optimizer == "adam" else 1 <= restored < 10
    plain, options = make(), {**options, "loss": mse}
    fit(plain, (x, y), steps=restored, **options)
    assert same(net, plain)
    resumed, whole = make(), make()
    after = fit(resumed, (x, y), steps=restored + 3, checkpoint=path, resume=True, **options)
    fit(whole, (x, y), steps=restored + 3, **options)
    assert same(resumed, whole) and len(after.train_loss) == restored + 4


@pytest.mark.parametrize("optimizer", ("adam", "lbfgs"))
def test_resume_is_exact(optimizer: str, tmp_path: Path) -> None:
    """A training in two parts gives the bits and the history of one in one part, mini-batches included."""
    x, y = data()
    options: dict[str, Any] = {
        "optimizer": optimizer, "batch_size": 64, "seed": 5, "patience": 50, "evaluate_every": 2,
        "lr": lambda step: 1e-2 if optimizer == "adam" else 1.0 / (1 + step),
    }  # fmt: skip
    split = {"train": (x, y), "test": (x[:20], y[:20])}
    whole, parts = make(), make()
    one = fit(whole, split, steps=14, **options)
    path = tmp_path / "run.pt"
    fit(parts, split, steps=9, checkpoint=path, checkpoint_every=4, **options)
    fresh = make(seed=7)
    two = fit(fresh, split, steps=14, checkpoint=path, resume=True, **options)
    assert same(fresh, whole)
    keep = [t for t in two.evaluated if t != 9]  # where the first part ended
    assert two.train_loss == one.train_loss and keep == one.evaluated
    assert {"step": 9, "kind": "resumed"} in two.events
    content = torch.load(path, weights_only=True)
    assert content["snapshot"]["step"] == 14 and not (tmp_path / "run.pt.partial").exists()


def test_checkpoints_while_training(tmp_path: Path) -> None:
    """The file is written on the way, so that a killed training can go on."""
    path, steps = tmp_path / "run.pt", []

    def spy(prediction: Tensor, y: Tensor) -> float:
        steps.append(torch.load(path, weights_only=True)["snapshot"]["step"] if path.exists() else None)
        return 0.0

    net, (x, y) = make(), data()
    fit(net, (x, y), steps=10, checkpoint=path, checkpoint_every=4, metrics={"spy": spy})
    assert steps == [None] * 5 + [4] * 4 + [8] * 2
    assert torch.load(path, weights_only=True)["snapshot"]["step"] == 10


def test_wrong_checkpoints(tmp_path: Path) -> None:
    """Another model's, another recipe's, or no checkpoint: an error, and the model as it was."""
    x, y = data()
    path = tmp_path / "run.pt"
    fit(make(), (x, y), steps=2, checkpoint=path)
    other = make([2, 3, 1])
    before = copy.deepcopy(other)
    with pytest.raises(RuntimeError, match="size mismatch"):
        fit(other, (x, y), steps=3, checkpoint=path, resume=True)
    assert same(other, before)
    with pytest.raises(ValueError, match="optimizer: got 'adam', but the checkpoint's training had 'lbfgs'"):
        fit(make(), (x, y), optimizer="adam", checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="seed: got 1"):
        fit(make(), (x, y), seed=1, checkpoint=path, resume=True)
    torch.save({"a": 1}, path)
    before = copy.deepcopy(net := make(seed=3))
    with pytest.raises(ValueError, match="is not a file that fit wrote"):
        fit(net, (x, y), checkpoint=path, resume=True)
    for content in (b"", b"some text\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint: .* is not a file that fit wrote"):
            fit(net, (x, y), checkpoint=path, resume=True)
    assert same(net, before)
    path.unlink()
    fit(net := make(), (x, y), steps=2, checkpoint=path, resume=True)  # nothing to resume from yet
    fit(plain := make(), (x, y), steps=2)
    assert same(net, plain) and path.exists()


def test_another_recipe(tmp_path: Path) -> None:
    """A history goes on only where its lists are filled as before, with the optimizer that it had."""
    x, y = data()
    path = tmp_path / "run.pt"
    sgd = lambda p: torch.optim.SGD(p, lr=1e-3)  # noqa: E731
    fit(make(), (x, y), steps=1, optimizer=sgd, checkpoint=path)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"lamb": 0.1}, "lamb > 0: got True, but the checkpoint's"),
        ({"data": {"train": (x, y), "test": (x, y)}}, "test data: got True, but the checkpoint's"),
        ({"metrics": {"mse": mse}}, r"metrics: got \['mse'\], but the checkpoint's"),
        ({"optimizer": lambda p: torch.optim.Adam(p)}, "optimizer: got 'Adam', but the checkpoint's"),
        ({"optimizer": lambda p: torch.optim.SGD([{"params": [v]} for v in p], lr=1e-3)},
         "checkpoint: its optimizer does not fit"),
        ({"refine_at": {3: 4}}, r"refine_at\[3\]: got 4"),
    ]  # fmt: skip
    net = make(seed=3)
    before = copy.deepcopy(net)
    for change, match in changes:
        options = {"data": (x, y), "optimizer": sgd, **change}
        with pytest.raises(ValueError, match=match):
            fit(net, steps=4, checkpoint=path, resume=True, **options)
        assert same(net, before)


def test_an_error_on_the_way_falls_back() -> None:
    """A loss that raises after a grid change leaves the last good state."""
    x, y = data()

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        if net.layers[0].grid_size == 7:
            raise ZeroDivisionError
        return mse(prediction, target)

    net, plain = make(), make()
    with pytest.raises(ZeroDivisionError):
        fit(net, (x, y), steps=5, loss=loss, refine_at={2: 7})
    fit(plain, (x, y), steps=1)
    assert same(net, plain) and net.layers[0].grid_size == 5


def test_a_weight_that_is_not_finite_is_divergence() -> None:
    """Even where the loss does not see it: a spline with its support outside of the data."""
    x, y = data()
    net = make([2, 1], base=None)
    start = copy.deepcopy(net)

    class Spoils(torch.optim.SGD):
        def step(self, closure=None):  # type: ignore[no-untyped-def, override]
            value = super().step(closure)
            self.param_groups[0]["params"][0].data[0, -1] = math.inf
            return value

    inside = (x / 2, y)
    with pytest.warns(RuntimeWarning, match="the loss or a weight at step 1 is not finite"):
        history = fit(net, inside, steps=3, optimizer=lambda p: Spoils(p, lr=0.0), evaluate_every=1)
    assert history.stopped == "diverged" and history.events[-1]["restored"] == 0
    assert same(net, start) and math.isfinite(history.train_loss[-1])


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


@pytest.mark.parametrize(
    "change,error,match",
    [
        ({"data": 3}, TypeError, "data: train is int"),
        ({"data": {"training": None}}, ValueError, r"data: got a dict with the keys \['training'\]"),
        ({"y": lambda y: y[:-1]}, ValueError, "data: train has 200 samples of x and 199 of y"),
        ({"y": lambda y: y[:, 0]}, ValueError, r"y has shape \(200,\), expected \(200, 1\)"),
        ({"x": lambda x: x[:0], "y": lambda y: y[:0]}, ValueError, "expected at least one sample"),
        ({"x": lambda x: x.index_fill(0, torch.tensor([7], device=DEVICE), math.nan)}, ValueError,
         "data: train x has a value that is not finite in sample 7"),
        ({"y": lambda y: y / 0}, ValueError, "data: train y has a value that is not finite in sample 0"),
        ({"x": lambda x: x.tolist()}, TypeError, "data: train x is list"),
        ({"steps": 0}, ValueError, "steps: got 0"),
        ({"steps": 2.5}, TypeError, "steps: got 2.5"),
        ({"batch_size": 0}, ValueError, "batch_size: got 0"),
        ({"optimizer": "sgd"}, ValueError, "optimizer: got 'sgd'"),
        ({"lr": -1.0}, ValueError, "lr: got -1.0"),
        ({"lamb": -1.0}, ValueError, "lamb: got -1.0"),
        ({"patience": 0}, ValueError, "patience: got 0"),
        ({"refine_at": {3: 0}}, ValueError, r"refine_at\[3\]: got 0"),
        ({"refine_at": {3: 4}}, ValueError, r"refine_at\[3\]: got 4, but the grids have 5 cells"),
        ({"refine_at": {3: 8, 1: 10}}, ValueError, r"refine_at\[3\]: got 8, but the grids have 10 cells"),
        ({"update_grid": {"eps": 0.1}}, ValueError, "update_grid: got the option 'eps'"),
        ({"update_grid": {"grid_eps": 2.0}}, ValueError, "update_grid: grid_eps: got 2.0"),
        ({"regularization": {"mu": 1.0}}, ValueError, "regularization: got the option 'mu'"),
        ({"lamb": 1.0, "update_grid_at": [0], "regularization": {"kind": "l3"}}, ValueError,
         "kind: got 'l3'"),
        ({"update_grid_at": [0], "loss": lambda p, y: (p - y) ** 2}, ValueError,
         r"loss: got shape \(200, 1\)"),
        ({"data": {"train_input": 0, "test_input": 0}}, ValueError, "data: got a dict without 'train_label'"),
        ({"update_grid_at": [-1]}, ValueError, "update_grid_at: step: got -1"),
        ({"resume": True}, ValueError, "resume: got True"),
        ({"checkpoint": "/nowhere/at/all.pt"}, ValueError, "checkpoint: there is no folder"),
        ({"loss": lambda p, y: (p - y) ** 2}, ValueError, r"loss: got shape \(200, 1\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_bad_arguments(change: dict[str, Any], error: type[Exception], match: str) -> None:
    x, y = data()
    change = dict(change)
    x, y = change.pop("x", lambda x: x)(x), change.pop("y", lambda y: y)(y)
    net = make()
    before = copy.deepcopy(net)
    with pytest.raises(error, match=match):
        fit(net, change.pop("data", (x, y)), **change)
    assert same(net, before)


def test_other_models_and_frozen_ones() -> None:
    """Any module trains; grids ask for a KAN; a model without trainable parameters is an error."""
    net, (x, y) = nn.Sequential(KANLinear(2, 3), nn.Linear(3, 1)).to(DEVICE, F64), data()
    assert fit(net, (x, y), steps=5).train_loss[-1] < 0.5
    with pytest.raises(TypeError, match="model: got Sequential"):
        fit(net, (x, y), update_grid_at=[0])
    with pytest.raises(TypeError, match="model: got int"):
        fit(3, (x, y))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        fit(net.requires_grad_(False), (x, y))


def test_loader_mistakes() -> None:
    x, y = data(8)
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    with pytest.raises(ValueError, match="batch_size: got 4, but the train loader has its own"):
        fit(make(), loader, batch_size=4)
    with pytest.raises(ValueError, match="the train loader is empty"):
        fit(make(), DataLoader(TensorDataset(x[:0], y[:0])), steps=1)
    with pytest.raises(TypeError, match="the train loader gave"):
        fit(make(), DataLoader(TensorDataset(x)), steps=1)


def test_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar when asked for; without tqdm an error that names the extra; by default none outside terminals."""
    pytest.importorskip("tqdm")
    x, y = data()
    fit(make(), (x, y), steps=3)
    assert capsys.readouterr().err == ""
    fit(make(), (x, y), steps=3, progress=True)
    assert "3/3" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install kan_kernels\[train\]"):
        fit(make(), (x, y), steps=3, progress=True)
    fit(make(), (x, y), steps=1)


def test_imports_nothing_heavy() -> None:
    child("""
import sys, torch, numpy
before = set(sys.modules)
from kan_kernels import training, pruning, plotting
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert not new & {"matplotlib", "scipy", "sympy", "tqdm"}, new
""")


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


def test_resume_and_fall_back_across_a_refinement(tmp_path: Path) -> None:
    """A checkpoint brings its grid size; divergence after a refinement goes back to before it."""
    x, y = data()
    options: dict[str, Any] = {"refine_at": {3: 7}, "update_grid_at": [3], "evaluate_every": 3}
    whole, path = make(), tmp_path / "run.pt"
    one = fit(whole, (x, y), steps=6, **options)
    fit(make(), (x, y), steps=3, checkpoint=path, **options)
    before = make()
    before.load_state_dict(torch.load(path, weights_only=True)["snapshot"]["model"])
    assert before.layers[0].grid_size == 5
    for _ in range(2):  # once from before the refinement, once from after it
        fresh = make(seed=9)
        two = fit(fresh, (x, y), steps=5, checkpoint=path, checkpoint_every=1, resume=True, **options)
    fresh = make(seed=9)
    two = fit(fresh, (x, y), steps=6, checkpoint=path, resume=True, **options)
    assert same(fresh, whole) and two.train_loss == one.train_loss
    assert [e["kind"] for e in two.events].count("refine") == 1

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        return mse(prediction, target) * (math.nan if net.layers[0].grid_size == 7 else 1.0)

    net, plain = make(), make()
    with pytest.warns(RuntimeWarning, match=r"step 3 is not finite. The model was put back to step 0"):
        fit(net, (x, y), steps=6, loss=loss, **options)
    assert same(net, plain) and net.layers[0].grid_size == 5


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


def test_interrupt_in_the_middle_of_a_grid_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when one layer is refined and the next is not yet: the model is whole again afterwards."""
    import kan_kernels.grids as grids

    def halfway(model: KAN, size: int, x: Tensor) -> None:
        refine(model.layers[0], size)
        raise KeyboardInterrupt

    monkeypatch.setattr(grids, "refine", halfway)
    x, y = data()
    net, plain = make(), make()
    history = fit(net, (x, y), steps=5, refine_at={3: 10})
    assert history.stopped == "interrupted" and history.events[-1]["restored"] == 2
    fit(plain, (x, y), steps=2)
    assert same(net, plain) and [layer.grid_size for layer in net.layers] == [5, 5]
