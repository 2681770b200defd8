"""fit falls back, stops early, writes checkpoints and resumes from them."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fit_cases import F64, data, make, mse, same
from harness import DEVICE
from kan_kernels import KAN
from kan_kernels.grids import refine
from kan_kernels.training import fit


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


def unlike(rows: int = 30) -> dict[str, tuple[Tensor, Tensor]]:
    """Noise to train on, and other noise to test on: the test loss soon rises."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=F64, device=DEVICE, generator=generator)  # noqa: E731
    return {name: (draw(rows, 2).tanh(), draw(rows, 1)) for name in ("train", "test")}


def test_a_break_does_not_move_early_stopping(tmp_path: Path) -> None:
    """The end of a part is looked at, and does not count in the next."""
    options: dict[str, Any] = {"optimizer": "adam", "lr": 0.05, "patience": 3}
    whole, parts, file = make([2, 3, 1]), make([2, 3, 1]), tmp_path / "parts.pt"
    wanted = fit(whole, unlike(), steps=200, **options)
    assert wanted.stopped == "early_stop"
    for steps in (15, 25, 200):
        history = fit(parts, unlike(), steps=steps, checkpoint=file, resume=True, **options)
    assert history.events[-1] == wanted.events[-1] and same(whole, parts)


def test_a_finished_training_run_again(tmp_path: Path) -> None:
    """Nothing is left to do, and the best state is still the best: the end of a part counts there."""
    x, y = data()
    options: dict[str, Any] = {
        "steps": 25,
        "optimizer": "adam",
        "patience": 5,
        "checkpoint": tmp_path / "a.pt",
    }
    net = make()
    fit(net, (x, y), **options, resume=True)
    again = make()
    history = fit(again, (x, y), **options, resume=True)
    assert same(net, again) and len(history.train_loss) == 26


def test_patience_that_begins_after_a_break(tmp_path: Path) -> None:
    """It counts from there: what came before was not kept."""
    net, file = make([2, 3, 1]), tmp_path / "fit.pt"
    options: dict[str, Any] = {"optimizer": "adam", "lr": 0.05, "checkpoint": file}
    first = fit(net, unlike(), steps=150, **options)
    assert first.test_loss[-1] > min(first.test_loss)
    history = fit(net, unlike(), steps=400, resume=True, patience=3, **options)
    assert history.stopped == "early_stop" and history.events[-1]["step"] >= 180
    assert history.events[-1]["restored"] > 150
    x, y = unlike()["test"]
    assert float(mse(net(x).detach(), y)) == pytest.approx(history.test_loss[-1], rel=1e-9)


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
    assert {"step": 9, "kind": "resumed", "file": str(path)} in two.events
    content = torch.load(path, weights_only=True)
    assert content["snapshot"]["step"] == 14 and not (tmp_path / "run.pt.partial").exists()


@pytest.mark.parametrize("as_text", (False, True))
def test_resume_from_a_named_file(as_text: bool, tmp_path: Path) -> None:
    """`resume` names the file, `checkpoint` another or none: the training goes on from the first, bit for
    bit, writes the second only, and the history says what it went on from.
    """
    x, y = data()
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    fit(make(), (x, y), steps=3, checkpoint=old)
    content, whole = old.read_bytes(), make()
    one = fit(whole, (x, y), steps=6)
    for checkpoint in (new, None):
        net = make(seed=7)
        source = str(old) if as_text else old
        two = fit(net, (x, y), steps=6, resume=source, checkpoint=checkpoint)
        assert same(net, whole) and two.train_loss == one.train_loss
        assert two.events == [{"step": 3, "kind": "resumed", "file": str(old)}]
        assert old.read_bytes() == content
    assert torch.load(new, weights_only=True)["snapshot"]["step"] == 6


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    """A named file must be there; True starts anew where there is none yet, and says so."""
    x, y = data()
    path, net = tmp_path / "run.pt", make()
    before = copy.deepcopy(net)
    for source in (path, tmp_path):
        with pytest.raises(ValueError, match="resume: there is no file"):
            fit(net, (x, y), steps=2, resume=source, checkpoint=tmp_path / "new.pt")
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"resume: .* is not a file that fit wrote"):
        fit(net, (x, y), steps=2, resume=path)
    path.unlink()
    assert same(net, before) and not list(tmp_path.iterdir())
    history = fit(net, (x, y), steps=2, resume=True, checkpoint=path)
    assert history.events == [{"step": 0, "kind": "not_resumed", "file": str(path)}]


def test_resume_of_a_longer_training(tmp_path: Path) -> None:
    """A checkpoint that is past `steps` is no training of so many steps."""
    x, y = data()
    path, net = tmp_path / "run.pt", make(seed=3)
    fit(make(), (x, y), steps=4, checkpoint=path)
    before = copy.deepcopy(net)
    with pytest.raises(ValueError, match=r"steps: got 3, but '.*run.pt' is at step 4"):
        fit(net, (x, y), steps=3, checkpoint=path, resume=True)
    assert same(net, before)
    assert len(fit(net, (x, y), steps=4, checkpoint=path, resume=True).train_loss) == 5


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
    message = "history_size: got 20, but the checkpoint's training had 10"
    with pytest.raises(ValueError, match=message):
        fit(make(), (x, y), history_size=20, checkpoint=path, resume=True)
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
    fit(plain, (x, y), steps=1, loss=mse)  # without autograd the loss is rounded another way
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


def test_interrupt_in_the_middle_of_a_grid_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when one layer is refined and the next is not yet: the model is whole again afterwards."""
    import kan_kernels.grids as grids

    def halfway(model: KAN, size: int, x: Tensor, *, group: Any) -> None:
        refine(model.layers[0], size)
        raise KeyboardInterrupt

    monkeypatch.setattr(grids, "refine", halfway)
    x, y = data()
    net, plain = make(), make()
    history = fit(net, (x, y), steps=5, refine_at={3: 10})
    assert history.stopped == "interrupted" and history.events[-1]["restored"] == 2
    fit(plain, (x, y), steps=2)
    assert same(net, plain) and [layer.grid_size for layer in net.layers] == [5, 5]
