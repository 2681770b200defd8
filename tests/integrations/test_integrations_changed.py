"""What is changed in a layer or its code, before it is taken and after: its own numbers, or an error."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize

from fork_cases import BY_ORDER, COPY, HELPED, IN, OUT, SOURCE, efficient, module_of
from kan_kernels.integrations import accelerate, convert, explain
from kan_kernels.integrations._shared import judge
from kan_kernels.integrations.efficient_kan import KANLinear
from peer_bases import pair
from pykan_cases import kan

F64 = torch.float64


@pytest.fixture
def forks(tmp_path: Path) -> Any:
    made: Any = module_of(tmp_path)
    made.Helped = efficient(tmp_path, "helped", *HELPED)
    made.ByOrder = efficient(tmp_path, "by_order", *BY_ORDER)
    return made


def same(own: nn.Module, fast: nn.Module, seed: int | None = None) -> None:
    """Outputs and the gradients of x and of all parameters, from the same random numbers."""
    found = []
    for layer in (own, fast):
        x = torch.linspace(-0.9, 0.95, 6 * IN, dtype=F64).view(6, IN).requires_grad_()
        if seed is not None:
            torch.manual_seed(seed)
        y = layer(x)
        parameters = [p for p in layer.parameters() if p.requires_grad]
        found.append([y, *torch.autograd.grad(y.sin().sum(), [x, *parameters], allow_unused=True)])
    for got, want in zip(found[1], found[0], strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def wider(layer: Any) -> None:
    """A ChebyKAN layer of a degree more."""
    layer.degree = 4
    coefficients = torch.linspace(-1, 1, IN * OUT * 5, dtype=F64).view(IN, OUT, 5)
    layer.cheby_coeffs = nn.Parameter(coefficients)
    layer.arange = torch.arange(5)


CHANGES: dict[str, tuple[Callable[[Any], nn.Module], Callable[[Any], None]]] = {
    "no base any more": (
        lambda forks: forks.AlwaysBase(IN, OUT),
        lambda layer: setattr(layer, "use_base_update", False),
    ),
    "a norm that is for both branches": (
        lambda forks: forks.BothNormed(IN, OUT, use_layernorm=False),
        lambda layer: setattr(layer, "layernorm", nn.LayerNorm(IN).double()),
    ),
    "a norm that its code ignores": (
        lambda forks: forks.NeverNormed(IN, OUT, use_layernorm=False),
        lambda layer: setattr(layer, "layernorm", nn.LayerNorm(IN).double()),
    ),
    "a bias that its code adds anyway": (
        lambda forks: forks.AlwaysBiased(IN, OUT, 4),
        lambda layer: setattr(layer, "addbias", False),
    ),
    "another degree": (lambda forks: forks.ByDegree(IN, OUT, 3), wider),
    "a helper": (
        lambda forks: forks.Helped(IN, OUT),
        lambda layer: setattr(layer, "basis", lambda x: 2 * type(layer).b_splines(layer, x)),
    ),
    "a helper, past setattr": (
        lambda forks: forks.Helped(IN, OUT),
        lambda layer: layer.__dict__.update(basis=lambda x: 2 * type(layer).b_splines(layer, x)),
    ),
    "a method of a child": (
        lambda forks: forks.AlwaysBase(IN, OUT),
        lambda layer: layer.rbf.__dict__.update(forward=lambda x: 2 * type(layer.rbf).forward(layer.rbf, x)),
    ),
    "degrees, past torch's count": (
        lambda forks: forks.basis_forms.ChebyKANLayer(IN, OUT, 3),
        lambda layer: layer.arange.data.add_(1),
    ),
    "a linear layer with a call of its own": (
        lambda forks: forks.basis_forms.FastKANLayer(IN, OUT),
        lambda layer: setattr(layer.spline_linear, "__class__", sys.modules["forks"].Called),
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changes_of_a_taken_layer(case: str, forks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attribute, a child or a method that its code reads: the accelerated layer follows."""
    monkeypatch.setitem(sys.modules, "forks", forks)
    make, change = CHANGES[case]
    own, fast = pair(make(forks))
    same(own, fast)
    for layer in (own, fast):
        change(layer)
    same(own, fast)


def test_knots_that_move_between_forward_and_backward(forks: Any) -> None:
    """The gradient is that of the forward pass, however the knots were written."""
    moves: tuple[Callable[[Any], object], ...] = (
        lambda grid: grid.data.mul_(1.3),
        lambda grid: grid.mul_(1.3),
        lambda grid: grid.copy_(grid * 1.1),
    )
    for move in moves:
        found = []
        for layer in pair(forks.efficient_kan_form.KANLinear(IN, OUT)):
            x = torch.linspace(-0.9, 0.9, 4 * IN, dtype=F64).view(4, IN).requires_grad_()
            y = layer(x)
            move(layer.grid)
            (g,) = torch.autograd.grad(y.sum(), x)
            found.append((g, layer(x).detach()))
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


