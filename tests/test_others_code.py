"""KANs in which somebody else's code stands between layers: it is run, or refused, and never passed over."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.parametrizations import weight_norm

from harness import DEVICE
from kan_kernels import KAN, KANLinear, grids, symbolic
from kan_kernels.attribution import input_scores
from kan_kernels.deploy import to_c, to_numpy_model
from kan_kernels.growth import expand_depth, expand_width
from kan_kernels.head_functions import prune_functions
from kan_kernels.integrations.convert import to_efficient_kan
from kan_kernels.nn import MultiHeadKANLinear
from kan_kernels.pruning import prune
from kan_kernels.regularization import regularization

F64 = torch.float64


class Scaled(KAN):
    """A KAN that divides x by 10."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / 10)


class Flat(KAN):
    """A KAN of images, whose layers see what they see without it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(-1)


def wide(rows: int = 300) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(rows, 2, dtype=F64, generator=generator) * 20 - 10).to(DEVICE)


def made(kind: type[KAN] = KAN) -> KAN:
    torch.manual_seed(0)
    return kind([2, 3, 1], dtype=F64, device=DEVICE)


def subclassed() -> KAN:
    return made(Scaled)


def hooked() -> KAN:
    net = made()
    net.register_forward_pre_hook(lambda _, x: (x[0] / 10,))
    return net


def hooked_inside() -> KAN:
    net = made()
    net.layers[1].register_forward_pre_hook(lambda _, x: (x[0] / 10,))
    return net


def patched() -> KAN:
    net, layer = made(), KANLinear.forward
    first = net.layers[0]
    first.forward = lambda x: layer(first, x) / 10  # type: ignore[method-assign]
    return net


@pytest.mark.parametrize("make", [subclassed, hooked, hooked_inside, patched])
def test_what_looks_at_data_sees_what_the_layers_see(make: Callable[[], KAN]) -> None:
    """The same as in a module of another kind, which is run; or an error that says why not."""
    net, inside, x = make(), nn.Sequential(make()), wide()
    assert regularization(net, x).item() == regularization(inside, x).item()
    for change in (grids.update_grid, lambda m, x: grids.refine(m, 8, x)):
        y = net(x)
        change(net, x)
        torch.testing.assert_close(net(x), y, rtol=0, atol=0.05)
    grids.update_grid(inside, x)
    plain = make()
    grids.update_grid(plain, x)
    for a, b in zip(plain.layers, inside[0].layers, strict=True):
        assert torch.equal(a.grid, b.grid) and torch.equal(a.spline_weight, b.spline_weight)
    for call in (prune, input_scores):
        with pytest.raises(ValueError, match=r"layers\[[01]\] (gets|returns) something else"):
            call(make(), x)


@pytest.mark.parametrize("make", [subclassed, hooked, hooked_inside, patched])
def test_what_takes_weights_alone_refuses(make: Callable[[], KAN]) -> None:
    """Formulas and exports know nothing of other code."""
    net, x = make(), wide()
    named = symbolic.formula, to_numpy_model, to_c, to_efficient_kan
    for call in named:
        with pytest.raises(ValueError, match=r"has (hooks|a forward of its own)"):
            call(net)
    with pytest.raises(ValueError, match="of which its weights tell nothing"):
        symbolic.polish(net, x, net(x))
    with pytest.raises(ValueError, match="something else"):
        symbolic.auto(net, x)


def test_what_changes_nothing_between_layers_is_no_obstacle() -> None:
    """Hooks that look on, a forward around all layers, torch's pruning."""
    watched, x, seen = made(), wide(), []
    watched.layers[1].register_forward_hook(lambda *_: seen.append(1))
    small, _ = prune(watched, x)
    assert seen and torch.equal(input_scores(watched, x), input_scores(made(), x))
    assert type(prune(made(Flat), x)[0]) is Flat and isinstance(small, KAN)
    zeroed = made()
    torch_prune.l1_unstructured(zeroed.layers[0], "spline_weight", 0.3)
    got = torch.from_numpy(to_numpy_model(zeroed)(x.cpu().numpy()))
    torch.testing.assert_close(got.to(DEVICE), zeroed(x))


def test_a_hook_on_products() -> None:
    """It is seen, as those on layers are."""
    net = KAN([2, (1, 1), 1], dtype=F64, device=DEVICE)
    net.products[0].register_forward_hook(lambda _, x, y: 3 * y)
    with pytest.raises(ValueError, match="hands on something else than products"):
        prune(net, wide())


