"""The drop-in for efficient-kan: constructor, initialisation, state dict, methods, errors."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peer_efficient_kan as peer
from kan_kernels.integrations.efficient_kan import KAN, KANLinear

F64 = torch.float64


def test_constructor() -> None:
    """The peer's arguments, their order and defaults."""
    arguments = inspect.signature(KANLinear).parameters
    assert list(arguments) == [
        "in_features", "out_features", "grid_size", "spline_order", "scale_noise", "scale_base",
        "scale_spline", "enable_standalone_scale_spline", "base_activation", "grid_eps", "grid_range",
    ]  # fmt: skip
    defaults = [p.default for p in arguments.values()][2:]
    assert defaults == [5, 3, 0.1, 1.0, 1.0, True, nn.SiLU, 0.02, (-1, 1)]
    arguments = inspect.signature(KAN).parameters
    assert list(arguments) == [
        "layers_hidden", "grid_size", "spline_order", "scale_noise", "scale_base", "scale_spline",
        "base_activation", "grid_eps", "grid_range",
    ]  # fmt: skip
    model = KAN([4, 3, 2], 6, 2, base_activation=nn.Identity, grid_range=[-2, 3], grid_eps=0.5)
    first = model.layers[0]
    assert isinstance(first, KANLinear) and isinstance(first.base_activation, nn.Identity)
    assert (first.grid_eps, first.grid[0, 2], first.grid[0, 8]) == (0.5, -2, 3)


@pytest.mark.parametrize("scaler", [True, False])
def test_state_dict(scaler: bool) -> None:
    """Names, shapes and dtypes of the peer's, both ways."""
    options: dict[str, Any] = {"enable_standalone_scale_spline": scaler}
    ours, theirs = KANLinear(3, 4, 6, 2, **options), peer.KANLinear(3, 4, 6, 2, **options)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(7, 3)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    theirs.load_state_dict(ours.state_dict())


def test_initialisation() -> None:
    """The splines interpolate noise of the given size at the knots; the other weights are Kaiming's."""
    torch.manual_seed(3)
    layer = KANLinear(50, 40, 5, 3, scale_noise=0.3, scale_base=2.0, scale_spline=0.5)
    knots = layer.grid[:, 3:9].t()
    curve = torch.einsum("bir,oir->bio", layer.b_splines(knots[:-1]), layer.spline_weight)
    limit = 0.3 / 5 / 2
    assert curve.abs().max() <= limit * 1.001 and curve.abs().max() > 0.98 * limit
    assert abs(float(curve.detach().mean())) < 0.05 * limit
    for weight, a in ((layer.base_weight, 2.0), (layer.spline_scaler, 0.5)):
        bound = (6 / ((1 + 5 * a**2) * 50)) ** 0.5
        assert 0.98 * bound < float(weight.detach().abs().max()) <= bound
    torch.manual_seed(3)
    again = KANLinear(50, 40, 5, 3, scale_noise=0.3).spline_weight
    torch.testing.assert_close(again, layer.spline_weight, rtol=0, atol=1e-6)  # LAPACK rounds by alignment
    torch.manual_seed(3)
    plain = KANLinear(50, 40, scale_spline=0.5, scale_noise=0.3, enable_standalone_scale_spline=False)
    assert not hasattr(plain, "spline_scaler")
    assert plain.scaled_spline_weight is plain.spline_weight


BASE = [-0.0043225, 0.3097158, -0.4751853]
SPLINE = [-0.0015405, -0.004457, 0.0075745, 0.0101605, -0.0033176, -0.0120801, -0.0045558, -0.0004577]
SCALER = [0.0976788, -0.5390689, -0.4171738]


def test_same_seed_as_the_real_package() -> None:
    """The numbers of efficient-kan 7b6ce1c after torch.manual_seed(0) and KANLinear(3, 2)."""
    torch.manual_seed(0)
    layer = KANLinear(3, 2)
    torch.testing.assert_close(layer.base_weight.flatten()[:3], torch.tensor(BASE), rtol=0, atol=1e-6)
    torch.testing.assert_close(layer.spline_weight[1, 2], torch.tensor(SPLINE), rtol=0, atol=1e-6)
    torch.testing.assert_close(layer.spline_scaler.flatten()[:3], torch.tensor(SCALER), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scaler", [True, False])
def test_update_grid(scaler: bool) -> None:
    """The peer's knots and coefficients."""
    ours = KANLinear(3, 2, 6, enable_standalone_scale_spline=scaler).double()
    theirs = peer.KANLinear(3, 2, 6, enable_standalone_scale_spline=scaler).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(300, 3, dtype=F64)
    ours.update_grid(x, 0.1), theirs.update_grid(x, 0.1)
    torch.testing.assert_close(ours.grid, theirs.grid, rtol=0, atol=1e-13)
    torch.testing.assert_close(ours.spline_weight, theirs.spline_weight, rtol=0, atol=1e-9)


def test_update_grid_with_few_rows() -> None:
    """Fewer rows than coefficients: of those that keep the spline on the data the shortest, as pinv's."""
    layer = KANLinear(3, 2, 6, enable_standalone_scale_spline=False).double()
    x = torch.randn(4, 3, dtype=F64)
    want = torch.einsum("bir,oir->bio", layer.b_splines(x), layer.spline_weight).detach()
    layer.update_grid(x, 0.1)
    basis = layer.b_splines(x).transpose(0, 1)
    shortest = (torch.linalg.pinv(basis) @ want.transpose(0, 1)).permute(2, 0, 1)
    torch.testing.assert_close(layer.spline_weight.detach(), shortest, rtol=0, atol=1e-10)
    got = torch.einsum("bir,oir->bio", layer.b_splines(x), layer.spline_weight)
    torch.testing.assert_close(got.detach(), want, rtol=0, atol=1e-10)


def test_network() -> None:
    """forward with a grid update, and the loss summed over the layers."""
    ours, theirs = KAN([3, 4, 2]).double(), peer.KAN([3, 4, 2]).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(200, 3, dtype=F64)
    torch.testing.assert_close(ours(x, update_grid=True), theirs(x, update_grid=True), rtol=0, atol=1e-9)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-9)
    want = sum(layer.regularization_loss(0.3, 0.7) for layer in theirs.layers)
    torch.testing.assert_close(ours.regularization_loss(0.3, 0.7), want)


