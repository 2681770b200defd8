"""The picture of the three chains: energies by lambda, the found and the known mobility edge."""

from typing import Any

import numpy as np
import torch

from kan_kernels.plotting.style import FORMULA, new_figure, style

from .anderson_models import MODELS, Model, eigenstates
from .anderson_search import Terms

CUT = {"alpha": 0.5, "p": 1.0}  # the second parameter's value
CHAINS = 60
MESH = 201


def panel(axes: Any, model: Model, found: Terms, m: int) -> Any:
    """States coloured by fractal dimension, and where both g vanish."""
    narrow = {name: (CUT[name], CUT[name]) if name in CUT else span for name, span in model.ranges.items()}
    x, dimension = eigenstates(model._replace(ranges=narrow), CHAINS, m, seed=2)
    energy, strength = x[..., 0].ravel(), x[..., model.inputs.index("lambda")].ravel()
    dots = axes.scatter(
        strength, energy, c=dimension.ravel(), s=1.0, cmap="viridis", vmin=0, vmax=1, rasterized=True
    )
    low, high = np.quantile(energy, [0.002, 0.998])
    grid = np.meshgrid(np.linspace(*model.ranges["lambda"], MESH), np.linspace(low, high, MESH))
    at = {
        "E": grid[1],
        "lambda": grid[0],
        **{k: np.full_like(grid[0], CUT.get(k, 0.0)) for k in narrow if k != "lambda"},
    }
    points = torch.tensor(np.stack([at[name].ravel() for name in found.names], 1))
    levels = found(points).numpy().reshape(grid[0].shape)
    axes.contour(*grid, levels, [0.0], colors=FORMULA, linewidths=2.5)
    axes.contour(*grid, model.g(at), [0.0], colors="black", linewidths=1.0, linestyles="dashed")
    cut = "".join(
        f", {name} = {value:g}" for name, value in narrow.items() if name in CUT for value in value[:1]
    )
    axes.set(xlabel="lambda", ylim=(low, high), title=f"{model.name}{cut}")
    return dots


def phase_diagrams(found: list[Terms], m: int) -> Any:
    from matplotlib.lines import Line2D

    with style():
        figure = new_figure(9.6, 3.2, layout="constrained")
        axes = figure.subplots(1, len(MODELS))
        for ax, model, terms in zip(axes, MODELS, found, strict=True):
            dots = panel(ax, model, terms, m - (model.name == "MM"))
        axes[0].set_ylabel("E")
        lines = [
            Line2D([], [], color=FORMULA, linewidth=2.5, label="found"),
            Line2D([], [], color="black", linewidth=1.0, linestyle="dashed", label="known"),
        ]
        axes[1].legend(handles=lines, loc="upper left")
        figure.colorbar(dots, ax=axes, label="fractal dimension")
    return figure
