"""Pictures show what is there, leave out what is not, and come out the same every time."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import DEVICE
from kan_kernels import KAN, KANLinear
from kan_kernels.inspection import edge_magnitudes, edge_values
from kan_kernels.plotting import plot, plot_edges, plot_history, save
from kan_kernels.symbolic import Edge, SymbolicEdges
from kan_kernels.training import History

matplotlib = pytest.importorskip("matplotlib")
F64 = torch.float64
VERMILION = matplotlib.colors.to_rgb("#d55e00")


def make(widths: list[int], **options: Any) -> KAN:
    return KAN(widths, **{"dtype": F64, "device": DEVICE, **options})


def data(features: int, samples: int = 100) -> Tensor:
    return torch.rand(samples, features, dtype=F64, device=DEVICE) * 2 - 1


def collections(figure: Any, kind: str) -> list[Any]:
    return [c for c in figure.axes[0].collections if type(c).__name__ == kind]


def boxes(figure: Any) -> int:
    return sum(len(c.get_paths()) for c in collections(figure, "PolyCollection"))


def graphs(figure: Any) -> list[Any]:
    """The curves in the boxes: the last line collection."""
    return collections(figure, "LineCollection")[-1].get_segments()


def texts(figure: Any) -> list[str]:
    return [t.get_text() for t in figure.axes[0].texts]


def symbolic(layer: KANLinear, *edges: Edge) -> None:
    layer.set_symbolic(SymbolicEdges(layer.in_features, layer.out_features, edges, dtype=F64, device=DEVICE))
    mask = torch.ones(layer.in_features, layer.out_features)
    for edge in edges:
        mask[edge.input, edge.output] = 0
    layer.set_edge_mask(mask)


def test_network_as_in_the_paper() -> None:
    """One box an edge, its graph that of the edge's function over the data, opacity by magnitude."""
    net, x = make([2, 5, 1]), data(2)
    figure = plot(net, x, inputs=["a", "b"], outputs=["f"], title="T", beta=2.0)
    assert boxes(figure) == 15 and len(graphs(figure)) == 15
    assert texts(figure) == ["a", "b", "f", "T"]
    layer = net.layers[0]
    points = torch.stack([torch.linspace(float(c.min()), float(c.max()), 101) for c in x.T], 1).to(x)
    phi = edge_values(layer, points)[:, 0, 3].cpu().numpy()
    drawn = graphs(figure)[3][:, 1]
    assert np.corrcoef(drawn, phi)[0, 1] > 1 - 1e-9
    lines = collections(figure, "LineCollection")
    magnitude = float(edge_magnitudes(layer, x)[0, 3])
    shown = lines[-1].get_colors()[3][3]
    strength = 0.06 + 0.94 * np.tanh(2.0 * magnitude)
    assert shown == pytest.approx(0.15 + 0.85 * strength, rel=1e-6)
    assert lines[0].get_colors()[6][3] == pytest.approx(strength, rel=1e-6)  # two lines an edge


def test_pruned_is_gone_and_formulas_are_marked() -> None:
    net, x = make([2, 4, 1]), data(2)
    first, last = net.layers
    symbolic(first, Edge(0, 1, "sin", (3.0, 0.0, 1.0, 0.0)))
    mask = first.edge_mask.clone()
    mask[1, 2] = 0  # an edge
    mask[:, 3] = 0  # a node
    first.set_edge_mask(mask)
    last.set_edge_mask(torch.tensor([[1], [1], [1], [0]]))
    figure = plot(net, x)
    assert boxes(figure) == (8 - 3) + 3
    assert sum(text.startswith("sin") for text in texts(figure)) == 1
    colours = collections(figure, "LineCollection")[-1].get_colors()
    assert sum(np.allclose(c[:3], VERMILION) for c in colours) == 1
    drawn = graphs(figure)[[np.allclose(c[:3], VERMILION) for c in colours].index(True)][:, 1]
    u = np.linspace(float(x[:, 0].min()), float(x[:, 0].max()), 101)
    assert np.corrcoef(drawn, np.sin(3.0 * u))[0, 1] > 1 - 1e-9
    nodes = collections(figure, "PathCollection")[0].get_offsets()
    assert len(nodes) == 2 + 3 + 1


