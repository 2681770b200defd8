"""An accelerated pykan model computes what pykan does: outputs, gradients, statistics, regularisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kan_kernels.integrations import accelerate, explain
from pykan_cases import (
    METRICS,
    OPTIONS,
    data,
    give_functions,
    kan,
    room,  # noqa: F401
    same,
    same_parameters,
    same_statistics,
    twins,
)


def loss_of(model: Any, x: Tensor, metric: str | None, lambs: tuple[float, ...]) -> Tensor:
    y = model(x)
    loss = (y.square() * torch.linspace(1, 2, y.shape[1])).mean()
    if metric is None:
        return loss
    if metric == "edge_backward":
        model.attribute()
    if metric == "node_backward":
        model.node_attribute()
    return loss + 0.1 * model.get_reg(metric, *lambs)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("metric", [None, *METRICS])
def test_outputs_and_gradients(name: str, metric: str | None) -> None:
    """Of the loss with every regularisation, with respect to x and all parameters."""
    if name == "uneven" and metric == "node_backward":
        pytest.skip("pykan's node_attribute fails with products of different arity and several nodes")
    want, got = twins(**OPTIONS[name])
    for lambs in ((1.0, 2.0, 0.0, 0.0), (0.5, 0.3, 0.2, 0.7)):
        xs = [data(want).requires_grad_() for _ in range(2)]
        losses = [loss_of(m, x, metric, lambs) for m, x in zip((got, want), xs, strict=True)]
        same(losses[0], losses[1], "loss")
        for model, loss in zip((got, want), losses, strict=True):
            model.zero_grad()
            loss.backward()
        same(xs[0].grad, xs[1].grad, "dx")
        same_parameters(got, want, gradients=True)


@pytest.mark.parametrize("name", OPTIONS)
def test_statistics(name: str) -> None:
    """Every list that pykan keeps of a forward pass, with whether it carries gradients."""
    want, got = twins(**OPTIONS[name])
    x = data(want)
    want(x), got(x)
    same_statistics(got, want)
    with torch.no_grad():
        want(x), got(x)
    same_statistics(got, want)
    want.save_act = got.save_act = False
    want(x), got(x)
    same_statistics(got, want)


@pytest.mark.parametrize("avoid", [False, True])
def test_symbolic_edges(avoid: bool) -> None:
    """Outputs, statistics and gradients with symbolic edges beside splines."""
    want, got = twins(affine_trainable=True)
    give_functions(want, got)
    if avoid:  # pykan takes item 1 of what a function of one's own returns
        for model in (want, got):
            model.symbolic_fun[0].funs_avoid_singularity[1][1] = lambda x, y_th: ((), torch.tanh(x))
            model.fix_symbolic(0, 0, 3, "1/x", fit_params_bool=False, log_history=False)
    xs = [data(want).requires_grad_() for _ in range(2)]
    for model, x in zip((want, got), xs, strict=True):
        y = model(x, singularity_avoiding=avoid, y_th=3.0)
        (y.square().mean() + model.get_reg("edge_forward_spline_u", 1.0, 2.0, 0.1, 0.0)).backward()
    same(xs[1].grad, xs[0].grad, "dx")
    same_parameters(got, want, gradients=True)
    same_statistics(got, want)


def test_second_order() -> None:
    """Gradients of a loss made of second derivatives, and of one made of a gradient of the regularisation."""
    want, got = twins()
    results = []
    for model in (want, got):
        x = data(model).requires_grad_()
        (dx,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        (ddx,) = torch.autograd.grad(dx[:, 0].sum(), x, create_graph=True)
        penalty = model.get_reg("edge_forward_spline_n", 1.0, 2.0, 0.1, 0.1)
        weights = [p for layer in model.act_fun for p in (layer.coef, layer.scale_base, layer.scale_sp)]
        slopes = torch.autograd.grad(penalty, weights, create_graph=True)
        loss = dx.square().mean() + ddx.square().mean() + sum(slope.square().sum() for slope in slopes)
        loss.backward()
        results.append((loss, x.grad))
    same(results[1][0], results[0][0], "loss", 1e-9)
    same(results[1][1], results[0][1], "dx", 1e-9)
    for model in (want, got):  # of masked symbolic edges: zeros from pykan, here none
        for layer in model.symbolic_fun:
            assert layer.affine.grad is None or not layer.affine.grad.any()
            layer.affine.grad = None
    same_parameters(got, want, 1e-8, gradients=True)  # third derivatives of the splines reach 1e3


def test_float32() -> None:
    """Where pykan is usually run: outputs and statistics to float32's rounding."""
    torch.set_default_dtype(torch.float32)
    want, got = twins()
    x = data(want)
    same(got(x), want(x), "y", 1e-5)
    same_statistics(got, want, 1e-5)
    for model in (want, got):
        (model(x).square().mean() + model.get_reg("edge_forward_spline_n", 1.0, 2.0, 0.0, 0.0)).backward()
    same_parameters(got, want, 1e-4, gradients=True)


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_few_rows(batch: int) -> None:
    """Deviations of one row are NaN, as pykan's."""
    want, got = twins()
    x = data(want, batch)
    same(got(x), want(x), "y")
    for name in ("edge_actscale", "acts_scale_spline", "subnode_actscale"):
        for one, other in zip(getattr(got, name), getattr(want, name), strict=True):
            same(one, other, name)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(value: float, symbolic: bool) -> None:
    """NaN and infinity come out where pykan has them, also through masked edges."""
    want, got = twins(symbolic_enabled=symbolic)
    for model in (want, got):
        model.act_fun[0].mask.data[0, 2] = 0.0
    x = data(want)
    x[3, 0] = value
    with torch.no_grad():
        same(got(x), want(x), "y")


