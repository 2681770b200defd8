"""`fit` of the mean squared error of a KAN: loss and gradient without autograd, and the same steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from harness import DEVICE
from kan_kernels import KAN
from kan_kernels.backends import native
from kan_kernels.regularization import regularization
from kan_kernels.training import direct, fit
from kan_kernels.training.lbfgs import Vector

F64 = torch.float64
pytestmark = pytest.mark.skipif(native.NAMESPACE is None, reason="the library is not built")


@pytest.fixture(autouse=True, params=("a call a step", "a call an evaluation", "composed"))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run on the ops of the CPU, and on what other devices compose of the ops of networks and of edges."""
    if request.param == "composed":
        monkeypatch.setattr(direct, "ONE_CALL", ())
    elif DEVICE not in direct.ONE_CALL:
        pytest.skip(f"there is no op of the whole for {DEVICE}")
    if request.param == "a call an evaluation":
        monkeypatch.setattr(direct.SquaredError, "iterate", None)
    return request.param


@pytest.mark.parametrize("optimizer", ("lbfgs", "adam"))
def test_training_without_autograd(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fit` of the mean squared error takes the same steps as through autograd, up to rounding."""
    x = torch.rand(50, 2, dtype=F64, device=DEVICE) * 2 - 1
    y = (x[:, :1] * 3).sin() + x[:, 1:] ** 2
    first = KAN([2, 3, 1], dtype=F64, bias=True, device=DEVICE)
    nets = [copy.deepcopy(first) for _ in range(2)]
    options = {"steps": 2, "optimizer": optimizer, "progress": False}
    backward = torch.Tensor.backward
    ran: list[int] = []
    monkeypatch.setattr(Tensor, "backward", lambda *a, **k: (ran.append(1), backward(*a, **k))[1])
    ours = fit(nets[0], (x, y), **options).train_loss
    assert not ran
    hook = nets[1].register_forward_hook(lambda *_: None)  # a case for autograd
    theirs = fit(nets[1], (x, y), **options).train_loss
    hook.remove()
    assert ran
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-6, atol=0)


@pytest.mark.parametrize("lamb", (0.0, 0.01))
def test_parameters_are_written_once_a_step(lamb: float, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """LBFGS evaluates at a vector: what goes wrong within a step leaves the parameters as they were."""
    x = torch.rand(50, 2, dtype=F64, device=DEVICE) * 2 - 1
    y = (x[:, :1] * 3).sin() + x[:, 1:] ** 2
    net = KAN([2, 3, 1], dtype=F64, bias=True, device=DEVICE)
    seen: list[list[Tensor]] = []
    values: list[float] = []
    last_one = 3 if way == "a call a step" else 30  # in the third step, or in the second

    class Watched(direct.SquaredError):
        def __init__(self, task: direct.Task) -> None:
            if len(seen) == last_one:
                raise KeyboardInterrupt
            super().__init__(task)
            seen.append([p.detach().clone() for p in net.parameters()])
            values.append(float(self.value))

    monkeypatch.setattr(direct, "SquaredError", Watched)
    history = fit(net, (x, y), steps=5, lamb=lamb, progress=False)
    versions = [n for n in range(1, last_one) if not torch.equal(seen[n][0], seen[n - 1][0])]
    assert history.stopped == "interrupted" and 0 < len(versions) <= 2
    assert min(values[: versions[0] + 1]) < 0.9 * values[0]
    assert all(p.grad is None for p in net.parameters())
    for parameter, last in zip(net.parameters(), seen[-1], strict=True):
        assert torch.equal(parameter, last)


def test_a_vector_of_other_parameters_is_a_case_for_autograd() -> None:
    """One parameter more or less than the layers have, or one that two layers share."""
    x = torch.rand(6, 2, dtype=F64, device=DEVICE)
    y = x[:, :1].clone()
    net = KAN([2, 3, 3, 1], dtype=F64, device=DEVICE)

    def errors(parameters: list[Tensor]) -> object:
        with torch.no_grad():
            flat = torch.cat([p.flatten() for p in parameters])
            return direct.squared_errors(net, x, y, None, Vector(flat, parameters))

    parameters = list(net.parameters())
    assert errors(parameters) is not None
    assert errors(parameters[:-1]) is None
    assert errors([*parameters, torch.nn.Parameter(torch.ones(1))]) is None
    assert errors([*parameters[:-1], torch.nn.Parameter(parameters[-1].detach())]) is None
    net = KAN([3, 3, 3], dtype=F64, device=DEVICE)
    net.layers[1].spline_weight = net.layers[0].spline_weight
    x, y = torch.rand(6, 3, dtype=F64, device=DEVICE), torch.rand(6, 3, dtype=F64, device=DEVICE)
    assert errors(list(net.parameters())) is None
    copied, hooked = copy.deepcopy(net), copy.deepcopy(net)
    assert copied.layers[1].spline_weight is copied.layers[0].spline_weight
    hooked.register_forward_hook(lambda *_: None)
    losses = [fit(model, (x, y), steps=3, progress=False).train_loss for model in (copied, hooked)]
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-6, atol=0)


def test_parameters_that_share_memory_are_a_case_for_autograd() -> None:
    """One number would be two of a vector; parts of one buffer that lie beside one another are none such."""
    x = torch.rand(30, 3, dtype=F64, device=DEVICE)
    net = KAN([3, 3, 3], dtype=F64, device=DEVICE)
    beside = copy.deepcopy(net)
    for name in ("spline_weight", "base_weight"):
        first, second = (getattr(layer, name) for layer in net.layers)
        second.data = first.data
        first, second = (getattr(layer, name) for layer in beside.layers)
        first.data, second.data = torch.stack([first.data, second.data]).unbind()
    losses = fit(net, (x, (3 * x).sin()), steps=3, progress=False).train_loss
    assert max(losses[1:]) < 0.6 * losses[0]
    assert torch.equal(net.layers[0].spline_weight, net.layers[1].spline_weight)
    parameters = list(beside.parameters())
    flat = torch.cat([p.detach().flatten() for p in parameters])
    assert direct.squared_errors(beside, x, x, None, Vector(flat, parameters)) is not None


def test_grids_of_another_dtype() -> None:
    """Layers that the op of all of them refuses are called one by one."""
    x = torch.rand(30, 2, dtype=F64, device=DEVICE)
    net = KAN([2, 3, 1], dtype=F64, device=DEVICE)
    net.layers[0].grid = net.layers[0].grid.float()
    history = fit(net, (x, x[:, :1].sin()), steps=2, progress=False)
    assert history.train_loss[-1] < history.train_loss[0]


def test_a_mask_that_is_trained_is_a_case_for_autograd() -> None:
    """Its gradient is no part of the op's."""
    x = torch.rand(30, 2, dtype=F64, device=DEVICE)
    net = KAN([2, 3, 1], dtype=F64, device=DEVICE)
    mask = torch.full((2, 3), 0.5, dtype=F64, device=DEVICE, requires_grad=True)
    net.layers[0].edge_mask = mask
    fit(
        net,
        (x, x[:, :1].sin()),
        steps=2,
        optimizer=lambda p: torch.optim.Adam([*p, mask], lr=0.1),
        progress=False,
    )
    assert (mask != 0.5).all()


def test_hooks_of_parameters_see_their_gradients() -> None:
    """Hooks on a parameter, and those that run after its gradient was added, are called by `fit`."""
    x = torch.rand(50, 2, device=DEVICE)
    for register in ("register_hook", "register_post_accumulate_grad_hook"):
        net, seen = KAN([2, 3, 1], device=DEVICE), []
        getattr(net.layers[0].spline_weight, register)(lambda _, seen=seen: seen.append(1) and None)
        fit(net, (x, x[:, :1]), steps=2, optimizer="adam", progress=False)
        assert len(seen) == 2


def test_what_changes_before_and_within_a_step() -> None:
    """A rate that freezes a layer does so in its step; an optimizer that changes more than numbers is asked
    anew at every evaluation.
    """
    x = torch.rand(50, 2, device=DEVICE)
    net = KAN([2, 3, 1], device=DEVICE)
    weight = net.layers[0].spline_weight

    def rate(step: int) -> float:
        if step == 2:
            net.layers[0].requires_grad_(False)
            kept.append(weight.detach().clone())
        return 0.01

    kept: list[Tensor] = []
    fit(net, (x, x[:, :1]), steps=3, optimizer="adam", lr=rate, progress=False)
    assert torch.equal(weight, kept[0])

    class Blocks(torch.optim.SGD):
        def step(self, closure):
            for layer in net.layers:
                net.requires_grad_(False)
                layer.requires_grad_()
                loss = closure()
                seen.append([p.grad is not None for p in (weight, net.layers[1].spline_weight)])
            return loss.item()

    seen: list[list[bool]] = []
    net.requires_grad_()
    fit(net, (x, x[:, :1]), steps=1, optimizer=lambda p: Blocks(p, lr=0.01), progress=False)
    assert seen == [[True, False], [False, True]]


def test_what_is_a_case_for_autograd() -> None:
    """Frozen weights, x that needs a gradient, another shape or dtype of y, a module around it."""
    x = torch.rand(6, 2, dtype=F64, device=DEVICE)
    y = x[:, :1].clone()
    net = KAN([2, 3, 1], dtype=F64, device=DEVICE)
    assert direct.squared_errors(net, x, y) is not None
    for model, inputs, target in (
        (torch.nn.Sequential(net), x, y),
        (net, x.clone().requires_grad_(), y),
        (net, x, y[:, 0]),
        (net, x, y.float()),
        (net, x.unsqueeze(0), y.unsqueeze(0)),
    ):
        assert direct.squared_errors(model, inputs, target) is None
    net.layers[0].base_weight.requires_grad_(False)  # type: ignore[union-attr]
    assert direct.squared_errors(net, x, y) is None


@pytest.mark.parametrize("optimizer", ("lbfgs", "adam"))
@pytest.mark.parametrize("lamb", (0.0, 0.01))
def test_masked_edges(lamb: float, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KAN after pruning trains without autograd too, in the same steps; what is off keeps its weights."""
    x = torch.rand(50, 2, dtype=F64, device=DEVICE) * 2 - 1
    y = (x[:, :1] * 3).sin() + x[:, 1:] ** 2
    first = KAN([2, 3, 3, 1], dtype=F64, bias=True, device=DEVICE)
    mask = torch.ones(2, 3, dtype=F64, device=DEVICE)
    mask[0, 1] = mask[1, 0] = 0.0
    first.layers[0].set_edge_mask(mask)
    first.layers[2].set_edge_mask(torch.tensor([[1.0], [0.0], [1.0]], dtype=F64, device=DEVICE))
    nets = [copy.deepcopy(first) for _ in range(2)]
    options = {"steps": 2, "optimizer": optimizer, "lamb": lamb, "progress": False}
    ran: list[int] = []
    backward = torch.Tensor.backward
    monkeypatch.setattr(Tensor, "backward", lambda *a, **k: (ran.append(1), backward(*a, **k))[1])
    ours = fit(nets[0], (x, y), **options)
    assert not ran
    hook = nets[1].register_forward_hook(lambda *_: None)  # a case for autograd
    theirs = fit(nets[1], (x, y), **options)
    hook.remove()
    assert ran
    for kind in ("train_loss", "regularization"):
        mine, its = (torch.tensor(getattr(history, kind)) for history in (ours, theirs))
        torch.testing.assert_close(mine, its, rtol=1e-6, atol=0)
    for mine, its, start in zip(*(net.parameters() for net in (*nets, first)), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)
        if mine.dim() > 1 and mine.shape[0] == 2:
            assert torch.equal(mine[0, ..., 1], start[0, ..., 1]) and not torch.equal(mine, start)


def test_a_layer_that_is_there_twice_has_one_penalty() -> None:
    """The penalty of all rows that it gets is a case for autograd; without one its gradients add up."""
    x = torch.rand(30, 3, dtype=F64, device=DEVICE)
    y = x.sin()
    net = KAN([3, 3, 3], dtype=F64, device=DEVICE)
    net.layers[1] = net.layers[0]
    assert direct.squared_errors(net, x, y, direct.Weights(0.1, 1.0, 2.0)) is None
    errors = direct.squared_errors(net, x, y)
    assert errors is not None
    errors().backward(1.0)
    found = [p.grad for p in net.parameters()]
    loss = torch.nn.functional.mse_loss(net(x), y)
    torch.testing.assert_close(found, list(torch.autograd.grad(loss, list(net.parameters()))))


@pytest.mark.parametrize("lamb", (0.0, 0.01))
def test_gradients_lie_like_their_parameters(lamb: float) -> None:
    """As with autograd: fused optimizers walk through the memory of both, whatever the strides."""
    x = torch.rand(50, 2, dtype=F64, device=DEVICE) * 2 - 1
    y = x.prod(1, keepdim=True)
    rows, columns = KAN([2, 3, 1], dtype=F64, device=DEVICE), KAN([2, 3, 1], dtype=F64, device=DEVICE)
    state = {name: t.T.contiguous().T if t.dim() == 2 else t for name, t in rows.state_dict().items()}
    for name, t in state.items():
        if t.dim() == 3:  # as efficient-kan stores it
            state[name] = t.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    columns.load_state_dict(state, assign=True)
    assert not any(p.is_contiguous() for p in columns.layers[0].parameters())
    first = rows.state_dict(), state
    for optimizer in ("adam", "adamw", lambda p: torch.optim.SGD(p, lr=0.05, fused=True)):
        for net, begin in zip((rows, columns), first, strict=True):
            net.load_state_dict({name: t.clone() for name, t in begin.items()}, assign=True)
        options = {"steps": 20, "optimizer": optimizer, "lamb": lamb, "progress": False}
        got, want = (fit(net, (x, y), **options).train_loss for net in (columns, rows))
        torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=1e-12, atol=0)


def test_gradients_add_up() -> None:
    """As with autograd, a second backward pass adds to `grad`; the value is that of mse_loss."""
    x = torch.rand(6, 2, dtype=F64, device=DEVICE)
    y = x[:, :1].sin()
    net = KAN([2, 3, 1], dtype=F64, bias=True, device=DEVICE)
    loss = torch.nn.functional.mse_loss(net(x), y)
    expected = torch.autograd.grad(loss, list(net.parameters()))
    errors = direct.squared_errors(net, x, y)
    assert errors is not None
    error = errors()
    torch.testing.assert_close(error.value, loss, rtol=1e-14, atol=0)
    error.backward(1.0)
    error.backward(2.5)
    for p, g in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, 3.5 * g, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("base", ("silu", None))
def test_penalty(bias: bool, base: str | None) -> None:
    """Of kind "l1" it is the regularisation, and its gradient that of autograd, also of edges of size 0."""
    x = torch.rand(40, 2, dtype=F64, device=DEVICE) * 2 - 1
    y = x[:, :1].sin()
    net = KAN([2, 4, 3, 1], dtype=F64, bias=bias, base=base, device=DEVICE)
    with torch.no_grad():
        for parameter in net.layers[1].parameters():
            parameter[0] = 0.0
    options = {"lamb_l1": 0.7, "lamb_entropy": 1.5}
    weights = direct.weights_of(0.3, options)
    errors = direct.squared_errors(net, x, y, weights)
    assert weights is not None and errors is not None
    error = errors()
    assert error.penalty is not None
    penalty = regularization(net, x, **options)
    total = torch.nn.functional.mse_loss(net(x), y) + 0.3 * penalty
    torch.testing.assert_close(error.penalty, penalty, rtol=1e-12, atol=0)
    torch.testing.assert_close(error.total, total, rtol=1e-12, atol=0)
    expected = torch.autograd.grad(total, list(net.parameters()))
    error.backward(1.0)
    error.backward(0.5)
    for p, g in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, 1.5 * g, rtol=1e-9, atol=1e-13)


def test_training_with_a_penalty_without_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fit(lamb=...)` takes the same steps as through autograd, up to rounding."""
    x = torch.rand(50, 2, dtype=F64, device=DEVICE) * 2 - 1
    y = (x[:, :1] * 3).sin() + x[:, 1:] ** 2
    first = KAN([2, 3, 1], dtype=F64, device=DEVICE)
    nets = [copy.deepcopy(first) for _ in range(2)]
    options = {"steps": 2, "lamb": 0.01, "progress": False}
    backward = torch.Tensor.backward
    ran: list[int] = []
    monkeypatch.setattr(Tensor, "backward", lambda *a, **k: (ran.append(1), backward(*a, **k))[1])
    ours = fit(nets[0], (x, y), **options)
    assert not ran
    monkeypatch.setattr(direct, "weights_of", lambda *_: None)
    theirs = fit(nets[1], (x, y), **options)
    assert ran
    for kind in ("train_loss", "regularization"):
        mine, its = (torch.tensor(getattr(history, kind)) for history in (ours, theirs))
        torch.testing.assert_close(mine, its, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "options",
    ({"kind": "std"}, {"lamb_coef": 0.1}, {"lamb_l1": -1.0}, {"lamb_l1": torch.ones(())}, {"new": 1}),
)
def test_penalties_of_other_kinds_are_a_case_for_autograd(options: dict[str, object]) -> None:
    """What the two norms do not make up, and what `regularization` refuses."""
    assert direct.weights_of(0.1, options) is None
