"""The network as in figure 2.4 of arXiv 2404.19756: its functions drawn in place, on the edges."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..composition import layers_of, opened, products_of
from ..data import Dataset
from ..head_functions import functions_of
from ..inspection import check_data, node_values
from ..nn import Products, SelectedInputs
from ..nn.heads import HeadFunctions
from .scores import METRICS, edge_metric
from .seen import Seen, look
from .style import (
    ACCENT,
    FAINT,
    FORMULA,
    INK,
    PAPER,
    letters,
    matplotlib,
    names_of,
    new_figure,
    style,
)

FAN = 24  # edges that still fit side by side
CROSSBAR = 16  # nodes on a side whose functions can still be seen in a table
TICKS = 24  # names along a side of a heat map
FAINTEST = 0.06  # opacity of an edge that is there but does nothing
JOIN = 0.65  # height of the lines that lead the factors of products together


def plot(
    model: nn.Module,
    x: Tensor | Dataset | None = None,
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    title: str | None = None,
    beta: float = 3.0,
    metric: str = "l1",
    ax: Any = None,
) -> Any:
    """Draw a KAN from its inputs (bottom) to its outputs (top).

    A layer of up to 24 edges is drawn as in the paper: every edge leads through a box with the graph of its
    function, over the range of the data. A layer of up to 16 nodes on each side becomes a crossbar, a table
    of such boxes with a row for each input and a column for each output; a larger one a heat map of the
    edges' magnitudes (formulas: dots). Rows of tables and both sides of heat maps are named, hidden nodes by
    their number. Opacity is tanh(beta |phi|), where |phi| is the mean magnitude on the data (eq. 2.17), as in
    pykan. Edges with a formula are vermilion and carry its name, with its r2 against the spline underneath,
    which it took the place of. Masked edges, and hidden nodes without a way in and a way out, are left out.
    Above a layer with multiplication nodes lie its outputs as small dots; lines lead the factors of a product
    to a circle with a cross.

    Args:
        model: a KAN or KANLinear, or `SelectedInputs` of one; or a KANActivation or MultiHeadKANLinear, whose
            functions lead from its inputs to its heads.
        x: (..., in) finite inputs of the model, in its dtype; None takes the range of every layer's knots. A
            `kan_kernels.data.Dataset` gives its training data and names.
        inputs, outputs: names, one for each; x1, x2, ... and y1, y2, ... by default. Mathematics between $.
        title: above the picture.
        beta: how soon edges become opaque.
        metric: what opacity shows: "l1", the mean magnitude; "std", the standard deviation on the data;
            "attribution", the score of `pruning.edge_scores`, which asks what reaches the outputs.
        ax: matplotlib axes to draw in, of a figure that you made; None makes a figure of the right size.

    Returns:
        The matplotlib figure. `kan_kernels.plotting.save` writes it to a file.

    Raises:
        TypeError, ValueError: naming the argument.
        ModuleNotFoundError: without matplotlib.

    Example:
        >>> len(plot(KAN([2, 1]), title="A KAN").axes)
        1
    """
    if isinstance(x, Dataset):
        inputs = x.names if inputs is None else inputs
        outputs = x.output_names if outputs is None else outputs
        x = x.train[0]
    if isinstance(model, HeadFunctions):
        x = None if x is None else model.function_rows(x)
        outputs = [f"head {h + 1}" for h in range(model.heads)] if outputs is None else outputs
        model = functions_of(model)
    if isinstance(model, SelectedInputs):
        if inputs is not None and len(inputs) == model.in_features:
            inputs = [inputs[i] for i in model.kept.tolist()]
        inputs = model.names if inputs is None else inputs
    model, x = opened(model, x)
    layers, products = layers_of(model), products_of(model)
    names = names_of("inputs", inputs, layers[0].in_features, "x")
    results = names_of("outputs", outputs, products[-1].nodes, "y")
    if isinstance(beta, str) or not beta > 0:
        raise ValueError(f"beta: got {beta!r}, expected a positive number")
    values = None if x is None else node_values(model, check_data(x, layers[0]))
    scores = edge_metric(model, values, metric)
    seen = [
        look(layer, None if values is None else values[i], score)
        for i, (layer, score) in enumerate(zip(layers, scores, strict=True))
    ]
    nodes = _visible(seen, products)
    fed = [[s for j in row for s in p.groups()[j]] for row, p in zip(nodes[1:], products, strict=True)]
    picture = _Picture(beta)
    named = [i == len(seen) - 1 and not p.arities for i, p in enumerate(products)]  # right above the layer
    bands = [_band(s, nodes[i], fed[i], named[i], metric) for i, s in enumerate(seen)]
    width = max(band.width for band in bands)
    y, start = 0.0, _spread(nodes[0], width)
    picture.nodes(start, width, y, [names[j] for j in nodes[0]], below=True)
    for i, band in enumerate(bands):
        ends = _spread(fed[i], width)
        called = names if i == 0 else [str(j) for j in range(layers[i].in_features)]
        feeding = results if named[i] else [str(j) for j in range(layers[i].out_features)]
        band.draw(picture, width, y, start, ends, called, feeding)
        y += band.height
        last, start = i == len(bands) - 1, ends
        if products[i].arities:
            start = picture.join(ends, nodes[i + 1], products[i], y, seen[i].scores.max(0))
            y += JOIN
        picture.nodes(start, width, y, [results[j] for j in nodes[-1]] if last else None, below=False)
    with style():
        return picture.render(ax, width, y, title)


def _visible(seen: list[Seen], products: list[Products]) -> list[list[int]]:
    """Return the nodes of every row that are drawn: all inputs and outputs, and connected hidden nodes."""
    rows = [list(range(seen[0].active.shape[0]))]
    for before, after, between in zip(seen, seen[1:], products, strict=False):
        fed = between.fed(torch.from_numpy(before.active.any(0))).numpy()
        rows.append(np.flatnonzero(fed | after.active.any(1)).tolist())
    return [*rows, list(range(products[-1].nodes))]


def _spread(nodes: list[int], width: float) -> dict[int, float]:
    """Place the nodes evenly."""
    return {node: width * (j + 0.5) / len(nodes) for j, node in enumerate(nodes)}


class _Fan:
    """A row of boxes, each with a line from its input and one to its output."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.edges = [(int(i), int(o)) for i, o in np.argwhere(seen.active)]
        self.box = min(0.95, max(0.55, 14.0 / (1.25 * len(self.edges) + 1)))
        self.width = max(4.0, 1.25 * self.box * len(self.edges))
        self.height = self.box + 1.5

    def draw(
        self, picture: "_Picture", width: float, y: float, bottom: dict, top: dict, names: list, results: list
    ) -> None:
        x, phi = self.seen.curves()
        middle = y + self.height / 2
        for n, (i, o) in enumerate(self.edges):
            centre = width * (n + 0.5) / len(self.edges)
            name, score = self.seen.formulas.get((i, o)), self.seen.scores[i, o]
            picture.line([(bottom[i], y), (centre, middle - self.box / 2)], score, name)
            picture.line([(centre, middle + self.box / 2), (top[o], y + self.height)], score, name)
            label = name and name.replace(", ", "\n")  # boxes may be narrower than the line
            picture.curve(centre, middle, self.box, x[:, i], phi[:, i, o], score, label)


