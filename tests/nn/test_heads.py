"""KANActivation, MultiHeadKANLinear and KANFeedForward."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from kan_kernels import KANActivation, KANFeedForward, KANLinear, MultiHeadKANLinear
from kan_kernels import functional as F
from kan_kernels.grids import outside, refine, update_grid

DOUBLE = torch.float64


def as_linear(layer: MultiHeadKANLinear) -> KANLinear:
    """The KANLinear that has its functions on every edge."""
    single = KANLinear(
        layer.in_features, layer.out_features, layer.grid_size, layer.spline_order, base=layer.base,
        bias=layer.bias is not None, dtype=layer.spline_weight.dtype,
    )  # fmt: skip
    weight, base = layer.edge_weights()
    with torch.no_grad():
        single.spline_weight.copy_(weight)
        if single.base_weight is not None and base is not None:
            single.base_weight.copy_(base)
        if single.bias is not None and layer.bias is not None:
            single.bias.copy_(layer.bias)
        single.grid.copy_(layer.grid)
    return single


@pytest.mark.parametrize("heads,bias,base", [(1, True, "silu"), (2, False, None), (6, True, "identity")])
def test_heads_are_tied_edges(heads: int, bias: bool, base: str | None) -> None:
    """The layer is the KANLinear of its tied functions; with heads = out that is any KANLinear."""
    layer = MultiHeadKANLinear(5, 6, heads, 4, 2, bias=bias, base=base, dtype=DOUBLE)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    x = torch.randn(3, 7, 5, dtype=DOUBLE, requires_grad=True)
    single = as_linear(layer)
    y, want = layer(x), single(x)
    torch.testing.assert_close(y, want)
    g = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, x, g)[0], torch.autograd.grad(want, x, g)[0])


def test_any_kan_linear_has_as_many_heads_as_outputs() -> None:
    """The other way round: functions of a KANLinear, mix of ones."""
    single = KANLinear(4, 3, dtype=DOUBLE)
    layer = MultiHeadKANLinear(4, 3, heads=3, dtype=DOUBLE)
    with torch.no_grad():
        layer.spline_weight.copy_(single.spline_weight)
        layer.base_weight.copy_(single.base_weight)  # type: ignore[union-attr]
        layer.mix.fill_(1.0)
    x = torch.randn(20, 4, dtype=DOUBLE)
    torch.testing.assert_close(layer(x), single(x))


@pytest.mark.parametrize("dim", (-1, 1, -3, 0))
@pytest.mark.parametrize("heads", (1, 2))
def test_activation_at_any_axis(dim: int, heads: int) -> None:
    """The channel axis may be anywhere; every channel has its own function."""
    shape = [4, 5, 6]
    features = shape[dim]
    act = KANActivation(features, heads, dim=dim, dtype=DOUBLE)
    x = torch.randn(*shape, dtype=DOUBLE)
    v = act(x)
    assert v.shape == (*shape, *([heads] if heads > 1 else []))
    for c in range(features):
        one = {"base_weight": act.base_weight[c : c + 1], "spline_order": 3}  # type: ignore[index]
        part = x.select(dim, c).unsqueeze(-1)
        want = F.kan_linear(part, act.spline_weight[c : c + 1], act.grid[c : c + 1], **one)  # type: ignore[arg-type]
        place = dim if dim >= 0 else dim - (heads > 1)
        torch.testing.assert_close(v.select(place, c), want.squeeze(-1) if heads == 1 else want)


def test_shared_functions() -> None:
    """Neighbouring channels have one function, whose gradient is the sum of theirs; "all" shares one."""
    act = KANActivation(6, share=3, dtype=DOUBLE)
    assert act.spline_weight.shape == (2, 8, 1)
    x = torch.randn(50, 6, dtype=DOUBLE)
    wide = KANActivation(6, dtype=DOUBLE)
    with torch.no_grad():
        wide.spline_weight.copy_(act.spline_weight.repeat_interleave(3, 0))
    v, want = act(x), wide(x)
    torch.testing.assert_close(v, want)
    v.square().sum().backward()
    want.square().sum().backward()
    summed = wide.spline_weight.grad.unflatten(0, (2, 3)).sum(1)  # type: ignore[union-attr]
    torch.testing.assert_close(act.spline_weight.grad, summed)
    assert KANActivation(6, share="all").spline_weight.shape[0] == 1
    update_grid(act, x, margin=0.0)
    torch.testing.assert_close(act.grid[0, 3], x[:, :3].min())


@pytest.mark.parametrize(
    "call,said",
    [
        (
            lambda: MultiHeadKANLinear(4, 6, 4),
            "heads: got 4, expected a divisor of out_features=6: 1, 2, 3, 6",
        ),
        (lambda: MultiHeadKANLinear(4, 6, 12), "heads: got 12, expected a divisor of out_features=6"),
        (lambda: MultiHeadKANLinear(4, 6, 0), "heads: got 0, expected an int >= 1"),
        (
            lambda: KANActivation(6, share=4),
            "share: got 4, expected a divisor of features=6: 1, 2, 3, 6; or 'all'",
        ),
        (lambda: KANActivation(6, share="rows"), "share: got 'rows', expected a divisor"),
        (lambda: KANActivation(6, share=None), "share: got None, expected a divisor"),
        (lambda: KANActivation(6)(torch.zeros(2, 5)), "expected 6 channels in dimension -1"),
        (lambda: KANActivation(6, dim=3)(torch.zeros(2, 6)), "expected 6 channels in dimension 3"),
        (lambda: KANFeedForward(6, 8, heads=4), "heads: got 4, expected a divisor of d_model=6"),
        (lambda: KANFeedForward(6, 8, norm="batch"), "norm: got 'batch', expected 'layer', 'rms' or None"),
        (lambda: KANFeedForward(6, 8, norm=[]), "norm: got [], expected 'layer', 'rms' or None"),
        (lambda: MultiHeadKANLinear(4, 6, 2)(torch.zeros(2, 5)), "x: got shape (2, 5), expected (..., 4)"),
        (lambda: outside(nn.Linear(2, 2), torch.zeros(1, 2)), "model: got Linear without any"),
    ],
)
def test_errors(call, said: str) -> None:  # type: ignore[no-untyped-def]
    """Bad arguments are named, with what came and what would fit."""
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert said in str(error.value)


def rms(t: Tensor) -> float:
    return float(t.detach().square().mean().sqrt())


@pytest.mark.parametrize("heads", (1, 4))
@pytest.mark.parametrize("norm", ("layer", "rms"))
def test_variance_through_depth(heads: int, norm: str) -> None:
    """32 layers without a residual: signals keep their size, gradients grow by 6% a layer at most.

    silu's slopes are that much larger than its values: E[silu'^2] / E[silu^2] is 1.07 for N(0, 1).
    """
    torch.manual_seed(heads)
    blocks = [KANFeedForward(64, 192, heads, norm=norm) for _ in range(16)]
    x = torch.randn(256, 64, requires_grad=True)
    values = [x]
    for block in blocks:
        values.append(block(values[-1]))
        values[-1].retain_grad()
    values[-1].backward(torch.randn_like(x))
    signals = [rms(v) for v in values]
    gradients = [rms(v.grad) for v in values]  # type: ignore[arg-type]
    assert all(0.5 < s < 2.0 for s in signals), signals
    for n, g in enumerate(gradients):
        layers = 2 * (len(blocks) - n)
        assert 1.06**-layers / 1.2 < g / gradients[-1] < 1.2 * 1.06**layers, gradients


@pytest.mark.parametrize("kind", ("activation", "linear"))
@pytest.mark.parametrize("base", ("silu", None))
def test_first_variance(kind: str, base: str | None) -> None:
    """Outputs of a new layer have variance 1 for standard normal inputs, on any knots that hold them."""
    torch.manual_seed(0)
    if kind == "activation":
        act = KANActivation(64, base="silu")
        x = torch.randn(100, 64)
        assert rms(act(x) - nn.functional.silu(x)) < 0.15
        return
    layer = MultiHeadKANLinear(400, 500, 4, grid_range=(-3, 3), base=base)
    assert rms(layer(torch.randn(200, 400))) == pytest.approx(1.0, abs=0.15)


def test_feed_forward_is_a_drop_in() -> None:
    """In a transformer block: shapes, a state dict, dropout in training alone, half precision."""
    block = KANFeedForward(16, 32, 2, dropout=0.5)
    x = torch.randn(2, 5, 16)
    assert block(x).shape == x.shape
    block.eval()
    again = KANFeedForward(16, 32, 2).eval()
    again.load_state_dict(block.state_dict())
    assert torch.equal(block(x), again(x))
    assert block.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert block.up.grid.dtype == torch.float32


@pytest.mark.parametrize("norm", ["layer", "rms", None])
def test_gradients_of_tangents(norm: str | None) -> None:
    """Reverse mode over forward mode: the Hessian's products of reverse mode over itself."""
    torch.manual_seed(0)
    block = KANFeedForward(4, 6, norm=norm, spline_order=5, dtype=torch.float64)
    x, v = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return block(x).square().sum()

    leaf = x.clone().requires_grad_()
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(loss(forward_ad.make_dual(leaf, v))).tangent
        (got,) = torch.autograd.grad(tangent, leaf)
    want = torch.autograd.functional.hvp(loss, x, v)[1]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_outside_is_counted_and_stays_useful() -> None:
    """x far outside the knots keeps values finite and gradients alive; one call says how much lies there."""
    block = KANFeedForward(8, 16, norm=None, grid_range=(-1, 1))
    x = (torch.arange(40.0).reshape(5, 8) - 20).requires_grad_()
    y = block(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all() and dx.isfinite().all() and dx[-1].abs().min() > 0
    shares = outside(block, x)
    assert shares["up"] == pytest.approx(37 / 40) and set(shares) == {"up", "down"}
    assert outside(KANLinear(1, 1), torch.tensor([[float("nan")], [0.0]])) == {"": 0.5}


class Block(nn.Module):
    """Layers between others, one of them called twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.ff = KANFeedForward(8, 12, 2)
        self.act = KANActivation(8)
        self.unused = MultiHeadKANLinear(3, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.act(self.drop(x)) + self.act(self.ff(x))


def test_knots_follow_the_data_of_any_module() -> None:
    """One call for a whole model: knots span what reaches each layer, functions stay, the mode stays."""
    torch.manual_seed(3)
    model, tokens = Block(), torch.randint(11, (40, 9))
    before = copy.deepcopy(model).eval()(tokens)
    parameters = list(model.parameters())
    update_grid(model, tokens, margin=0.0)
    assert model.training and model.drop.training
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    normed = model.ff.norm(model.embed.weight[tokens.unique()])
    torch.testing.assert_close(model.ff.up.grid[:, 3], normed.min(0).values.detach())
    assert torch.equal(model.unused.grid, MultiHeadKANLinear(3, 3).grid)
    torch.testing.assert_close(model.eval()(tokens), before, rtol=0.05, atol=0.05)
    assert all(share < 0.1 for share in outside(model, tokens).values())
    with pytest.raises(ValueError, match=r"ff\.up are not finite"):
        with torch.no_grad():
            model.embed.weight[:, 0] = torch.nan
        update_grid(model, tokens)


def test_refined_functions_stay() -> None:
    """Twice as many cells: the same functions; a state dict of the finer layer is taken over."""
    model = KANFeedForward(6, 8, 2, grid_size=4, dtype=DOUBLE)
    x = torch.randn(30, 6, dtype=DOUBLE)
    before = model(x)
    refine(model, 8)
    assert model.up.spline_weight.shape == (6, 11, 2)
    torch.testing.assert_close(model(x), before)
    again = KANFeedForward(6, 8, 2, grid_size=4, dtype=DOUBLE)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x), before)


def test_training_learns_the_functions() -> None:
    """A multi-head layer fits what it can represent exactly: sums of one function a group and input."""
    torch.manual_seed(0)
    x = torch.rand(512, 3) * 2 - 1
    mix = torch.tensor([[1.0, -0.5], [0.7, 2.0], [-1.0, 0.3]])
    y = torch.sin(3 * x) @ mix
    layer = MultiHeadKANLinear(3, 2, 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1e-2 * float(y.square().mean())


def test_second_derivatives_of_a_block() -> None:
    """In every order of forward and reverse mode; torch's own layer norm has two of them wrong."""
    block = KANFeedForward(4, 8, 2, dtype=torch.float64)
    x = torch.randn(4, dtype=torch.float64)
    f = lambda x: block(x).pow(3).sum()  # noqa: E731
    want = torch.func.jacrev(torch.func.jacrev(f))(x)
    eager = torch.autograd.functional.hessian(f, x)
    torch.testing.assert_close(want, eager, rtol=1e-9, atol=1e-9)
    for outer in (torch.func.jacfwd, torch.func.jacrev):
        got = outer(torch.func.jacfwd(f))(x)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