class Drop(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return nn.functional.dropout(weight, 0.5, self.training)


def parametrized(part: nn.Module, name: str, how: str) -> None:
    """Parametrize a tensor by torch's weight norm or spectral norm, or by one that draws numbers."""
    torch.manual_seed(1)
    if how == "drop":
        parametrize.register_parametrization(part, name, Drop())
    else:
        getattr(parametrizations, how)(part, name)


@pytest.mark.parametrize("how", ["weight_norm", "drop", "spectral_norm"])
@pytest.mark.parametrize("kind", ["efficient-kan", "FastKAN", "ChebyKAN", "FourierKAN"])
def test_parametrized_afterwards(kind: str, how: str, forks: Any) -> None:
    """One that draws takes the same numbers as for the peer's code; one that counts has the same state."""
    forms = forks.basis_forms
    layer, name = {
        "efficient-kan": (forks.efficient_kan_form.KANLinear(IN, OUT), "base_weight"),
        "FastKAN": (forms.FastKANLayer(IN, OUT), "spline_linear.weight"),
        "ChebyKAN": (forms.ChebyKANLayer(IN, OUT, 3), "cheby_coeffs"),
        "FourierKAN": (forms.NaiveFourierKANLayer(IN, OUT, 4), "fouriercoeffs"),
    }[kind]
    own, fast = pair(layer)
    for each in (own, fast):
        parametrized(each.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], how)
    for seed in (3, 4):
        same(own, fast, seed)
    for (place, got), want in zip(fast.named_buffers(), own.buffers(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=place)
    assert ("runs the kernels" in explain(fast)) == (how == "weight_norm")
    assert how == "weight_norm" or "is parametrized by" in explain(fast)
    x = torch.linspace(-1, 1, IN, dtype=F64)[None]
    torch._dynamo.reset()
    compiled = torch.compile(fast, backend="eager")
    for call in (own, compiled):
        torch.manual_seed(5)
        y = call(x)
        if call is own:
            want_y = y
    torch.testing.assert_close(y, want_y)
    if how == "weight_norm":
        torch.testing.assert_close(torch.jit.trace(fast, x)(2 * x), own(2 * x))


def test_code_that_a_reloader_wrote_into_the_function(tmp_path: Path) -> None:
    """The same function object with other code, and a source that agrees: read anew."""
    made = efficient(tmp_path, "reloaded", *HELPED)
    pair(made(IN, OUT))
    doubled = (HELPED[0][0], "2 * self.basis(rows).flatten(1)")
    made.forward.__code__ = efficient(tmp_path, "reloaded", doubled, HELPED[1]).forward.__code__
    report = accelerate(made(IN, OUT))
    assert not report.taken and "something else than efficient-kan's" in report.left[0].why


def test_defaults_and_calls_that_the_source_has_not(tmp_path: Path) -> None:
    """Put on a class after it was imported: the source is not all that runs."""
    for n, (change, why) in enumerate(
        (
            (lambda cls: setattr(cls.forward, "__defaults__", (False,)), "other defaults than its source"),
            (lambda cls: setattr(cls.forward, "__defaults__", None), "other defaults than its source"),
            (
                lambda cls: setattr(cls, "__call__", lambda self, x: 2 * self.forward(x)),
                "__call__ of its own",
            ),
        )
    ):
        made: Any = module_of(tmp_path, SOURCE + COPY, f"copy{n}")
        taken = made.Copy(IN, OUT)
        assert accelerate(taken).taken
        change(made.Copy)
        copy.deepcopy(taken)
        report = accelerate(made.Copy(IN, OUT))
        assert not report.taken and why in report.left[0].why, str(report)


def test_pykans_code_with_what_its_source_has_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A decorator, a default, a call of a subclass: not to the letter, although the source is."""
    monkeypatch.chdir(tmp_path)
    layer, model = kan.KANLayer, kan.KAN

    def taken() -> list[str]:
        made = kan.KAN(width=[2, 3, 1], auto_save=False)
        return [entry.class_name for entry in accelerate(made).taken]

    assert taken() == ["MultKAN", "KANLayer", "KANLayer"]
    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", torch.no_grad()(layer.forward))
        assert "KANLayer" not in taken()
    with monkeypatch.context() as patch:
        splines = sys.modules["kan.KANLayer"]
        patch.setattr(splines, "coef2curve", torch.no_grad()(splines.coef2curve))
        assert "KANLayer" not in taken()
    with monkeypatch.context() as patch:
        patch.setattr(model.forward, "__defaults__", (True, 0.5))
        assert "MultKAN" not in taken()
    with monkeypatch.context() as patch:
        patch.setattr(layer, "__call__", lambda self, x: self.forward(x), raising=False)
        assert "KANLayer" not in taken()
    assert taken() == ["MultKAN", "KANLayer", "KANLayer"]


def test_a_probe_leaves_generators_and_hooks_alone(monkeypatch: pytest.MonkeyPatch, forks: Any) -> None:
    """A probe seeds no GPU's generator, and runs no hook of the user's."""
    seeded: list[int] = []
    for device in (torch.cuda, torch.mps, torch.xpu):
        for name in ("manual_seed", "manual_seed_all"):
            if hasattr(device, name):
                monkeypatch.setattr(device, name, seeded.append)
    ran: list[int] = []
    activation = nn.SiLU()
    activation.register_forward_hook(lambda *_: ran.append(1))
    judge._readings.clear()
    for layer in (
        forks.AlwaysBase(IN, OUT, base_activation=activation),
        forks.Helped(IN, OUT, base_activation=lambda: activation),
    ):
        accelerate(layer)
    assert not seeded and not ran


def test_an_activation_that_counts(tmp_path: Path) -> None:
    """Code that calls it twice moves its averages twice, which the kernels would not: left alone."""
    activation = nn.BatchNorm1d(IN)
    twice = (
        "self.base_activation(rows) @",
        "((self.base_activation(rows) + self.base_activation(rows)) / 2) @",
    )
    for name, edits in (("once", ()), ("twice", (twice,))):
        report = accelerate(efficient(tmp_path, name, *edits)(IN, OUT, base_activation=lambda: activation))
        assert bool(report.taken) == (name == "once")
    assert "leaves other buffers" in report.left[0].why


def test_an_activation_that_observes(tmp_path: Path) -> None:
    """Buffers of any kind, bounds that start as infinite too."""

    class Observed(nn.SiLU):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("low", torch.tensor([torch.inf, torch.nan]))
            self.register_buffer("seen", torch.tensor([True, False]))
            self.register_buffer("none", torch.empty(0))

    make = efficient(tmp_path, "observed")
    assert accelerate(make(IN, OUT, base_activation=Observed)).taken


def test_a_forward_that_was_replaced_for_a_while(forks: Any) -> None:
    """As mocks and profilers do: the kernels run again when it is gone."""
    own, fast = pair(forks.basis_forms.FastKANLayer(IN, OUT))
    for layer in (own, fast):
        layer.rbf.forward = lambda x, of=layer.rbf: 2 * type(of).forward(of, x)
    same(own, fast)
    assert "forward was replaced on this instance" in explain(fast)
    for layer in (own, fast):
        del layer.rbf.forward
    same(own, fast)
    assert "runs the kernels" in explain(fast)


def test_knots_with_a_gradient(forks: Any) -> None:
    """The peer has one, the drop-in says that it has not."""
    own, fast = pair(forks.efficient_kan_form.KANLinear(IN, OUT))
    for layer in (own, fast):
        layer.grid.requires_grad_()
    same(own, fast)
    drop_in = KANLinear(IN, OUT)
    drop_in.grid.requires_grad_()
    with pytest.raises(ValueError, match="grid: requires grad"):
        drop_in(torch.rand(2, IN))


def test_degrees_under_a_mode(forks: Any) -> None:
    """Nothing is kept of a call with fake tensors."""
    own, fast = pair(forks.basis_forms.ChebyKANLayer(IN, OUT, 3))
    same(own, fast)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert fast(torch.rand(2, IN, dtype=F64)).shape == (2, OUT)
    same(own, fast)


def test_degrees_that_are_trained(forks: Any) -> None:
    """They have a gradient, which the kernels do not compute: the layer's own code."""
    own, fast = pair(forks.basis_forms.ChebyKANLayer(IN, OUT, 3))
    found = []
    for layer in (own, fast):
        del layer.arange
        layer.arange = torch.arange(4, dtype=F64).requires_grad_()
        y = layer(torch.linspace(-1, 1, IN, dtype=F64)[None])
        found.append(torch.autograd.grad(y.sum(), layer.arange)[0])
    torch.testing.assert_close(*found)


def test_converting_judges_anew(forks: Any) -> None:
    """A taken layer whose order was changed, for which its code does something else."""
    _, fast = pair(forks.ByOrder(IN, OUT, 5, 3))
    fast.spline_order = 2
    fast.grid = fast.grid[:, 1:-1].contiguous()
    fast.spline_weight = nn.Parameter(fast.spline_weight[..., :7].contiguous())
    fast.grid_size = 5
    with pytest.raises(ValueError, match="something else than efficient-kan's"):
        convert.from_efficient_kan(fast)


@pytest.mark.parametrize("line", ["x = torch.nan_to_num(x)", "x = x * (len(x) < 1000)"])
def test_networks_that_are_more_than_their_stack(line: str, tmp_path: Path) -> None:
    """Code of a network that looks at NaN, or at how many rows there are."""
    text = f"""
class Network(efficient_kan_form.KAN):
    def forward(self, x):
        {line}
        return super().forward(x)
"""
    made = module_of(tmp_path, SOURCE + text)
    with pytest.raises(ValueError, match="something else than its layers"):
        convert.from_efficient_kan(made.Network([2, 3, 1]))