@pytest.mark.parametrize(
    "widths,kind",
    [([2, 5, 1], "boxes"), ([8, 8, 1], "boxes"), ([16, 16], "boxes"), ([3, 16], "boxes"), ([16, 3], "boxes"),
     ([64, 64, 10], "heat")],
    ids=str,
)  # fmt: skip
def test_wider_layers(widths: list[int], kind: str) -> None:
    """Boxes up to 16 nodes a side, none of them overlapping; an image beyond; the size stays sensible."""
    net = make(widths)
    figure = plot(net, data(widths[0], 20))
    images = figure.axes[0].images
    if kind == "heat":
        assert len(images) == 2 and boxes(figure) == 0
        want = edge_magnitudes(net.layers[0], data(widths[0], 20)).shape
        assert images[0].get_array().shape == tuple(want)
    else:
        assert not images
        corners = np.array(
            [p.vertices[:4] for c in collections(figure, "PolyCollection") for p in c.get_paths()]
        )
        assert len(corners) == sum(a * b for a, b in pairwise(widths))
        low, high = corners.min(1), corners.max(1)
        apart = (low[:, None] >= high[None]) | (high[:, None] <= low[None])
        assert (apart.any(-1) | np.eye(len(low), dtype=bool)).all()
        assert (high - low).min() > 0.5  # inches
    width, height = figure.get_size_inches()
    assert 4 < width < 20 and 2 < height < 27


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("widths", ([2, 3, 1], [40, 30, 20]), ids=str)
def test_nothing_left(widths: list[int]) -> None:
    """A model without edges is its inputs and outputs."""
    net = make(widths)
    for layer in net.layers:
        layer.set_edge_mask(torch.zeros(layer.in_features, layer.out_features))
    figure = plot(net, data(widths[0], 20))
    figure.canvas.draw()
    dots = sum(len(c.get_offsets()) for c in collections(figure, "PathCollection"))
    assert dots == widths[0] + widths[-1] and boxes(figure) == 0 and not figure.axes[0].images


def test_heat_map_values() -> None:
    """A row for every input from below, a column for every output; masked edges are blank, formulas dots."""
    net, x = make([20, 30]), data(20, 50)
    symbolic(net.layers[0], Edge(4, 7, "sin", (1.0, 0.0, 1.0, 0.0)))
    mask = net.layers[0].edge_mask.clone()
    mask[0, 1] = 0
    net.layers[0].set_edge_mask(mask)
    figure = plot(net, x)
    image = figure.axes[0].images[0]
    values, want = image.get_array(), edge_magnitudes(net.layers[0], x).cpu().numpy()
    assert image.origin == "lower" and np.ma.getmaskarray(values)[0, 1]
    want[0, 1] = 0
    np.testing.assert_allclose(np.ma.filled(values, 0), want)
    left, right, low, high = image.get_extent()
    dot = collections(figure, "PathCollection")[-1].get_offsets()[0]
    assert (dot[0] - left) / (right - left) == pytest.approx(7.5 / 30)
    assert (dot[1] - low) / (high - low) == pytest.approx(4.5 / 20)


def test_without_data_the_knots_range_counts() -> None:
    layer = KANLinear(1, 1, 4, 2, grid_range=(2.0, 6.0), dtype=F64, device=DEVICE)
    drawn = graphs(plot(layer))[0][:, 1]
    phi = (
        edge_values(layer, torch.linspace(2, 6, 101, dtype=F64, device=DEVICE).unsqueeze(1))
        .flatten()
        .cpu()
        .numpy()
    )
    assert np.corrcoef(drawn, phi)[0, 1] > 1 - 1e-9


@pytest.mark.parametrize("case", ("constant", "one sample", "nan", "pole", "float16"))
def test_degenerate_functions(case: str) -> None:
    """Flat, undefined and infinite curves are drawn as far as they can be, without a warning."""
    net, x = make([2, 2, 1]), data(2)
    if case == "constant":
        with torch.no_grad():
            net.layers[0].spline_weight.zero_()
            net.layers[0].base_weight.zero_()
    if case == "one sample":
        x = x[:1]
    if case == "nan":
        with torch.no_grad():
            net.layers[0].base_weight[0, 0] = torch.nan
    if case == "pole":
        symbolic(net.layers[0], Edge(0, 0, "1/x", (1.0, 0.0, 1.0, 0.0)))
        x[0, 0] = 0.0
    if case == "float16":
        net, x = net.half(), x.half()
    figure = plot(net, x)
    assert boxes(figure) == 6
    figure.canvas.draw()