class WithTime(KAN):
    """A KAN that takes two arguments."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([x, t], 1))


def test_arguments_of_its_own() -> None:
    """Grids take what the model takes; scores say why they cannot."""
    net, x = made(WithTime), wide(60) / 10
    parts = x[:, :1], x[:, 1:]
    for change in (grids.update_grid, lambda m, x: grids.refine(m, 7, x)):
        y = net(*parts)
        change(net, parts)
        torch.testing.assert_close(net(*parts), y, rtol=0, atol=0.05)
    with pytest.raises(ValueError, match="cannot be called with x of its first layer"):
        prune(net, x)


def test_compiled_layers_are_their_layers() -> None:
    """With formulas too."""
    net, x = made(), wide()
    symbolic.fix(net.layers[0], 0, 0, "sin", params=(1.0, 0.0, 1.0, 0.0))
    want = input_scores(net, x)
    net.layers[0] = torch.compile(net.layers[0], backend="eager")
    assert torch.equal(input_scores(net, x), want)


def test_penalty_of_a_layer_that_is_there_twice_in_a_graph() -> None:
    """No hooks are needed for it."""
    net, x = KAN([2, 2, 2], dtype=F64, device=DEVICE), wide() / 10
    net.layers[1] = net.layers[0]
    step = torch.compile(lambda x: regularization(net, x), backend="eager", fullgraph=True)
    torch.testing.assert_close(step(x), regularization(net, x))


def test_shared_weights() -> None:
    """Two grids cannot be fitted in one tensor; a layer that is there twice is one layer."""
    x = torch.rand(40, 3, dtype=F64, device=DEVICE)
    net = KAN([3, 3, 3], dtype=F64, device=DEVICE)
    net.layers[1].spline_weight = net.layers[0].spline_weight
    before = copy.deepcopy(net.state_dict())
    for change in (grids.update_grid, lambda m, _: grids.refine(m, 10), lambda m, x: grids.refine(m, 7, x)):
        with pytest.raises(ValueError, match="layers share a spline_weight or a grid"):
            change(net, x)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    net.layers[1].spline_weight = nn.Parameter(net.layers[0].spline_weight.detach())
    with pytest.raises(ValueError, match="layers share"):
        grids.update_grid(net, x)
    twice = KAN([3, 3, 3], dtype=F64, device=DEVICE)
    twice.layers[1] = twice.layers[0]
    assert regularization(twice, x).item() == regularization(nn.Sequential(twice), x).item()
    deep = expand_depth(twice)
    assert deep.layers[0] is deep.layers[1] and len(list(deep.parameters())) == 4
    torch.testing.assert_close(deep(x), twice(x))
    y = twice(x)
    grids.refine(twice, 10, x)
    torch.testing.assert_close(twice(x), y)


def test_parametrized_weights_are_refused_by_name() -> None:
    """What writes weights says so before anything is made."""
    x = wide(20)
    net = made()
    weight_norm(net.layers[0], "spline_weight")
    for call in (prune, lambda m, _: expand_width(m, 1), grids.update_grid):
        with pytest.raises(ValueError, match="spline_weight is parametrized"):
            call(net, x)
    heads = MultiHeadKANLinear(2, 8, 2, dtype=F64, device=DEVICE)
    weight_norm(heads, "mix")
    with pytest.raises(ValueError, match="mix is parametrized"):
        prune_functions(heads, x)


def frozen(net: nn.Module) -> bool:
    return not any(p.requires_grad for p in net.parameters())


def test_frozen_parameters_stay_frozen() -> None:
    """Biases and formulas too, in what is made of a model."""
    x: Any = wide(50)
    net = KAN([2, 4, 2], bias=True, dtype=F64, device=DEVICE)
    symbolic.fix(net.layers[0], 0, 0, "sin", params=(1.0, 0.0, 1.0, 0.0))
    net.requires_grad_(False)
    assert frozen(prune(net, x, node_threshold=0, edge_threshold=0.02, keep_means=True)[0])
    assert frozen(expand_width(net, 1))
    symbolic.fix(net.layers[0], 1, 1, "exp", params=(1.0, 0.0, 1.0, 0.0))
    assert frozen(net)
    heads = MultiHeadKANLinear(2, 8, 2, bias=True, dtype=F64, device=DEVICE).requires_grad_(False)
    heads.mix[1] = 1e-6
    assert frozen(prune_functions(heads, x, threshold=1e-4, keep_means=True)[0])
