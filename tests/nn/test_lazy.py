"""Lazy layers become plain ones at the first x; padding_mode of convolutions is torch's."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

from kan_kernels import KANConv1d, KANConv2d, KANConv3d, KANLinear
from kan_kernels.nn import LazyKANConv1d, LazyKANConv2d, LazyKANConv3d, LazyKANLinear

F64 = torch.float64
CASES: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "linear": (
        lambda: LazyKANLinear(4, 6, bias=True, dtype=F64), lambda: KANLinear(3, 4, 6, bias=True, dtype=F64),
        (5, 3),
    ),
    "1d": (
        lambda: LazyKANConv1d(4, 3, padding=1, dtype=F64), lambda: KANConv1d(6, 4, 3, padding=1, dtype=F64),
        (2, 6, 9),
    ),
    "2d": (
        lambda: LazyKANConv2d(4, 3, 1, 0, 1, 2, base=None, dtype=F64),
        lambda: KANConv2d(6, 4, 3, 1, 0, 1, 2, base=None, dtype=F64), (2, 6, 5, 7),
    ),
    "3d": (lambda: LazyKANConv3d(4, 2, dtype=F64), lambda: KANConv3d(2, 4, 2, dtype=F64), (2, 3, 3, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_becomes_the_plain_layer(name: str) -> None:
    """The same class, state, repr and numbers as the layer that was told its inputs."""
    lazy, plain, shape = CASES[name][0](), CASES[name][1](), CASES[name][2]
    assert "0, 4" in repr(lazy) and lazy.has_uninitialized_params()
    lazy = copy.deepcopy(lazy)
    x = torch.randn(shape, dtype=F64)
    torch.manual_seed(1)
    y = lazy(x)
    torch.manual_seed(1)
    plain.reset_parameters()
    torch.testing.assert_close(y, plain(x), rtol=0, atol=0)
    assert type(lazy) is type(plain) and repr(lazy) == repr(plain)
    assert lazy.state_dict().keys() == plain.state_dict().keys()
    optimizer = torch.optim.SGD(lazy.parameters(), lr=0.1)
    y.sum().backward()
    optimizer.step()
    lazy.reset_parameters()


@pytest.mark.parametrize("name", CASES)
def test_state_dicts(name: str) -> None:
    """One with values says the number of inputs; one without goes to another lazy layer."""
    make, plain, shape = CASES[name]
    told, lazy = plain(), make()
    lazy.load_state_dict(told.state_dict())
    x = torch.randn(shape, dtype=F64)
    torch.testing.assert_close(lazy(x), told(x), rtol=0, atol=0)
    assert type(lazy) is type(told)
    other = make()
    other.load_state_dict(make().state_dict())
    assert other.has_uninitialized_params()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict({**told.state_dict(), "more": torch.zeros(1)})
    assert other.has_uninitialized_params() and other(x).shape == told(x).shape


def test_half_precision_and_a_model_of_several() -> None:
    """Knots stay in float32; nn.Sequential learns layer by layer."""
    model = nn.Sequential(LazyKANConv2d(3, 3), nn.Flatten(), LazyKANLinear(2)).to(torch.bfloat16)
    assert model(torch.randn(2, 1, 6, 6)).shape == (2, 2)
    assert model[2].grid.dtype == torch.float32 and model[2].in_features == 48


@pytest.mark.parametrize(
    "make,x,error,match",
    [
        (lambda: LazyKANLinear(3), torch.zeros(2, 0), ValueError, r"x: got shape \(2, 0\)"),
        (lambda: LazyKANLinear(3), [0.0], TypeError, "x: got list"),
        (
            lambda: LazyKANConv2d(4, 3, groups=2),
            torch.zeros(1, 3, 5, 5),
            ValueError,
            "a multiple of groups=2",
        ),
        (lambda: LazyKANConv2d(4, 3), torch.zeros(5, 5), ValueError, "x: got shape"),
        (lambda: LazyKANConv2d(4, 3, groups=3), torch.zeros(1, 3, 5, 5), ValueError, "groups: got 3"),
        (lambda: LazyKANLinear(0), torch.zeros(1, 3), ValueError, "out_features: got 0"),
    ],
)
def test_bad_input(make: Any, x: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()(x)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same", "valid"])
def test_padding_mode(mode: str, padding: Any) -> None:
    """The layer on x that torch's own convolution would see, gradients too."""
    layer = KANConv2d(2, 3, (3, 2), padding=padding, dilation=(1, 2), padding_mode=mode, dtype=F64)
    torch_layer = nn.Conv2d(2, 3, (3, 2), padding=padding, dilation=(1, 2), padding_mode=mode)
    x = torch.randn(2, 2, 6, 7, dtype=F64, requires_grad=True)
    inside = KANConv2d(2, 3, (3, 2), dilation=(1, 2), dtype=F64)
    inside.load_state_dict(layer.state_dict())
    around = torch_layer._reversed_padding_repeated_twice
    want = inside(nn.functional.pad(x, around, mode))
    got = layer(x)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)
    v = torch.randn_like(got)
    one, other = (torch.autograd.grad((y * v).sum(), x)[0] for y in (got, want))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert got.shape == torch_layer(x.float()).shape
    assert f"padding_mode='{mode}'" in repr(layer)


@pytest.mark.parametrize("layer,shape", [(KANConv1d, (2, 9)), (KANConv3d, (2, 3, 4, 5))])
def test_padding_mode_of_one_image(layer: Any, shape: tuple[int, ...]) -> None:
    """Without a batch it is the same."""
    module = layer(2, 3, 3, padding=1, padding_mode="circular", dtype=F64)
    x = torch.randn(shape, dtype=F64)
    torch.testing.assert_close(module(x), module(x.unsqueeze(0))[0])


def test_padding_mode_says_what_x_was() -> None:
    """The shape that came, not the one with its borders; and no error of torch's own."""
    layer = KANConv2d(2, 2, 3, padding=1, padding_mode="reflect")
    for shape in ((5, 5), (1, 3, 5, 5)):
        with pytest.raises(ValueError, match=rf"x: got shape {re.escape(str(shape))}, expected \(batch, 2"):
            layer(torch.zeros(shape))
    with pytest.raises(TypeError, match="x: got"):
        layer([[0.0]])


def test_padding_modes_are_torchs() -> None:
    with pytest.raises(ValueError, match=r"padding_mode: got 'mirror', expected one of 'zeros', 'reflect'"):
        KANConv1d(1, 1, 3, padding_mode="mirror")
    assert "padding_mode" not in repr(KANConv1d(1, 1, 3))
