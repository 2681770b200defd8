"""Multiplication nodes of the real pykan, to KAN and back: numbers, checkpoints, and pykan's own scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kan_kernels import KAN
from kan_kernels.integrations.convert import from_pykan, load_checkpoint, to_efficient_kan, to_pykan
from kan_kernels.pruning import edge_scores, node_scores

kan = pytest.importorskip("kan", reason="pykan is not installed: pip install '.[pykan]'")
F64 = torch.float64
NETWORKS: list[tuple[list[Any], Any]] = [
    ([3, [2, 2], [1, 1], 2], 2),
    ([3, [0, 3], 1], 3),
    ([3, [2, 2], [0, 1], [1, 1]], [[], [2, 3], [4], [2]]),
]


@pytest.fixture(autouse=True)
def _in_double() -> Iterator[None]:
    torch.set_default_dtype(F64)  # pykan makes some of its tensors in the default dtype
    yield
    torch.set_default_dtype(torch.float32)


def network(width: list[Any], arity: Any, affine: bool = True) -> Any:
    width = [list(w) if isinstance(w, list) else w for w in width]
    model = kan.MultKAN(width, grid=4, k=3, mult_arity=arity, auto_save=False, seed=3, noise_scale=0.5)
    for parameters in (model.node_scale, model.subnode_bias, model.subnode_scale) if affine else ():
        for parameter in parameters:
            parameter.data = torch.randn_like(parameter)
    model.fix_symbolic(0, 1, 3, "sin", fit_params_bool=False, verbose=False)
    model.symbolic_fun[0].affine.data[3, 1] = torch.tensor([1.5, -0.2, 0.7, 0.1])
    for bias, (sums, _) in zip(model.node_bias, model.width[1:], strict=True) if affine else ():
        bias.data[:sums] = torch.randn(sums)
    return model


def points() -> Tensor:
    return 1.2 * torch.randn(100, 3)


def same(got: Tensor, want: Tensor) -> None:
    assert want.abs().max() > 1e-3
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("width", "arity"), NETWORKS)
def test_both_ways(width: list[Any], arity: Any, tmp_path: Path) -> None:
    model, x = network(width, arity), points()
    y = model(x)
    ours = from_pykan(model)
    same(ours(x), y)
    back = to_pykan(ours)
    assert back.width == [[w, 0] if isinstance(w, int) else w for w in width] and back.mult_arity == arity
    same(back(x), y)
    model.saveckpt(str(tmp_path / "mark"))
    same(load_checkpoint(tmp_path / "mark")(x), y)
    x.requires_grad_()
    for other in (ours, back):
        got, want = (torch.autograd.grad(m(x).square().sum(), x)[0] for m in (other, model))
        same(got, want)


def test_a_kan_that_never_was_pykans() -> None:
    ours = KAN([3, (1, 2), (2, 1)], mult_arity=[[], [2, 3], [2]], bias=True)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    x = points()
    theirs = to_pykan(ours)
    same(theirs(x), ours(x))
    same(from_pykan(theirs)(x), ours(x))


@pytest.mark.parametrize(("width", "arity"), NETWORKS[:2])
def test_scores_are_pykans(width: list[Any], arity: Any) -> None:
    """Of edges, nodes and subnodes, where pykan's 1e-4 beside the deviations is made small; pykan itself
    fails for lists of arities and several outputs."""
    model, x = network(width, arity), points()
    model(x)
    for name in ("edge_actscale", "subnode_actscale"):
        setattr(model, name, [1e9 * size for size in getattr(model, name)])
    model.attribute()
    ours = from_pykan(model)
    nodes, edges = (scores(ours, x, kind="attribution") for scores in (node_scores, edge_scores))
    for n, products in enumerate(ours.products):
        torch.testing.assert_close(edges[n], model.edge_scores[n].T.detach(), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(nodes[n], model.node_scores[n].detach(), rtol=1e-8, atol=1e-8)
        subnodes = products.hand_down(nodes[n + 1])
        torch.testing.assert_close(subnodes, model.subnode_scores[n].detach(), rtol=1e-8, atol=1e-8)


def test_what_cannot_be_held(tmp_path: Path) -> None:
    model = network([3, [2, 2], 1], 2)
    model.node_bias[0].data[2] = 0.5
    message = "layer 0: node_bias of a multiplication node is not 0, which kan_kernels cannot hold"
    with pytest.raises(ValueError, match=f"model: {message}"):
        from_pykan(model)
    model.saveckpt(str(tmp_path / "mark"))
    with pytest.raises(ValueError, match=f"path: {message}"):
        load_checkpoint(tmp_path / "mark")
    model = network([3, [2, 2], 1], 2, affine=False)
    model.mult_arity = [[], [2], []]
    with pytest.raises(ValueError, match="its multiplication nodes cannot be held: mult_arity"):
        from_pykan(model)
    with pytest.raises(ValueError, match="layer 0 has multiplication nodes, which efficient-kan cannot hold"):
        to_efficient_kan(KAN([2, (1, 1), 1]))
