"""KANLinear.edge_mask: edges switched off take no part, everywhere a layer goes."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import DEVICE
from kan_kernels import KAN, KANLinear, symbolic, to_numpy_model

MASK = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]])


def masked(**options: Any) -> KANLinear:
    layer = KANLinear(4, 3, **{"bias": True, "device": DEVICE, "dtype": torch.float64, **options})
    layer.set_edge_mask(MASK)
    return layer


def without_edges(layer: KANLinear) -> KANLinear:
    """The same layer unmasked, with zeros in the weights of the edges that are off."""
    plain = copy.deepcopy(layer)
    plain.set_edge_mask(None)
    mask = MASK.to(layer.spline_weight)
    with torch.no_grad():
        plain.spline_weight.mul_(mask[:, None, :])
        if plain.base_weight is not None:
            plain.base_weight.mul_(mask)
    return plain


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, device=DEVICE)


@pytest.mark.parametrize("base", ("silu", "identity", None))
def test_off_edges_count_for_nothing(backend: str, base: str | None) -> None:
    """The outputs, gradients and second derivatives of the layer whose weights are zero there; the weights of
    an edge that is off get no gradient."""
    layer = masked(backend=backend, base=base)
    plain, x = without_edges(layer), rows(9, 4).requires_grad_()
    assert torch.equal(layer(x), plain(x))
    assert not torch.equal(layer(x)[:, 1], KANLinear.forward(with_all_edges(layer), x)[:, 1])
    for make in (lambda m: m(x).square().sum(), lambda m: slope(m, x).square().sum()):
        got = torch.autograd.grad(make(layer), [x, *layer.parameters()], allow_unused=True)
        want = torch.autograd.grad(make(plain), [x, *plain.parameters()], allow_unused=True)
        on = MASK.to(x)
        expected = [
            want[0],
            *(
                g if g is None or g.dim() == 1 else g * (on if g.dim() == 2 else on[:, None])
                for g in want[1:]
            ),
        ]
        for a, b in zip(got, expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def with_all_edges(layer: KANLinear) -> KANLinear:
    other = copy.deepcopy(layer)
    other.set_edge_mask(None)
    return other


def slope(layer: torch.nn.Module, x: Tensor) -> Tensor:
    return torch.autograd.grad(layer(x).sum(), x, create_graph=True)[0]


def test_default_is_none() -> None:
    """Without a mask a layer has no buffer, no key and nothing in its repr."""
    layer = KANLinear(4, 3)
    assert layer.edge_mask is None and layer.symbolic is None
    assert not any("mask" in key or "symbolic" in key for key in layer.state_dict())
    assert "mask" not in repr(layer) and "symbolic" not in repr(layer)
    layer.set_edge_mask(MASK.bool())
    assert layer.edge_mask is not None and layer.edge_mask.dtype == torch.float32
    layer.set_edge_mask(None)
    assert layer.edge_mask is None and "edge_mask" not in layer.state_dict()


def test_mask_is_a_copy() -> None:
    """What the caller does to the tensor later does not reach the layer."""
    mask = torch.ones(4, 3)
    layer = KANLinear(4, 3)
    layer.set_edge_mask(mask)
    mask.zero_()
    assert bool(layer.edge_mask.all())


@pytest.mark.parametrize(
    "mask,error,text",
    [
        ([[1, 0]], TypeError, "mask: got list"),
        (torch.ones(3, 4), ValueError, r"mask: got shape \(3, 4\), expected a tensor \(4, 3\)"),
        (torch.full((4, 3), 0.5), ValueError, "other values than 0 and 1"),
        (torch.full((4, 3), torch.nan), ValueError, "other values than 0 and 1"),
    ],
)
def test_bad_masks(mask: Any, error: type, text: str) -> None:
    """Named, and the layer keeps the mask it had."""
    layer = masked()
    with pytest.raises(error, match=text):
        layer.set_edge_mask(mask)
    assert torch.equal(layer.edge_mask, MASK.to(layer.edge_mask))


def test_copies(backend: str) -> None:
    """state_dict into a fresh layer, deepcopy, pickle keep the mask; a checkpoint without one removes it."""
    net = KAN([4, 3, 2], bias=True, backend=backend, device=DEVICE)
    plain_state = copy.deepcopy(net.state_dict())
    net.layers[0].set_edge_mask(MASK)
    x = torch.randn(6, 4, device=DEVICE)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    fresh = KAN([4, 3, 2], bias=True, backend=backend, device=DEVICE)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    empty = KAN([4, 3, 2], bias=True, backend=backend, device="meta")
    empty.load_state_dict(net.state_dict(), assign=True)
    for other in (fresh, empty, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other.layers[0].edge_mask, net.layers[0].edge_mask)
        assert other.layers[1].edge_mask is None
        assert torch.equal(other(x), net(x))
        other.layers[0].set_edge_mask(None)
        assert not torch.equal(other(x), net(x))
    net.load_state_dict(plain_state)
    assert net.layers[0].edge_mask is None and torch.equal(net(x), fresh(x))


def test_part_of_a_checkpoint_keeps_the_mask() -> None:
    """strict=False with a single entry changes that entry only."""
    layer = masked()
    layer.load_state_dict({"bias": torch.ones(3, dtype=torch.float64)}, strict=False)
    assert layer.edge_mask is not None and bool((layer.bias == 1).all())


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_casts(backend: str, dtype: torch.dtype) -> None:
    """The mask follows the weights' dtype, exactly."""
    layer = masked(backend=backend).to(dtype)
    assert layer.edge_mask.dtype == dtype and torch.equal(layer.edge_mask.cpu(), MASK.to(dtype))
    x = rows(5, 4).float()
    assert torch.equal(layer(x), without_edges(layer)(x))


