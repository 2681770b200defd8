"""The picture of figure 3.1: error against parameters, a panel for each function."""

from typing import Any

import numpy as np

from kan_kernels.plotting.style import ACCENT, INK, new_figure, style

DEPTHS = ("#e69f00", "#cc79a7", "#009e73", "#8c6d4f", "#7f7f7f")  # MLPs of 2, 3, ... layers


def draw(toys: list[dict[str, Any]]) -> Any:
    """Median test RMSE against parameters, single seeds as dots, the laws of theory.

    Both laws start at the first point of the front of the first KAN and end with that front.
    """
    with style():
        figure = new_figure(3.1 * len(toys), 3.7, layout="constrained")
        shared: dict[str, Any] = {}
        for panel, toy in zip(figure.subplots(1, len(toys)), toys, strict=True):
            for one in toy["mlps"]:
                label = f"MLP, {one['depth']} layers"
                shared[label] = curve(panel, one, DEPTHS[one["depth"] - 2], "s-")
            kans = [
                curve(panel, one, ACCENT, kind) for one, kind in zip(toy["kans"], ("o-", "o--"), strict=False)
            ]
            start, error = toy["kans"][0]["front"][0]
            sizes = np.array([start, toy["kans"][0]["front"][-1][0]])
            for power, dots, label in ((4.0, "--", "$N^{-4}$"), (4.0 / toy["inputs"], ":", "$N^{-4/d}$")):
                law = error * (sizes / start) ** -power
                (shared[label],) = panel.plot(sizes, law, dots, color=INK, linewidth=1.0, zorder=1)
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.tick_params(which="minor", labelbottom=False, labelleft=False)
            panel.set_title(toy["formula"])
            panel.set_xlabel("parameters")
            panel.legend(kans, [f"KAN {one['widths']}" for one in toy["kans"]], fontsize=8, loc="lower left")
        figure.axes[0].set_ylabel("test RMSE")
        figure.legend(shared.values(), shared, loc="outside lower center", ncols=len(shared), fontsize=8)
    return figure


def curve(panel: Any, network: dict[str, Any], colour: str, kind: str) -> Any:
    seeds = [(run["parameters"], run["test_rmse"]) for run in network["runs"]]
    panel.plot(*zip(*seeds, strict=True), ".", color=colour, markersize=2.5, alpha=0.35)
    medians = zip(*network["median"], strict=True)
    return panel.plot(*medians, kind, color=colour, markersize=3.5, linewidth=1.4)[0]