class _Crossbar:
    """A table of boxes: inputs rise between its columns to feed a row each, columns feed the outputs."""

    def __init__(self, seen: Seen, inputs: list[int], outputs: list[int]) -> None:
        self.seen, self.inputs, self.outputs = seen, inputs, outputs
        self.box = 0.8 if max(len(inputs), len(outputs)) <= 8 else 0.6
        self.shared = -(-len(inputs) // len(outputs))  # inputs that rise in one gap
        self.row = 1.35 * self.box
        self.column = self.box + 0.2 + 0.06 * self.shared
        self.width = self.column * len(outputs) + 0.3
        self.height = self.row * len(inputs) + 1.3

    def draw(
        self, picture: "_Picture", width: float, y: float, bottom: dict, top: dict, names: list, results: list
    ) -> None:
        x, phi = self.seen.curves()
        scores, there = self.seen.scores, self.seen.active
        left, low = (width - self.column * len(self.outputs)) / 2, y + 0.65
        starts = [left + self.column * c for c in range(len(self.outputs) + 1)]
        for r, i in enumerate(self.inputs):
            used = [c for c, o in enumerate(self.outputs) if there[i, o]]
            if used:
                rise = starts[r // self.shared] + 0.06 * (r % self.shared + 1)
                bus = low + self.row * r + 0.05
                corners = [starts[used[0]], starts[used[-1]]]
                reach = [min(rise, corners[0] + self._inset()), max(rise, corners[1] + self._inset())]
                strongest = scores[i].max()
                picture.line([(bottom[i], y), (rise, y + 0.4), (rise, bus)], strongest, None)
                picture.line([(reach[0], bus), (reach[1], bus)], strongest, None)
                picture.joints.append((rise, bus))
                picture.name(names[i], left - 0.02, bus + 0.5 * self.row)
        for c, o in enumerate(self.outputs):
            used = [r for r, i in enumerate(self.inputs) if there[i, o]]
            if used:
                ends = low + self.row * (used[0] + 0.5), low + self.row * len(self.inputs) + 0.15
                path = [(starts[c + 1], ends[0]), (starts[c + 1], ends[1]), (top[o], y + self.height)]
                picture.line(path, scores[:, o].max(), None)
        for r, i in enumerate(self.inputs):
            for c, o in enumerate(self.outputs):
                if there[i, o]:
                    name, score = self.seen.formulas.get((i, o)), scores[i, o]
                    entry, cy = starts[c] + self._inset(), low + self.row * (r + 0.5)
                    cx = entry + self.box / 2 - 0.05
                    picture.line([(entry, low + self.row * r + 0.05), (entry, cy)], score, name)
                    picture.line([(cx, cy), (starts[c + 1], cy)], score, name)
                    picture.curve(cx, cy, self.box, x[:, i], phi[:, i, o], score, name)

    def _inset(self) -> float:
        """Return how far the boxes of a column are entered from its left end."""
        return 0.06 * (self.shared + 1) + 0.1


class _Heat:
    """An image of the magnitudes: a row for every input, a column for every output."""

    def __init__(self, seen: Seen, inputs: list[int], outputs: list[int], last: bool, metric: str) -> None:
        self.seen, self.inputs, self.outputs, self.last, self.metric = seen, inputs, outputs, last, metric
        self.width = 8.0
        self.tall = min(6.0, max(1.5, 7.0 * len(inputs) / max(len(inputs), len(outputs))))
        self.height = self.tall + 1.6

    def draw(
        self, picture: "_Picture", width: float, y: float, bottom: dict, top: dict, names: list, results: list
    ) -> None:
        scores = np.where(self.seen.active, self.seen.scores, np.nan)[np.ix_(self.inputs, self.outputs)]
        low, high = y + 0.7, y + 0.7 + self.tall
        picture.images.append(((0.0, width, low, high), scores))
        outline = [(0.0, low), (width, low), (width, high), (0.0, high), (0.0, low)]
        picture.lines.append((outline, FAINT, 0.8))
        for i, o in self.seen.formulas:
            r, c = self.inputs.index(i), self.outputs.index(o)
            place = width * (c + 0.5) / len(self.outputs), low + self.tall * (r + 0.5) / len(self.inputs)
            picture.marks.append(place)
        for r in range(0, len(self.inputs), -(-len(self.inputs) // TICKS)):
            picture.name(names[self.inputs[r]], -0.06, low + self.tall * (r + 0.5) / len(self.inputs))
        named = len(self.outputs) <= 2 * CROSSBAR and self.last  # at the nodes, right above
        for c in () if named else range(0, len(self.outputs), -(-len(self.outputs) // TICKS)):
            picture.name(
                results[self.outputs[c]], width * (c + 0.5) / len(self.outputs), low - 0.06, below=True
            )
        note = f"rows: {len(self.inputs)} inputs, from below; columns: {len(self.outputs)} outputs; "
        note += f"black: {self.metric} {np.nanmax(scores):.2g}"
        at = {"ha": "left", "va": "bottom", "fontsize": 8.0, "color": INK}
        picture.texts.append((0.0, high + 0.06, note, at))


def _band(
    seen: Seen, inputs: list[int], outputs: list[int], last: bool, metric: str
) -> "_Fan | _Crossbar | _Heat":
    if seen.active.sum() <= FAN:
        return _Fan(seen)
    if max(len(inputs), len(outputs)) <= CROSSBAR:
        return _Crossbar(seen, inputs, outputs)
    return _Heat(seen, inputs, outputs, last, METRICS[metric])


@dataclass
class _Picture:
    """All that is drawn, in inches, before it becomes a figure."""

    beta: float
    lines: list[tuple[list, Any, float]] = field(default_factory=list)
    frames: list[tuple[NDArray, Any]] = field(default_factory=list)
    curves: list[tuple[NDArray, Any]] = field(default_factory=list)
    texts: list[tuple[float, float, str, dict]] = field(default_factory=list)
    dots: list[tuple[float, float]] = field(default_factory=list)
    joints: list[tuple[float, float]] = field(default_factory=list)
    marks: list[tuple[float, float]] = field(default_factory=list)
    crosses: list[tuple[float, float]] = field(default_factory=list)
    images: list[tuple[tuple[float, float, float, float], NDArray]] = field(default_factory=list)
    margin: float = 0.35  # beside the picture

    def opacity(self, score: float) -> float:
        return FAINTEST + (1 - FAINTEST) * float(np.tanh(self.beta * min(np.nan_to_num(score), 1e6)))

    def line(self, points: list, score: float, formula: str | None) -> None:
        strength = self.opacity(score)
        self.lines.append((points, (FORMULA if formula else INK, strength), 0.6 + 1.0 * strength))

    def curve(self, cx, cy, size, x: NDArray, y: NDArray, score: float, formula: str | None) -> None:
        """Draw a box with a graph: the curve fills it, whatever its scale."""
        strength, half = self.opacity(score), size / 2
        corners = np.array([cx, cy]) + half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
        self.frames.append((corners, (FORMULA if formula else INK, 0.25 + 0.75 * strength)))
        good = np.isfinite(y)
        low, high = (y[good].min(), y[good].max()) if good.any() else (0.0, 0.0)
        flat = high - low <= 1e-9 * max(abs(low), abs(high), 1e-300)
        u = np.linspace(-0.43, 0.43, len(x)) * size + cx
        v = np.zeros_like(y) if flat else (y - low) / (high - low) - 0.5
        points = np.column_stack([u, cy + 0.8 * size * v])
        self.curves.append((points, (FORMULA if formula else ACCENT, 0.15 + 0.85 * strength)))
        if formula:
            at = {"ha": "left", "va": "bottom", "fontsize": 7.0, "color": FORMULA}
            self.texts.append((cx - half, cy + half + 0.02, formula, at))

    def name(self, text: str, x: float, y: float, below: bool = False) -> None:
        """Write the name of a row, which ends at x, or of a column, which hangs from y."""
        at = {"fontsize": 7.0, "color": INK, "ha": "right", "va": "center"}
        if below:
            long = letters(text) > 4
            at |= {"ha": "center", "va": "top", "rotation": 90 if long else 0}
            at["fontsize"] = min(7.0, 60.0 / letters(text))
        else:
            self.margin = max(self.margin, 0.1 + 0.06 * letters(text) - x)
        self.texts.append((x, y, text, at))

    def join(
        self, ends: dict[int, float], nodes: list[int], products: Products, y: float, strongest: NDArray
    ) -> dict[int, float]:
        """Draw lines from the outputs of a layer at y to their nodes above; return where these are."""
        places, groups = {}, products.groups()
        for node in nodes:
            group = groups[node]
            places[node] = sum(ends[s] for s in group) / len(group)
            for s in group:
                self.joints.append((ends[s], y))
                self.line([(ends[s], y), (places[node], y + JOIN)], strongest[s], None)
            if len(group) > 1:
                self.crosses.append((places[node], y + JOIN))
        return places

    def nodes(
        self, places: dict[int, float], width: float, y: float, names: list[str] | None, below: bool
    ) -> None:
        self.dots += [(x, y) for x in places.values()]
        if names is None or len(places) > 2 * CROSSBAR:
            return
        apart = 72 * width / len(places)  # points; a letter is about 0.6 of its size wide
        size = max(5.0, min(11.0, apart / (0.62 * max(map(letters, names)))))
        for x, name in zip(places.values(), names, strict=True):
            at = {"ha": "center", "va": "top" if below else "bottom", "fontsize": size, "color": INK}
            self.texts.append((x, y + (-0.14 if below else 0.14), name, at))

    def render(self, ax: Any, width: float, height: float, title: str | None) -> Any:
        matplotlib()
        from matplotlib.collections import LineCollection, PolyCollection

        margin, head = self.margin, 0.85 if title else 0.5
        if ax is None:
            figure = new_figure(width + 2 * margin, height + 0.5 + head)
            ax = figure.add_axes((0, 0, 1, 1))
        else:
            figure = ax.figure
        ax.set(xlim=(-margin, width + margin), ylim=(-0.5, height + head))
        ax.set_aspect("equal")
        ax.axis("off")
        segments, colours, widths = zip(*self.lines, strict=True) if self.lines else ((), (), ())
        ax.add_collection(
            LineCollection(segments, colors=colours, linewidths=widths, zorder=1), autolim=False
        )
        if self.frames:
            boxes, edges = zip(*self.frames, strict=True)
            frames = PolyCollection(boxes, facecolors=PAPER, edgecolors=edges, linewidths=0.8, zorder=2)
            ax.add_collection(frames, autolim=False)
            graphs, tints = zip(*self.curves, strict=True)
            ax.add_collection(LineCollection(graphs, colors=tints, linewidths=1.4, zorder=3), autolim=False)
        for extent, scores in self.images:
            options = {"vmin": 0, "vmax": np.nanmax(scores), "interpolation": "nearest", "zorder": 1}
            ax.imshow(scores, extent=extent, origin="lower", cmap="Greys", aspect="auto", **options)
        ax.set(xlim=(-margin, width + margin), ylim=(-0.5, height + head))
        ax.set_aspect("equal")
        if self.dots:
            crowded = len(self.dots) > 4 * CROSSBAR
            ax.scatter(*np.array(self.dots).T, s=6 if crowded else 26, color=INK, linewidths=0, zorder=4)
        for places, colour, size in ((self.joints, INK, 9), (self.marks, FORMULA, 9)):
            if places:
                ax.scatter(*np.array(places).T, s=size, color=colour, linewidths=0, zorder=4)
        if self.crosses:
            circles = {"s": 130, "color": PAPER, "edgecolors": INK, "linewidths": 1.2, "zorder": 5}
            ax.scatter(*np.array(self.crosses).T, **circles)
            ax.scatter(*np.array(self.crosses).T, marker="x", s=30, color=INK, linewidths=1.4, zorder=6)
        for x, y, text, options in self.texts:
            ax.text(x, y, text, zorder=5, **options)
        if title:
            ax.text(0, height + 0.55, title, fontsize=12, weight="bold", color=INK, va="bottom")
        return figure
