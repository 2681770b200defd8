"""KANs and MLPs in a contest: trained on one part of the data, chosen by a second, reported on a third."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from kan_kernels import KAN
from kan_kernels.inspection import active_edges
from kan_kernels.plotting.style import ACCENT, FORMULA, new_figure, style
from kan_kernels.pruning import prune
from kan_kernels.training import fit

from .common import rmse, save_figure

Data = list[tuple[Tensor, Tensor]]  # (x, y) to train with, to choose by, to report
KEEP_BEST = 10**6  # as `patience`: never stop, but end with the state that the second part likes best


def kan(widths: Sequence[int], data: Data, grids: Sequence[int], steps: int, lamb: float = 0.0) -> dict:
    """A KAN with finer and finer grids, `steps` steps of LBFGS each.

    With lamb > 0 it is first trained sparsely, for twice as many steps, and pruned. Knots are uniform, and
    reach a tenth of a unit beyond the data, for other data will.
    """
    torch.manual_seed(0)
    model = KAN(list(widths), grid_size=grids[0])
    options = {"update_grid": {"grid_eps": 1.0, "margin": 0.1}}
    early, seconds = [*range(0, 2 * steps // 3, 2)], 0.0
    if lamb:
        seconds = fit(model, data[0], steps=2 * steps, lamb=lamb, update_grid_at=early, **options).seconds
        model, _ = prune(model, data[0][0])
    refine_at = {steps * n: size for n, size in enumerate(grids) if n}
    options |= {"update_grid_at": [*early, *refine_at], "refine_at": refine_at, "patience": KEEP_BEST}
    pair = {"train": data[0], "test": data[1]}
    seconds += fit(model, pair, steps=steps * len(grids), **options).seconds
    shape = [widths[0], *(layer.out_features for layer in model.layers)]
    edges = sum(int(active_edges(layer).sum()) for layer in model.layers)
    what = {"shape": shape, "edges": edges, "lamb": lamb, "grid_size": model.layers[0].grid_size}
    return {**what, **score(model, data), "seconds": round(seconds, 2)}


def score(model: nn.Module, data: Data) -> dict:
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "validation": rmse(model, *data[1]), "test": rmse(model, *data[2])}


class Rival:
    """An MLP that is trained slice by slice; LBFGS starts anew in each, of at most 50 steps."""

    def __init__(self, width: int, depth: int, activation: Callable[[], nn.Module], data: Data) -> None:
        torch.manual_seed(0)
        self.shape = [data[0][0].shape[1], *[width] * (depth - 1), data[0][1].shape[1]]
        layers = [part for i, o in pairwise(self.shape) for part in (nn.Linear(i, o), activation())]
        self.model, self.name = nn.Sequential(*layers[:-1]), type(layers[1]).__name__
        self.data, self.seconds, self.steps, self.validation = data, 0.0, 0, math.inf

    def train(self, seconds: float) -> None:
        pair, end, steps = {"train": self.data[0], "test": self.data[1]}, self.seconds + seconds, 1
        while self.seconds < end:
            self.seconds += fit(self.model, pair, steps=steps, patience=KEEP_BEST).seconds
            self.steps += steps
            steps = max(1, min(50, round((end - self.seconds) * self.steps / self.seconds)))
        self.validation = rmse(self.model, *self.data[1])

    def result(self) -> dict:
        what = {"shape": self.shape, "activation": self.name, "steps": self.steps}
        return {**what, **score(self.model, self.data), "seconds": round(self.seconds, 2)}


def mlps(choices: Sequence[tuple], data: Data, seconds: float) -> list[dict]:
    """MLPs of (width, depth, activation): all are trained, then the better third as long again in all, ...

    The last round is for one. Rounds last equally long, `seconds` together, or more where single steps do.
    """
    rivals = [Rival(*choice, data) for choice in choices]
    rounds, going = 1 + math.ceil(math.log(len(rivals), 3)), rivals
    for _ in range(rounds):
        for rival in going:
            rival.train(seconds / rounds / len(going))
        going = sorted(going, key=lambda rival: rival.validation)[: math.ceil(len(going) / 3)]
    return [rival.result() for rival in rivals]


def frontier(nets: list[dict]) -> tuple[list[int], list[float]]:
    """Parameters and test RMSEs of the networks that no smaller one beats (on the validation points)."""
    ordered = sorted(nets, key=lambda net: (net["parameters"], net["validation"]))
    best = accumulate((net["validation"] for net in ordered), min)
    front = [net for net, least in zip(ordered, best, strict=True) if net["validation"] == least]
    return [net["parameters"] for net in front], [net["test"] for net in front]


def picture(found: Sequence[dict], name: str) -> None:
    """As figure 3.2: the frontiers of size and error, and all networks behind them, one plot a function."""
    rows = math.ceil(len(found) / 5)
    with style():
        figure = new_figure(10.0, 0.6 + 1.7 * rows, layout="constrained")
        plots = figure.subplots(rows, 5, sharex=True, squeeze=False).flat
        for axes, f in zip(plots, found, strict=False):
            for nets, colour, label in ((f["kans"], ACCENT, "KANs"), (f["mlps"], FORMULA, "MLPs")):
                axes.plot(*frontier(nets), "o-", color=colour, markersize=3, label=label)
                sizes = [net["parameters"] for net in nets]
                axes.plot(sizes, [net["test"] for net in nets], ".", color=colour, alpha=0.25)
            axes.set(xscale="log", yscale="log", title=f["function"])
            axes.minorticks_off()
        figure.legend(*plots[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
        figure.supxlabel("parameters")
        figure.supylabel("test RMSE")
    save_figure(figure, name)