def test_masked_singularity() -> None:
    """An edge that was given log and lost it again still multiplies its NaN by zero, as in pykan."""
    want, got = twins()
    x = data(want)
    same(got(x), want(x), "y")
    for model in (want, got):
        model.fix_symbolic(0, 1, 2, "log", fit_params_bool=False, log_history=False)
        model.unfix_symbolic(0, 1, 2, log_history=False)
    y = want(x)
    assert y.isnan().any() and y.isfinite().any()
    same(got(x), y, "y")


def test_on_knots_and_degenerate_grids() -> None:
    """Half-open cells; knots that all coincide; some that do, where pykan's own code has to run."""
    want, got = twins()
    x = want.act_fun[0].grid.detach().T.contiguous()
    assert explain(got).count("runs the kernels") == 3
    same(got(x), want(x), "y")
    for feature, knots, kernels in ((1, slice(None), 3), (0, slice(4, 6), 1)):
        for model in (want, got):
            model.act_fun[0].grid.data[feature, knots] = 0.25
        assert explain(got).count("runs the kernels") == kernels
        x[:, feature] = torch.linspace(-1, 1, len(x))
        same(got(x), want(x), "y")
        same_statistics(got, want)


@pytest.mark.parametrize("base", ["silu", "identity"])
def test_single_layer(base: str) -> None:
    """A KANLayer inside another module: its four results, and gradients through each."""
    fun = torch.nn.SiLU() if base == "silu" else torch.nn.Identity()
    layers = []
    for _ in range(2):
        torch.manual_seed(0)
        layers.append(kan.KANLayer(in_dim=3, out_dim=4, num=5, k=3, base_fun=fun))
    want, got = layers
    assert len(accelerate(torch.nn.Sequential(got)).taken) == 1
    outs = []
    for layer in (got, want):
        torch.manual_seed(1)
        x = torch.randn(20, 3, requires_grad=True)
        y, preacts, postacts, postspline = layer(x)
        assert postacts.shape == (20, 4, 3) and isinstance(postacts, Tensor)
        total = y.sum() + (postacts * postspline).square().sum() + torch.std(postacts, dim=0).sum()
        (total + torch.stack([preacts, postacts]).sum()).backward()
        outs.append((y, preacts, postacts.detach(), postspline.clone(), x.grad))
    for one, other in zip(*outs, strict=True):
        same(one, other, "layer")
    same_parameters(got, want, gradients=True)