def overflow(model: KAN) -> None:
    """Finite weights by which the second layer's inputs are not."""
    model.layers[0].base_weight.data.fill_(3e38)


def without_update(model: KAN) -> None:
    def fail(x: Tensor) -> None:
        raise KeyboardInterrupt("stopped by hand")

    model.layers[2].update_grid = fail  # type: ignore[assignment]


def failing_forward(model: KAN) -> None:
    """After the last layer's knots have moved."""
    model.layers[2].register_forward_pre_hook(lambda module, args: args[0][:, :1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (overflow, ValueError, "x: sample 0 of feature"),
        (without_update, KeyboardInterrupt, "stopped by hand"),
        (failing_forward, ValueError, "x: got shape (50, 1)"),
    ],
)
def test_network_after_an_error(change: Any, error: type[BaseException], message: str) -> None:
    """An update that fails in a later layer leaves all of them as they were; the next one works."""
    model = KAN([3, 4, 4, 2])
    x = torch.rand(50, 3)
    change(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=re.escape(message)):
        model(x, update_grid=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    fresh = KAN([3, 4, 4, 2])
    fresh(x, update_grid=True)
    assert all((layer.grid != model.layers[n].grid).any() for n, layer in enumerate(fresh.layers))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [4, 200])
def test_no_least_squares_in_16_bits(dtype: torch.dtype, rows: int) -> None:
    """The peer's lstsq raises too, after it has moved the knots; ours before anything is changed."""
    x = torch.randn(rows, 3).to(dtype)
    for layer in (KANLinear(3, 2).to(dtype), peer.KANLinear(3, 2).to(dtype)):
        grid = layer.grid.clone()
        ours = isinstance(layer, KANLinear)
        message = f"x: got {dtype}, expected float32 or float64" if ours else "types other than float"
        with pytest.raises(TypeError if ours else RuntimeError, match=re.escape(message)):
            layer.update_grid(x)
        assert torch.equal(layer.grid, grid) == ours
    with pytest.raises(TypeError, match=re.escape(f"x: got {dtype}, expected float32 or float64")):
        KANLinear(3, 2).to(dtype).curve2coeff(x, torch.zeros(rows, 3, 2, dtype=dtype))


def test_curve2coeff_inverts() -> None:
    """Values at enough points give the coefficients back."""
    layer = KANLinear(3, 2).double()
    x = 1.8 * torch.rand(100, 3, dtype=F64) - 0.9
    curve = torch.einsum("bir,oir->bio", layer.b_splines(x), layer.spline_weight)
    torch.testing.assert_close(layer.curve2coeff(x, curve), layer.spline_weight, rtol=0, atol=1e-9)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"in_features": 0}, ValueError, "in_features: got 0"),
    ({"out_features": 2.0}, TypeError, "out_features: got 2.0"),
    ({"grid_size": 0}, ValueError, "grid_size: got 0"),
    ({"spline_order": 0}, ValueError, "spline_order: got 0"),
    ({"spline_order": 11}, ValueError, "spline_order: got 11"),
    ({"grid_range": (1, 1)}, ValueError, "grid_range: got (1, 1)"),
    ({"grid_eps": 1.5}, ValueError, "grid_eps: got 1.5"),
    ({"base_activation": "silu"}, TypeError, "base_activation: got 'silu'"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_constructor(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        KANLinear(**{"in_features": 3, "out_features": 2} | change)


def test_bad_calls() -> None:
    """Named errors, and a layer that is as it was."""
    layer = KANLinear(3, 2)
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    for call, error, message in [
        (lambda: layer.update_grid(torch.randn(5, 4)), ValueError, "x: got shape (5, 4)"),
        (lambda: layer.update_grid(torch.randn(0, 3)), ValueError, "x: got no samples"),
        (lambda: layer.update_grid([1.0]), TypeError, "x: got list"),
        (lambda: layer.update_grid(torch.randn(5, 3), -1.0), ValueError, "margin: got -1.0"),
        (lambda: layer.update_grid(torch.full((9, 3), torch.nan)), ValueError, "x: "),
        (lambda: layer.update_grid(torch.full((9, 3), torch.inf)), ValueError, "x: "),
        (lambda: layer(torch.randn(5, 4)), ValueError, "x: got shape (5, 4)"),
        (lambda: layer(torch.randn(5, 3, dtype=F64)), TypeError, "x: got torch.float64"),
        (lambda: layer.curve2coeff(torch.randn(5, 3), torch.randn(5, 3)), ValueError, "y: got (5, 3)"),
        (lambda: KAN([3]), ValueError, "layers_hidden: got 1"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            call()
    for key, value in layer.state_dict().items():
        assert torch.equal(value, state[key]), key