def test_training_keeps_edges_off(backend: str) -> None:
    """Adam moves the weights of the edges that are on, and never those that are off."""
    layer = masked(backend=backend)
    before = layer.spline_weight.detach().clone()
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    x = rows(20, 4)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
    moved = (layer.spline_weight.detach() != before).any(1)
    assert torch.equal(moved.cpu(), MASK.bool())


def test_transforms(backend: str) -> None:
    """torch.func: functional_call, jacrev and vmap over a masked layer."""
    layer = masked(backend=backend)
    plain, x = without_edges(layer), rows(5, 4)
    state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    assert torch.equal(torch.func.functional_call(layer, state, (x,)), plain(x))
    jacobian = torch.func.vmap(torch.func.jacrev(layer))(x)
    torch.testing.assert_close(jacobian, torch.func.vmap(torch.func.jacrev(plain))(x))
    assert bool((jacobian[:, 0, 3] == 0).all()) and bool((jacobian[:, 2, 1] != 0).any())


def test_compile() -> None:
    """torch.compile without graph breaks; the mask may change afterwards."""
    layer = masked()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = rows(5, 4)
    torch.testing.assert_close(compiled(x), without_edges(layer)(x))
    layer.set_edge_mask(1 - MASK)
    torch.testing.assert_close(compiled(x), layer(x))


def test_numpy_model() -> None:
    """The NumPy twin computes what the masked model does."""
    net = KAN([4, 3, 2], dtype=torch.float64)
    net.layers[0].set_edge_mask(MASK)
    x = torch.randn(6, 4, dtype=torch.float64)
    np.testing.assert_allclose(
        to_numpy_model(net)(x.numpy()), net(x).detach().numpy(), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize(
    "mask", (None, torch.ones(4, 3), MASK, 1 - MASK), ids=("none", "ones", "some", "rest")
)
@pytest.mark.parametrize("before", (None, MASK), ids=("none", "some"))
def test_splines_under_formulas_stay_off(mask: Tensor | None, before: Tensor | None) -> None:
    """Whatever mask is set after `fix`: the edge is its formula alone, also in a state dict and a copy; the
    others follow the mask. `unfix` gives the spline back that a 1 switched on, or that was on before.
    """
    layer, x = KANLinear(4, 3, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    layer.set_edge_mask(before)
    for i in range(4):
        symbolic.fix(layer, i, 1, "sin", params=(1.3, 0.2, 0.7, i))
    formulas = (0.7 * torch.sin(1.3 * x + 0.2)).sum(1) + 6
    layer.set_edge_mask(mask)
    fresh = KANLinear(4, 3, dtype=torch.float64)
    fresh.load_state_dict(layer.state_dict())
    plain = copy.deepcopy(layer)
    plain.set_symbolic(None)
    plain.set_edge_mask(mask)
    for one in (layer, fresh, copy.deepcopy(layer)):
        torch.testing.assert_close(one(x)[:, 1], formulas, rtol=1e-13, atol=1e-13)
        assert torch.equal(one(x)[:, [0, 2]], plain(x)[:, [0, 2]])
    before = torch.ones(4, 3) if before is None else before
    on = torch.ones(4) if mask is None else torch.maximum(mask, before)[:, 1]
    for i in range(4):
        symbolic.unfix(layer, i, 1)
    plain.set_edge_mask(torch.tensor([[1, float(b), 1] for b in on]))
    assert torch.equal(layer(x)[:, 1], plain(x)[:, 1])


def test_a_mask_that_went_round_keeps_formulas_and_splines() -> None:
    """Read, changed elsewhere and set again, a mask changes nothing at a formula, nor what `unfix` finds."""
    layer, x = KANLinear(4, 3, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    before = layer(x)
    symbolic.fix(layer, 2, 1, "sin", params=(1.3, 0.2, 0.7, 0.0))
    fixed, mask = layer(x), layer.edge_mask.clone()
    mask[0, 0] = 0
    layer.set_edge_mask(mask)
    assert torch.equal(layer(x)[:, 1:], fixed[:, 1:]) and not torch.equal(layer(x)[:, 0], fixed[:, 0])
    mask[0, 0] = 1
    layer.set_edge_mask(mask)
    symbolic.unfix(layer, 2, 1)
    assert torch.equal(layer(x), before)


def test_a_spline_beside_its_formula_loads_and_can_be_switched_off() -> None:
    """A state dict may hold both on one edge, as pykan's mode "ns" does: it loads as it was."""
    layer, x = KANLinear(4, 3, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    symbolic.fix(layer, 2, 1, "sin", params=(1.3, 0.2, 0.7, 0.0))
    alone, state = layer(x), layer.state_dict()
    both = KANLinear(4, 3, dtype=torch.float64)
    del state["edge_mask"]
    assert both.load_state_dict(state) == ([], [])
    assert both.edge_mask is None and not torch.equal(both(x), alone)
    mask = torch.ones(4, 3)
    mask[2, 1] = 0
    both.set_edge_mask(mask)
    assert torch.equal(both(x), alone)
