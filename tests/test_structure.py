"""Attribution to one node, interactions, separability, symmetry, growth, selected inputs, activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import DEVICE
from kan_kernels import KAN, KANLinear, symbolic
from kan_kernels.attribution import edge_scores, input_scores, interactions, node_scores
from kan_kernels.grids import refine, update_grid
from kan_kernels.growth import expand_depth, expand_width
from kan_kernels.inspection import activations
from kan_kernels.nn import SelectedInputs
from kan_kernels.plotting import plot
from kan_kernels.pruning import prune, prune_inputs
from kan_kernels.regularization import regularization
from kan_kernels.structure import groups, separability, symmetry

F64 = torch.float64


def points(rows: int = 200, columns: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(rows, columns, dtype=F64, generator=generator) * 2 - 1).to(DEVICE)


def make(widths: list[int], seed: int = 0, **options: Any) -> KAN:
    torch.manual_seed(seed)
    return KAN(widths, **{"dtype": F64, "device": DEVICE, **options})


def test_scores_of_one_output_are_those_of_a_model_with_it_alone() -> None:
    """Cut out the other outputs: the same scores; their mean over outputs is the score of all."""
    model, x = make([3, 4, 2]), points()
    each = []
    for o in (0, 1):
        alone = make([3, 4, 1])
        with torch.no_grad():
            alone.layers[0].load_state_dict(model.layers[0].state_dict())
            for name in ("spline_weight", "base_weight"):
                getattr(alone.layers[1], name).copy_(getattr(model.layers[1], name)[..., o : o + 1])
        scores = input_scores(model, x, output=o)
        torch.testing.assert_close(scores, input_scores(alone, x))
        nodes = node_scores(model, x, kind="attribution", output=o)
        assert nodes[2].tolist() == [float(o == 0), float(o == 1)]
        each.append(scores)
    torch.testing.assert_close((each[0] + each[1]) / 2, input_scores(model, x))


def test_scores_of_one_node() -> None:
    """Of a hidden node: those of the network below it; the layers above get zeros."""
    model, x = make([3, 4, 2, 1]), points()
    below = KAN([3, 4, 2], dtype=F64, device=DEVICE)
    for n in (0, 1):
        below.layers[n].load_state_dict(model.layers[n].state_dict())
    edges = edge_scores(model, x, kind="attribution", node=(2, 1))
    for got, want in zip(edges, edge_scores(below, x, kind="attribution", output=1), strict=False):
        torch.testing.assert_close(got, want)
    assert edges[2].shape == (2, 1) and not edges[2].any()
    first = edge_scores(model, x, kind="attribution", node=(1, 3))[0]
    assert not first[:, :3].any() and first[:, 3].any()


def product_of_sums() -> KAN:
    """[4, 3, 1]: nodes of inputs (0, 1), (2,) and (1, 3)."""
    model = make([4, 3, 1])
    mask = torch.tensor([[1, 0, 0], [1, 0, 1], [0, 1, 0], [0, 0, 1]])
    model.layers[0].set_edge_mask(mask)
    return model


def test_interactions() -> None:
    """The sets that the masks leave; through a row of nodes; by name; less with a threshold."""
    model, x = product_of_sums(), points(200, 4)
    hidden, outputs = interactions(model, x, threshold=0)
    assert hidden == [(0, 1), (2,), (1, 3)] and outputs == [(0, 1, 2, 3)]
    assert interactions(model, x, threshold=0, names=["a", "b", "c", "d"])[0][2] == ("b", "d")
    wide = SelectedInputs(model, [5, 1, 2, 0], 6)
    full = torch.zeros(200, 6, dtype=x.dtype)
    full[:, [5, 1, 2, 0]] = x
    assert interactions(wide, full, threshold=0)[0] == [(5, 1), (2,), (1, 0)], "columns of the full x"
    assert interactions(wide, full, threshold=0, names=list("uvwxyz"))[0][2] == ("v", "u")
    row = interactions(model, x, threshold=0.3)[1][0]
    scores = input_scores(model, x, output=0)
    assert row == tuple(i for i in range(4) if scores[i] > 0.3)


def test_prune_keeps_and_drops_what_it_is_told() -> None:
    """Nodes of any score; the reason is in the report, and what cannot be is an error."""
    model, x = make([2, 4, 1]), points(200, 2)
    options = {"node_threshold": 0.0, "edge_threshold": 0.0}
    small, report = prune(model, x, drop_nodes=[(1, 2)], **options)
    assert report.kept[1] == [0, 1, 3] and report.nodes[0].reason == "drop_nodes"
    values = activations(model, x)[1]
    torch.testing.assert_close(small(x), values.outputs - values.edges[:, 2])
    threshold = float(node_scores(model, x)[1].sort().values[-2])
    strict = {"node_threshold": threshold, "edge_threshold": 10.0}
    kept = prune(model, x, keep_nodes=[(1, 0), (1, 1)], **strict)[1]
    assert kept.kept[1] == [0, 1] and kept.edges_left == 6
    with pytest.raises(ValueError, match=r"keep_nodes, drop_nodes: got \(1, 0\) in both"):
        prune(model, x, keep_nodes=[(1, 0)], drop_nodes=[(1, 0)])
    with pytest.raises(ValueError, match="drop_nodes: row: got 2"):
        prune(model, x, drop_nodes=[(2, 0)])
    with pytest.raises(ValueError, match="keep_nodes: node of row 1: got 4"):
        prune(model, x, keep_nodes=[(1, 4)])
    with pytest.raises(TypeError, match="keep_nodes: got 3, expected a pair"):
        prune(model, x, keep_nodes=[3])  # type: ignore[list-item]
    model.layers[0].set_edge_mask(torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1]]))
    with pytest.raises(ValueError, match=r"keep_nodes: got \(1, 0\), but no edge would lead to it"):
        prune(model, x, keep_nodes=[(1, 0)])


BAD_TARGETS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"output": 0}, "kind: got 'l1' with output or node"),
    ({"kind": "attribution", "output": 2}, "output: got 2"),
    ({"kind": "attribution", "output": 0, "node": (1, 0)}, "output, node: got both"),
    ({"kind": "attribution", "node": (0, 0)}, "node: row: got 0"),
    ({"kind": "attribution", "node": (1, 9)}, "node: node of row 1: got 9"),
    ({"kind": "attribution", "node": 1}, "node: got 1, expected a pair"),
)


@pytest.mark.parametrize("options, message", BAD_TARGETS)
def test_bad_targets(options: dict[str, Any], message: str) -> None:
    """Are errors that name the argument."""
    with pytest.raises((TypeError, ValueError), match=message):
        edge_scores(make([3, 4, 2]), points(), **options)


FUNCTIONS: dict[str, tuple[Any, list, list]] = {  # what separates additively and multiplicatively
    "(x + y) z": (lambda x: (x[:, 0] + x[:, 1]) * x[:, 2], [(0, 1, 2)], [(0, 1), (2,)]),
    "sin(x y) + z^2": (lambda x: (x[:, 0] * x[:, 1]).sin() + x[:, 2] ** 2, [(0, 1), (2,)], [(0, 1, 2)]),
    "exp(x + y + z)": (lambda x: x.sum(1).exp(), [(0, 1, 2)], [(0,), (1,), (2,)]),
    "x y + 1000": (lambda x: x[:, 0] * x[:, 1] + 1000, [(0, 1), (2,)], [(0, 1), (2,)]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("unit", (1.0, 1e-4))
def test_separability_of_formulas(name: str, unit: float) -> None:
    """Groups are exact, whatever the unit of x or y; scores of what separates are rounding errors."""
    function, additive, multiplicative = FUNCTIONS[name]
    x = points() * unit
    for kind, want in (("additive", additive), ("multiplicative", multiplicative)):
        score = separability(lambda x: 50 * function(x / unit), x, kind=kind)
        assert groups(score) == want, (kind, score)
        assert not score.diagonal().any() and torch.equal(score, score.t())
        assert all(score[i, j] < 1e-9 or score[i, j] > 0.05 for i in range(3) for j in range(3))


def test_general_separability() -> None:
    """F(g(x) + h(y)) of any outer function, and what is not one."""
    x = points(columns=2) + 2
    for function in (
        lambda x: (x[:, 0].sin() + x[:, 1] ** 2).exp(),
        lambda x: (x[:, 0] * x[:, 1] + 1).log(),
        lambda x: x.square().sum(1).sqrt(),
        lambda x: x.sum(1),
    ):
        assert float(separability(function, x, kind="general").max()) < 1e-9
    mixed = separability(lambda x: x[:, 0] * x[:, 1] + x[:, 0] ** 2, x, kind="general")
    assert float(mixed[0, 1]) > 0.05


def test_separability_of_a_network() -> None:
    """Of one output of a KAN: what its masks say, without training."""
    model = product_of_sums()
    model.layers[1].set_edge_mask(torch.tensor([[1], [1], [0]]))
    score = separability(model, points(200, 4))
    assert groups(score, 1e-9) != [(0, 1, 2, 3)] and score[3].max() < 1e-12
    assert score[0, 2] < 1e-12 < 1e-6 < score[0, 1]


def test_symmetry() -> None:
    """What enters through one number has score 0, in any units; what does not has not."""
    x = points() * torch.tensor([1.0, 1e3, 1e-3], dtype=F64, device=DEVICE)
    inner = lambda x: (x[:, 0] * x[:, 1] / 1e3).sin() + (x[:, 2] * 1e3) ** 2  # noqa: E731
    assert (
        symmetry(inner, x, [0, 1])
        < 1e-12
        < 0.01
        < symmetry(lambda x: x[:, 0] * x[:, 2] * 1e3 + x[:, 1] / 1e3, x, [0, 1])
    )
    assert (
        symmetry(lambda x: torch.stack([x[:, 0], (x[:, 0] - x[:, 1]) * x[:, 2]], 1), x, [0, 1], output=1)
        < 1e-12
    )


BAD_FUNCTIONS: tuple[tuple[Any, str], ...] = (
    (lambda x: separability(lambda x: x, x, kind="both"), "kind: got 'both'"),
    (lambda x: separability(lambda x: x, x, output=3), "output: got 3"),
    (lambda x: separability(lambda x: x.sum(), x), "function: returned shape"),
    (lambda x: separability(lambda x: x[:, 0].log(), x), "function: has values or derivatives"),
    (lambda x: separability(lambda x: x, x[:1]), "x: got shape"),
    (lambda x: symmetry(lambda x: x, x, [0]), "inputs: got"),
    (lambda x: symmetry(lambda x: x, x, [0, 1, 2]), "inputs: got"),
    (lambda x: symmetry(lambda x: x[:, 0].sqrt(), x, [0, 1]), "function: has derivatives"),
)


@pytest.mark.parametrize("call, message", BAD_FUNCTIONS)
def test_bad_functions(call: Any, message: str) -> None:
    """Are errors that say what is wrong."""
    with pytest.raises((TypeError, ValueError), match=message):
        call(points())


@pytest.mark.parametrize("base", ("silu", "identity", None))
def test_growth_keeps_the_function(base: str | None) -> None:
    """Wider and deeper, with masks, formulas and bias: the same outputs, inside the grid and outside."""
    model, x = make([3, 4, 2], base=base, bias=True, grid_size=[4, 6]), 3 * points()
    model.layers[0].set_edge_mask((torch.arange(12) % 5 != 0).reshape(3, 4))
    symbolic.fix(model.layers[1], 1, 0, "sin", params=(1, 0.5, 2, -1))
    want = model(x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    wide = expand_width(model, 1, count=3)
    torch.testing.assert_close(wide(x), want, rtol=1e-13, atol=1e-13)
    assert [y.out_features for y in wide.layers] == [7, 2] and wide.layers[0].spline_weight[..., 4:].any()
    for at, width in ((0, 3), (1, 4), (None, 2)):
        deep = expand_depth(model, at, x)
        assert torch.equal(deep(x), want) and len(deep.layers) == 3
        assert deep.layers[2 if at is None else at].in_features == width
    low, high = expand_depth(model, 1, x).layers[1].grid_range
    inside = model.layers[0](x)
    assert low == pytest.approx(float(inside.min())) and high == pytest.approx(float(inside.max()))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    grown = expand_width(wide, 1)
    (grown(x) - want.detach() - x[:, :1]).square().mean().backward()
    assert grown.layers[1].spline_weight.grad[4:].any()  # new edges learn


def test_growth_refuses() -> None:
    """What is no KAN, a row that is not hidden, x on which the model is not finite."""
    model = make([3, 4, 2])
    for call, message in (
        (lambda: expand_width(KANLinear(1, 1), 1), "model: got KANLinear"),  # type: ignore[type-var]
        (lambda: expand_width(make([3, 2]), 1), "model: got 1 layer"),
        (lambda: expand_width(model, 2), "row: got 2"),
        (lambda: expand_depth(model, 3), "at: got 3"),
        (lambda: expand_depth(model, 1, points() / 0), "x: sample"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()


def test_options_of_each_layer() -> None:
    """Grid sizes, orders and noise, one for each layer, or one for all; the wrong number is an error."""
    model = make([2, 3, 1], grid_size=[4, 7], spline_order=[2, 3], noise_scale=[0.0, 5.0])
    first, second = model.layers
    assert (first.grid_size, second.grid_size, first.spline_order, second.spline_order) == (4, 7, 2, 3)
    assert not first.spline_weight.any() and float(second.spline_weight.std()) > 1
    assert model(points(8, 2)).shape == (8, 1)
    torch.manual_seed(0)
    model.reset_parameters()
    assert not first.spline_weight.any() and float(second.spline_weight.std()) > 1
    with pytest.raises(ValueError, match="grid_size: got"):
        KAN([2, 3, 1], grid_size=[4])
    with pytest.raises(ValueError, match="noise_scale: got -1"):
        KANLinear(1, 1, noise_scale=-1)


def test_a_pruned_model_of_the_full_input() -> None:
    """SelectedInputs takes all columns and looks at those that stayed; its state dict loads."""
    model, x = make([3, 2, 1]), points()
    small, report = prune_inputs(model, x, keep=[0, 2])
    whole = SelectedInputs(small, report.kept[0], report.widths[0][0], names=["a", "b", "c"])
    spoiled = x.clone()
    spoiled[:, 1] = torch.nan
    assert torch.equal(whole(spoiled), small(x[:, [0, 2]])) and whole.names == ["a", "c"]
    other = SelectedInputs(make([2, 2, 1], seed=5), [0, 1], 3, names=["a", "b", "c"])
    other.load_state_dict(whole.state_dict())
    assert other.names == ["a", "c"]
    assert torch.equal(other(x), whole(x))
    for kept, message in (([], "kept: got"), ([1, 1], "kept: got"), ([3], "kept: input: got 3")):
        with pytest.raises(ValueError, match=message):
            SelectedInputs(small, kept, 3)
    with pytest.raises(ValueError, match=r"x: got shape \(200, 2\)"):
        whole(x[:, :2])


def test_activations() -> None:
    """Edges add up to nodes, bias included; what is handed on is what the next layer gets."""
    model, x = make([3, 4, 2], bias=True), points(20)
    with torch.no_grad():
        model.layers[0].bias.fill_(2.0)
    first, second = activations(model, x)
    assert torch.equal(first.inputs, x) and torch.equal(first.outputs, second.inputs)
    torch.testing.assert_close(first.edges.sum(1) + 2, first.outputs)
    torch.testing.assert_close(second.outputs, model(x).detach())
    assert not first.edges.requires_grad


def test_tools_take_a_pruned_model_of_the_full_input() -> None:
    """Scores, activations, pictures, formulas and their fits: of all columns, by their names."""
    pytest.importorskip("sympy")
    x = points()
    small = make([2, 1], seed=3)
    whole = SelectedInputs(small, [2, 0], 3, names=["a", "b", "c"])
    spoiled, kept = x.clone(), x[:, [2, 0]]
    spoiled[:, 1] = torch.nan
    assert torch.equal(input_scores(whole, spoiled), input_scores(small, kept))
    assert torch.equal(activations(whole, spoiled)[0].edges, activations(small, kept)[0].edges)
    with pytest.raises(TypeError, match=r"model: got SelectedInputs, .* \.model and \.select\(x\)"):
        prune(whole, x)
    y = (2 * x[:, 2] - 3 * x[:, 0])[:, None]
    symbolic.auto(whole, spoiled, library=["x"], r2_threshold=0)
    assert symbolic.polish(whole, spoiled, y) < 1e-12
    assert str(symbolic.formula(whole, digits=6)) == "[-3*a + 2*c]"
    assert str(symbolic.formula(whole, ["p", "q", "r"], digits=6, normalizer=(0.0, [1.0, 1.0, 2.0]))) == (
        "[-3*p + r]"
    )
    assert symbolic.to_function(whole)(1.0, 5.0, 2.0)[0] == pytest.approx(1.0)
    source: dict = {}
    exec(symbolic.to_python(whole), source)
    assert source["kan"](a=1.0, b=5.0, c=2.0) == pytest.approx(1.0)
    assert "double a, double b, double c" in symbolic.to_c(whole)
    pytest.importorskip("matplotlib")
    texts = {text.get_text() for text in plot(whole, x).axes[0].texts}
    assert {"a", "c"} <= texts and "b" not in texts
    texts = {text.get_text() for text in plot(whole, x, inputs=["p", "q", "r"]).axes[0].texts}
    assert {"p", "r"} <= texts and "q" not in texts


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_scores_whatever_the_mode(mode: Any) -> None:
    """Derivatives are there where nobody records them; values that are detached are an error."""
    x = points(50)

    def function(x: Tensor) -> Tensor:
        return (x[:, 0] * x[:, 1] * x[:, 2]).sin()

    for kind in ("additive", "multiplicative"):
        want = separability(function, x, kind=kind)
        with mode():
            got = separability(function, x + 0, kind=kind)
        assert torch.equal(got, want) and want[0, 1] > 0.01 and not got.requires_grad
    with mode():
        assert symmetry(lambda x: x[:, 0] * x[:, 2] + x[:, 1], x + 0, [0, 1]) > 0.01
    with pytest.raises(ValueError, match="function: its values are detached"):
        separability(lambda x: function(x).detach(), x)


def test_symmetry_on_grids_of_points() -> None:
    """Pairs of rows differ in the other inputs, whatever the order of the rows repeats."""
    axis = torch.linspace(0.5, 1.5, 10, dtype=F64, device=DEVICE)
    x = torch.cartesian_prod(axis, axis, axis)

    def function(x: Tensor) -> Tensor:
        return x[:, 0] * x[:, 2] + x[:, 1]

    want = symmetry(function, x[torch.randperm(len(x))], [0, 1])
    for seed in range(20):
        assert symmetry(function, x, [0, 1], seed=seed) == pytest.approx(want, rel=0.2)
        assert symmetry(function, points(20).repeat(50, 1), [0, 1], seed=seed) > 0.01
        assert symmetry(function, points(2), [0, 1], seed=seed) >= 0  # two rows are a pair
    with pytest.raises(ValueError, match="no pair of its rows differs"):
        symmetry(function, torch.tensor([[1.0, 2.0, 3.0], [2.0, 3.0, 3.0]], device=DEVICE), [0, 1])


def test_a_model_with_a_compiled_layer() -> None:
    """Grids, pruning and penalties take it as if it were not: the same functions."""
    x = points()
    plain, compiled = make([3, 4, 2]), make([3, 4, 2])
    compiled.layers[0] = torch.compile(compiled.layers[0], backend="eager")
    for change in (update_grid, lambda model, x: refine(model, 7, x), lambda model, _: refine(model, 14)):
        for model in (plain, compiled):
            change(model, x)
        torch.testing.assert_close(compiled(x), plain(x), rtol=0, atol=0)
    torch.testing.assert_close(regularization(compiled, x), regularization(plain, x), rtol=0, atol=0)
    for call in (prune, lambda model, x: prune_inputs(model, x, keep=[0, 2])):
        (one, report), (other, found) = call(plain, x), call(compiled, x)
        assert report.kept == found.kept
        torch.testing.assert_close(other(x[:, report.kept[0]]), one(x[:, report.kept[0]]), rtol=0, atol=0)