def test_deterministic_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model gives the same bytes on another day, and no pyplot figure is left behind.

    matplotlib's own savefig writes the day, and random names into an SVG.
    """
    import matplotlib.pyplot

    others = matplotlib.pyplot.get_fignums()
    net, x = make([2, 3, 1]), data(2)
    for suffix in ("svg", "png", "pdf"):
        ours, plain = [], []
        for day in range(2):
            monkeypatch.setenv("SOURCE_DATE_EPOCH", str(86400 * day))
            figure, path = plot(net, x, title="net"), tmp_path / f"{day}.{suffix}"
            save(figure, path)
            ours.append(path.read_bytes())
            figure.savefig(path)
            plain.append(path.read_bytes())
        assert ours[0] == ours[1] and len(ours[0]) > 3000
        assert plain[0] != plain[1] or suffix == "png", "the comparison cannot fail"
    assert matplotlib.pyplot.get_fignums() == others


def test_own_axes_and_settings() -> None:
    """ax= draws into the user's figure; global settings stay as they were."""
    from matplotlib.figure import Figure

    before = dict(matplotlib.rcParams)
    own = Figure()
    left, right = own.subplots(1, 2)
    history = History(train_loss=[1.0, 0.1])
    assert plot(make([2, 2, 1]), data(2), ax=left) is own and plot_history(history, ax=right) is own
    assert left.collections and len(right.lines) == 1
    assert dict(matplotlib.rcParams) == before


def test_page_of_edges() -> None:
    """Chosen edges in their order, or the largest; curve, knots and density in each panel."""
    layer, x = KANLinear(3, 4, 5, 2, dtype=F64, device=DEVICE), data(3, 300)
    symbolic(layer, Edge(2, 3, "exp", (1.0, 0.0, 5.0, 0.0)))
    figure = plot_edges(layer, x, [(2, 3), (0, 1), (1, 1)], columns=2, inputs=["a", "b", "c"])
    titles = [a.get_title(loc="left") for a in figure.axes]
    assert titles[0].startswith("c → output 3\nexp, r² < 0, mean") and titles[1].startswith(
        "a → output 1\nmean"
    )
    panel = figure.axes[1]
    u, drawn = panel.lines[1].get_data()
    want = edge_values(layer, torch.tensor(u, dtype=F64, device=DEVICE).unsqueeze(1).expand(-1, 3))[:, 0, 1]
    np.testing.assert_allclose(drawn, want.cpu().numpy(), atol=1e-12)
    low, high = float(x[:, 0].min()), float(x[:, 0].max())
    assert u[0] < low and u[-1] > high
    ticks = [
        s[0, 0] for c in panel.collections if type(c).__name__ == "LineCollection" for s in c.get_segments()
    ]
    inside = layer.grid[0][(layer.grid[0] >= u[0]) & (layer.grid[0] <= u[-1])].cpu().numpy()
    np.testing.assert_allclose(ticks, inside)
    assert not figure.axes[3].axison
    mask = layer.edge_mask.clone()
    mask[0, 0] = 0
    layer.set_edge_mask(mask)
    largest = plot_edges(layer, x)
    assert len([a for a in largest.axes if a.axison]) == 11
    assert largest.axes[0].get_title(loc="left").startswith("input 2 → output 3")


def test_formulas_stand_with_their_r2() -> None:
    """That of the fit, on the same data, never rounded up; none against a constant."""
    from kan_kernels import symbolic

    net, x = make([2, 2, 1]), data(2, 300)
    layer = net.layers[0]
    with torch.no_grad():
        torch.nn.init.normal_(layer.spline_weight)
        layer.spline_weight[1, :, 1] = layer.base_weight[1, 1] = 0.0
    r2 = symbolic.fix(layer, 0, 0, "sin", x).r2
    symbolic.fix(layer, 1, 1, "x", params=(1.0, 0.0, 1.0, 0.0))
    shown = [text for text in texts(plot(net, x)) if text.startswith(("sin", "x\n")) or text == "x"]
    assert shown[1] == "x" and shown[0].startswith("sin\nr² 0.")
    value = float(shown[0].split()[-1])
    assert 0 <= r2 - value < 1.1e-4 and 0.01 < r2 < 0.999
    (panel,) = plot_edges(layer, x, [(0, 0)]).axes
    assert f"sin, r² {value:.4g}, mean" in panel.get_title(loc="left")


