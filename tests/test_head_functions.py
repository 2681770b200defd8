"""Penalties, pruning, pictures and formulas of the functions of heads."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kan_kernels import KAN, KANActivation, KANFeedForward, KANLinear, MultiHeadKANLinear
from kan_kernels import functional as F
from kan_kernels.head_functions import functions_of, prune_functions, untied
from kan_kernels.pruning import edge_scores, prune
from kan_kernels.regularization import regularization
from kan_kernels.symbolic import fix, suggest

F64 = torch.float64


def layer_of(heads: int = 2, out: int = 6, **options: object) -> MultiHeadKANLinear:
    """A layer of 4 inputs with functions far from their start."""
    torch.manual_seed(3)
    layer = MultiHeadKANLinear(4, out, heads, bias=True, dtype=F64, **options)  # type: ignore[arg-type]
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def data(rows: int = 50) -> Tensor:
    return 0.8 * torch.randn(rows, 4, generator=torch.Generator().manual_seed(1), dtype=F64)


@pytest.mark.parametrize("base", ("silu", None))
def test_functions_are_edges_of_a_layer(base: str | None) -> None:
    """The very parameters, and the values of kan_activation on every edge; an update shows in both."""
    layer, x = layer_of(base=base), data()
    seen = functions_of(layer)
    v = F.kan_activation(
        x, layer.spline_weight, layer.grid, spline_order=3, base_weight=layer.base_weight, base=base
    )
    torch.testing.assert_close(seen(x), v.sum(1))
    assert seen.spline_weight is layer.spline_weight and seen.base_weight is layer.base_weight
    with torch.no_grad():
        layer.spline_weight += 1
    assert not torch.allclose(seen(x), v.sum(1))
    assert [t.device.type for t in (*seen.parameters(), *seen.buffers())] == ["cpu"] * (
        2 + (base is not None)
    )
    shared = functions_of(KANActivation(6, 3, share=2))
    assert (shared.in_features, shared.out_features) == (3, 3)
    with pytest.raises(TypeError, match="layer: got KANLinear, expected a KANActivation or a MultiHead"):
        functions_of(KANLinear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("heads", (1, 3, 6))
def test_untied(heads: int) -> None:
    """The same outputs from parameters of its own."""
    layer, x = layer_of(heads), data()
    single = untied(layer)
    torch.testing.assert_close(single(x), layer(x))
    assert single.spline_weight.shape == (4, 8, 6) and single.bias is not layer.bias
    with torch.no_grad():
        single.spline_weight.zero_(), single.grid.zero_()
    assert layer.spline_weight.any() and layer.grid.any()
    with pytest.raises(TypeError, match="layer: got KANActivation, expected a MultiHeadKANLinear"):
        untied(KANActivation(4))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ("l1", "std", "std_normalized", "coefficient"))
def test_penalty_is_that_of_the_tied_edges(kind: str) -> None:
    """The number that the KANLinear of the same edges has, at the cost of the functions."""
    layer, x = layer_of(3), data()
    options = {"kind": kind, "lamb_coef": 0.3, "lamb_coefdiff": 0.7}
    torch.testing.assert_close(
        regularization(layer, x, **options),
        regularization(untied(layer), x, **options),  # type: ignore[arg-type]
    )


def test_gradient_of_the_penalty() -> None:
    """With respect to x and every parameter, against the dense formula."""
    layer, x = layer_of(2), data().requires_grad_()
    leaves = [x, layer.spline_weight, layer.base_weight, layer.mix]
    v = F.kan_activation(x, layer.spline_weight, layer.grid, spline_order=3, base_weight=layer.base_weight)
    want = (v.abs().mean(0).repeat_interleave(3, 1) * layer.mix.abs()).sum()
    got = regularization(layer, x, lamb_entropy=0)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_penalty_of_any_module() -> None:
    """The sum over the layers that x reaches, with gradients through those before; modes and state stay."""
    block = KANFeedForward(4, 6, heads=2, dropout=0.5, dtype=F64)
    model = nn.Sequential(
        block, nn.BatchNorm1d(4, dtype=F64), KANActivation(4, dtype=F64), KANLinear(4, 2, dtype=F64)
    )
    x, before = data(), {k: v.clone() for k, v in model.state_dict().items()}
    model.eval()
    with torch.no_grad():
        up = block.norm(x)
        inside = [up, block.hidden_norm(block.up(up)), model[:2](x), model[:3](x)]
    layers = [block.up, block.down, functions_of(model[2]), model[3]]
    want = sum(regularization(layer, rows) for layer, rows in zip(layers, inside, strict=True))
    model.train()
    got = regularization(model, x)
    torch.testing.assert_close(got, want)
    got.backward()
    assert (
        all(p.grad is not None for p in block.up.parameters()) and model.training and block.dropout.training
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    kan = KAN([4, 3, 2], dtype=F64)
    torch.testing.assert_close(regularization(nn.Sequential(kan), x), regularization(kan, x))
    with pytest.raises(TypeError, match="model: got Linear without any"):
        regularization(nn.Linear(2, 2), x)


def test_pruned_functions_are_those_that_hardly_matter() -> None:
    """Scores are those of the edges; what goes is exactly zero, and its mean stays in the bias."""
    layer, x = layer_of(2), data()
    with torch.no_grad():
        layer.mix[1, :3] *= 1e-4
        layer.mix[3] *= 1e-4
    small, report = prune_functions(layer, x, threshold=0.01)
    assert report.functions == {"": (8, 5)} and {d[1:3] for d in report.dropped} == {(1, 0), (3, 0), (3, 1)}
    scores = edge_scores(untied(layer), x)[0].unflatten(1, (2, -1)).amax(2)
    for _, i, h, score in report.dropped:
        assert score == pytest.approx(float(scores[i, h]))
    gone = small(x) - layer(x)
    assert float(gone.mean(0).abs().max()) < 1e-12 and float(gone.abs().max()) < 0.01
    assert report.max_change == pytest.approx(float(gone.abs().max()))
    assert not small.mix[3].any() and not small.spline_weight[3].any() and not small.base_weight[3].any()
    assert layer.mix[3].all() and small.spline_weight.shape == layer.spline_weight.shape
    bare, _ = prune_functions(layer, x, threshold=0.01, keep_means=False)
    assert torch.equal(bare.bias, layer.bias)
    optimizer = torch.optim.AdamW(small.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        small(x).square().sum().backward()
        optimizer.step()
    assert not small.mix[3].any() and not small.spline_weight[3].any() and small.mix[0].any()


def test_pruning_within_a_model() -> None:
    """Any module, its layers by name; one without a bias gets one."""
    model = nn.Sequential(KANFeedForward(4, 6, heads=2, dtype=F64), KANActivation(4, dtype=F64))
    x = data()
    with torch.no_grad():
        model[0].up.mix[2] = 1e-6
    small, report = prune_functions(model, x, threshold=1e-4)
    assert report.functions == {"0.up": (8, 6), "0.down": (12, 12)}
    assert small[0].up.bias is not None and model[0].up.bias is None
    torch.testing.assert_close(small(x), model(x), atol=1e-4, rtol=0)
    assert "0.up: 8 -> 6 functions" in str(report) and report.to_dict()["functions"] == report.functions


def test_pruning_what_is_compiled() -> None:
    """A part of the model that torch.compile returned, or the whole: pruned as if it were not."""
    torch.manual_seed(0)
    plain = nn.Sequential(MultiHeadKANLinear(3, 4, 2), MultiHeadKANLinear(4, 2))
    with torch.no_grad():
        plain[0].mix[1] = 1e-6
    x = torch.rand(20, 3)
    small, report = prune_functions(plain, x, threshold=1e-4)
    for of in (lambda m: nn.Sequential(torch.compile(m[0], backend="eager"), m[1]), torch.compile):
        options = {"backend": "eager"} if of is torch.compile else {}
        other, found = prune_functions(of(copy.deepcopy(plain), **options), x, threshold=1e-4)
        assert found.functions == report.functions == {"0": (6, 4), "1": (4, 4)}
        assert torch.equal(other(x), small(x))


def test_what_cannot_be_done_says_so() -> None:
    """Errors name the argument and what would do."""
    layer, x = layer_of(), data()
    with pytest.raises(ValueError, match="would be left without any function; the largest score is"):
        prune_functions(layer, x, threshold=1e9)
    with pytest.raises(TypeError, match="model: got KANActivation, expected one with MultiHeadKANLinear"):
        prune_functions(KANActivation(4, dtype=F64), x)
    with pytest.raises(ValueError, match="x: the inputs of the layer are not finite"):
        prune_functions(layer, x * torch.inf)
    with pytest.raises(TypeError, match=r"a KAN or a KANLinear .*; head_functions\.untied makes"):
        prune(layer, x)
    with pytest.raises(TypeError, match=r"expected a KANLinear; head_functions\.untied makes one"):
        fix(layer, 0, 0, "sin", x)


def test_formulas() -> None:
    """A head that is a sine is found to be one; the untied layer is written as a formula."""
    layer, x = (
        MultiHeadKANLinear(1, 4, 2, 20, base=None, dtype=F64),
        torch.linspace(-1, 1, 200, dtype=F64).unsqueeze(1),
    )
    basis = F.bspline_basis(x, layer.grid, 3)[:, 0]
    with torch.no_grad():
        layer.spline_weight[0, :, 1:] = torch.linalg.lstsq(basis, (3 * x).sin()).solution
    found = suggest(layer, 0, 1, x, library=["x", "sin", "exp"])[0]
    assert found.name == "sin" and found.r2 > 0.9999 and abs(found.affine[0]) == pytest.approx(3, rel=0.01)
    fixed = untied(layer)
    assert fix(fixed, 0, 3, "sin", x).r2 > 0.9999  # type: ignore[union-attr]


def test_pictures() -> None:
    """A function is drawn for every input and head."""
    pytest.importorskip("matplotlib")
    from kan_kernels.plotting import plot

    figure = plot(layer_of(), data(), inputs=list("abcd"))
    words = {text.get_text() for text in figure.axes[0].texts}
    assert {"a", "d", "head 1", "head 2"} <= words
    assert plot(KANActivation(6, share=2, dim=1), torch.randn(5, 6, 7)).axes