def test_statistics_are_those_of_the_pass() -> None:
    """What is written into parameters, knots, masks or the output after a pass does not change them."""
    want, got = twins()
    give_functions(want, got)
    x = data(want)
    want(x)
    y = got(x)
    with torch.no_grad():
        y.zero_()
        x.zero_()
        for p in got.parameters():
            p.add_(1.0)
    for layer in (*got.act_fun, *got.symbolic_fun):
        layer.mask.data[:] = 0.0
    for layer in got.act_fun:
        layer.grid.data[:, 2:] += 0.5
        layer.coef.data *= 2.0
    want.acts[-1] = got.acts[-1]  # both are views of the output, which was written into
    same_statistics(got, want)


def test_statistics_that_a_hook_reads_during_the_pass() -> None:
    """They are those of the layers so far, and of all layers afterwards."""
    want, got = twins(width=[2, 3, 2, 1])
    seen: list[list[int]] = [[], []]
    for model, lengths in zip((want, got), seen, strict=True):

        def look(*_: Any, model: Any = model, lengths: list[int] = lengths) -> None:
            lengths.append(len(model.acts_scale_spline))

        model.act_fun[1].register_forward_pre_hook(look)
        model(data(model))
    assert seen[0] == seen[1] == [1]
    same_statistics(got, want)
    metric = ("edge_forward_spline_n", 1.0, 2.0, 0.0, 0.0)
    same(got.get_reg(*metric), want.get_reg(*metric), "regularisation")


@pytest.mark.parametrize("spread", (1e-3, 1e-5, 1e-7, 1e-9))
def test_statistics_of_inputs_that_hardly_vary(spread: float) -> None:
    """Deviations, and their gradients, of inputs that are nearly constant beside one that is not."""
    want, got = twins()
    noise = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = data(want)
    x[:, 0] = 0.3 + spread * noise
    for model in (want, got):
        y = model(x)
        # logarithms: relative errors count, of the smallest too
        (y.sum() + sum(a.log().sum() for a in model.edge_actscale)).backward()
    tolerance = max(1e-7, 1e-14 / spread)  # x - mean has no more digits
    for a, b in zip(got.edge_actscale, want.edge_actscale, strict=True):
        same(a.log(), b.log(), "logarithms of deviations", tolerance)
    same_statistics(got, want, tolerance)
    if spread >= 1e-7:  # of a logarithm's gradient rounding leaves less, on both sides
        same_parameters(got, want, max(1e-7, 3e-16 / spread**2), gradients=True)


def test_statistics_of_functions_far_from_zero() -> None:
    """A deviation is small beside the coefficients, whatever x does."""
    want, got = twins()
    x = data(want)
    x[:, 0] = 0.3 + 3e-4 * x[:, 0]
    for model in (want, got):
        with torch.no_grad():
            model.act_fun[0].coef += 100
        model(x)
    for a, b in zip(got.edge_actscale, want.edge_actscale, strict=True):
        same(a.log(), b.log(), "logarithms of deviations", 1e-6)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                self.numel = max(self.numel, t.untyped_storage().nbytes() // t.element_size())
        return out


def test_no_large_tensors() -> None:
    """A regularised training step makes nothing of size batch x in x out, nor batch x in x bases."""
    batch, width = 200, 16
    _, got = twins(width=[width, width, width], grid=8)
    x = data(got, batch)
    with Largest() as largest:
        loss = got(x).square().mean() + got.get_reg("edge_forward_spline_n", 1.0, 2.0, 0.1, 0.1)
        loss.backward()
    assert largest.numel <= max(batch * width, width * width * (8 + 3 + 1))
    with Largest() as largest:
        assert got.spline_postacts[0].shape == (batch, width, width)
    assert largest.numel >= batch * width * width  # it does see them


def test_no_large_tensors_in_a_layer() -> None:
    """A KANLayer by itself makes them only for whoever reads them."""
    layer = kan.KANLayer(in_dim=16, out_dim=16, num=8)
    accelerate(layer)
    with Largest() as largest:
        y, _, postacts, postspline = layer(torch.randn(200, 16))
        y.sum().backward()
        assert postacts.shape == postspline.shape == (200, 16, 16) and postacts.dtype == y.dtype
        assert largest.numel <= max(200 * 16, 16 * 16 * 12)
        torch.add(postacts, 1)
    assert largest.numel >= 200 * 16 * 16