def test_rows_and_columns_are_named() -> None:
    """Every row of a crossbar at its height; of a heat map as many of both sides as there is room for."""
    names = [f"in {i}" for i in range(8)]
    figure = plot(make([8, 6, 1]), data(8), inputs=names)
    rows = [t for t in figure.axes[0].texts if t.get_text() in names and t.get_ha() == "right"]
    assert [t.get_text() for t in rows] == names
    heights = np.array(
        [p.vertices[:4, 1] for c in collections(figure, "PolyCollection") for p in c.get_paths()]
    )
    middles = sorted({round(float(h.mean()), 3) for h in heights})[:8]
    np.testing.assert_allclose([t.get_position()[1] for t in rows], middles, atol=0.1)
    wide = [f"a long name {o}" for o in range(40)]
    figure = plot(make([40, 30, 40]), data(40), outputs=wide)
    first, last = figure.axes[0].images[0].get_extent(), figure.axes[0].images[1].get_extent()
    for (_, _, low, high), names, count in (
        (first, [f"$x_{{{i + 1}}}$" for i in range(40)], 40),
        (last, [str(i) for i in range(30)], 30),
    ):
        seen = {
            t.get_text(): t.get_position()[1]
            for t in figure.axes[0].texts
            if t.get_ha() == "right" and low < t.get_position()[1] < high
        }
        assert 12 <= len(seen) <= 24
        for name, height in seen.items():
            assert (height - low) / (high - low) == pytest.approx((names.index(name) + 0.5) / count)
    columns = [t for t in figure.axes[0].texts if t.get_rotation() == 90]
    assert [t.get_text() for t in columns] == wide[::2]


def test_history_marks() -> None:
    """Losses on a logarithmic axis; refinements, grid updates and the end where they happened."""
    history = History(
        train_loss=[1.0, 0.5, 0.2, 0.1],
        evaluated=[0, 2],
        test_loss=[2.0, 0.4],
        events=[
            {"step": 1, "kind": "grid_update"}, {"step": 2, "kind": "grid_update"},
            {"step": 2, "kind": "refine", "grid_size": 10}, {"step": 5, "kind": "diverged", "restored": 3},
        ],
    )  # fmt: skip
    axes = plot_history(history, title="run").axes[0]
    assert all(float(tick).is_integer() for tick in axes.get_xticks()), "there is no half step"
    assert axes.get_yscale() == "log" and axes.get_title(loc="left") == "run"
    assert [list(line.get_xdata()) for line in axes.lines] == [
        [0, 1, 2, 3], [0, 2], [1, 1], [2, 2], [2, 2], [3, 3],
    ]  # fmt: skip
    assert [t.get_text() for t in axes.texts] == ["G=10"]
    labels = [t.get_text() for t in axes.get_legend().get_texts()]
    assert labels == ["training loss", "test loss", "grid update", "refinement", "diverged"]
    assert plot_history(History(train_loss=[-1.0, -2.0])).axes[0].get_yscale() == "linear"


def test_bad_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = make([2, 3, 1]), data(2)
    for call, error, match in (
        (lambda: plot(torch.nn.Linear(2, 1), x), TypeError, "model: got Linear"),
        (lambda: plot(net, x[:, :1]), ValueError, "x: got shape"),
        (lambda: plot(net, x * torch.nan), ValueError, "x: sample 0 of feature 0 is not finite"),
        (lambda: plot(net, x, inputs=["a"]), ValueError, "inputs: got 1 names, expected 2"),
        (lambda: plot(net, x, outputs="f"), ValueError, "outputs: got 'f', expected 1 names"),
        (lambda: plot(net, x, beta=0), ValueError, "beta: got 0"),
        (lambda: plot_edges(net, x), TypeError, "layer: got KAN"),
        (lambda: plot_edges(net.layers[0], x, [(2, 0)]), ValueError, r"edges: got \(2, 0\)"),
        (lambda: plot_edges(net.layers[0], x, []), ValueError, "edges: there are none"),
        (lambda: plot_edges(net.layers[0], x, [(True, False)]), ValueError, r"edges: got \(True, False\)"),
        (lambda: plot_edges(net.layers[0], x, inputs="ab"), ValueError, "inputs: got 'ab', expected 2 names"),
        (lambda: plot_edges(net.layers[0], x, columns=0), ValueError, "columns: got 0"),
        (lambda: plot_edges(net.layers[0], x, columns=1.5), TypeError, "columns: got 1.5"),
        (lambda: plot_history([1.0]), TypeError, "history: got list"),
    ):
        with pytest.raises(error, match=match):
            call()
    for edges in (3, (0, 1)):
        with pytest.raises(TypeError, match=r"edges: got .*, expected pairs \(input, output\)"):
            plot_edges(net.layers[0], x, edges)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="beta: got '3', expected a positive number"):
        plot(net, x, beta="3")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install matplotlib"):
        plot(net, x)
