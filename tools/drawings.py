"""Draw the pictures of docs/kernels.md and docs/mathematics.md: tiles and dataflow, as SVG.

python -m tools.drawings [FOLDER]    the default is docs/figures
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kan_kernels.functional import bspline_basis
from kan_kernels.plotting import save
from kan_kernels.plotting.style import ACCENT, FAINT, FORMULA, INK, new_figure, style

FIGURES = Path(__file__).absolute().parent.parent / "docs" / "figures"
TINTS = ("#cfe3f2", "#fbdcc6", "#d7ecd3", "#ece0f0", "#f6efc4")  # of cells, of lanes


def canvas(width: float, height: float, across: float, down: float) -> tuple[Any, Any]:
    """Return a figure and its only axes, without frame, `across` by `down` units with the origin on top."""
    figure = new_figure(width, height)
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set(xlim=(0, across), ylim=(down, 0))
    axes.set_axis_off()
    return figure, axes


def box(
    axes: Any, x: float, y: float, w: float, h: float, text: str = "", fill: str = "white", **font: Any
) -> None:
    """Draw a rectangle with a text in its middle."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), w, h, facecolor=fill, edgecolor=INK, linewidth=0.8))
    if text:
        axes.text(
            x + w / 2, y + h / 2, text, ha="center", va="center", **{"fontsize": 9, "color": INK, **font}
        )


def arrow(
    axes: Any, start: tuple[float, float], end: tuple[float, float], color: str = INK, bend: float = 0.0
) -> None:
    """Draw an arrow between two points."""
    how = {"arrowstyle": "-|>", "color": color, "lw": 1.1, "shrinkA": 2, "shrinkB": 2, "mutation_scale": 11}
    axes.annotate("", end, start, arrowprops={**how, "connectionstyle": f"arc3,rad={bend}"})


def note(axes: Any, x: float, y: float, text: str, **font: Any) -> None:
    """Write a text, left-aligned unless told."""
    axes.text(x, y, text, **{"fontsize": 9, "va": "center", "color": INK, **font})


def window() -> Any:
    """Draw cubic B-splines on five cells, and the four that x sees."""
    grid_size, order = 5, 3
    step = 2 / grid_size
    knots = torch.arange(-order, grid_size + order + 1, dtype=torch.float64) * step - 1
    x = torch.linspace(float(knots[0]), float(knots[-1]) - 1e-9, 1201, dtype=torch.float64)
    values = bspline_basis(x[:, None], knots[None], order)[:, 0].numpy()
    figure = new_figure(7.2, 2.5)
    axes = figure.add_axes((0.02, 0.17, 0.96, 0.68))
    cell = 6  # of the extended grid: the fourth of the five cells
    axes.axvspan(float(knots[cell]), float(knots[cell + 1]), color=TINTS[0], lw=0)
    for r in range(values.shape[1]):
        seen = cell - order <= r <= cell
        part = values[:, r] > 0
        axes.plot(x[part], values[part, r], color=ACCENT if seen else FAINT, lw=1.8 if seen else 1.1)
    at = float(knots[cell]) + 0.37 * step
    here = bspline_basis(torch.tensor([[at]], dtype=torch.float64), knots[None], order)[0, 0].numpy()
    axes.vlines(at, 0, here.max(), color=FORMULA, lw=1)
    axes.plot([at] * (order + 1), here[cell - order : cell + 1], "o", color=FORMULA, ms=4)
    axes.text(at, -0.09, "x", color=FORMULA, ha="center", va="top", fontsize=10)
    axes.text(float(knots[cell]) + step / 2, 0.76, "cell", ha="center", fontsize=9, color=ACCENT)
    for edge, words in (
        (-1 - 1.5 * step, "extension"),
        (0, "the grid, G = 5 cells on [-1, 1]"),
        (1 + 1.5 * step, "extension"),
    ):
        axes.text(edge, 0.88, words, ha="center", fontsize=9, color=INK)
    for limit in (-1, 1):
        axes.axvline(limit, color=INK, lw=0.8, ls=":")
    axes.set(xlim=(float(knots[0]), float(knots[-1])), ylim=(0, 0.84), yticks=[])
    axes.set_xticks(knots.numpy(), [""] * len(knots))
    axes.spines["left"].set_visible(False)
    return figure


def family() -> Any:
    """Draw the trilinear form and its three contractions."""
    figure, axes = canvas(7.2, 2.9, 72, 29)
    box(axes, 24, 11, 24, 7, "T = Σ  s · C · g · B⁽ᵐ⁾(x)", TINTS[0], fontsize=11)
    for x, y, name, makes, without, fill in (
        (2, 2, "forward  F", "y  (B, out)", "without g", TINTS[2]),
        (52, 2, "input  X", "∂x  (B, in)", "without s", TINTS[1]),
        (27, 22, "weight  W", "∂C  (in, G+k, out)", "without C", TINTS[3]),
    ):
        box(axes, x, y, 18, 6, fill=fill)
        note(axes, x + 9, y + 2, name, ha="center", fontweight="bold")
        note(axes, x + 9, y + 4.3, f"{without}: {makes}", ha="center", fontsize=7.5)
    arrow(axes, (28, 11), (18, 8.2))
    arrow(axes, (44, 11), (54, 8.2))
    arrow(axes, (36, 18), (36, 21.8))
    note(axes, 1, 14.5, "linear in s, C and g:\nthree contractions", fontsize=8)
    note(
        axes,
        50,
        14.5,
        "the gradient of each contraction\nis made of the other two,\nwith m or m + 1",
        fontsize=8,
    )
    return figure


def cpu_forward() -> Any:
    """Draw the CPU's three steps: sort, evaluate, contract."""
    figure, axes = canvas(7.2, 3.5, 72, 35)
    cells = [2, 0, 1, 0, 2, 1, 0, 2]
    note(axes, 1, 2, "1  sort rows by cell", fontweight="bold")
    note(axes, 26, 2, "2  evaluate, rows are lanes", fontweight="bold")
    note(axes, 48, 2, "3  contract a run", fontweight="bold")
    for b, cell in enumerate(cells):
        box(axes, 1, 5 + 3.2 * b, 6, 2.6, f"x[{b}]", TINTS[cell], fontsize=8)
    order = sorted(range(len(cells)), key=lambda b: cells[b])
    for place, b in enumerate(order):
        box(axes, 15, 5 + 3.2 * place, 6, 2.6, f"x[{b}]", TINTS[cells[b]], fontsize=8)
        arrow(axes, (7.2, 6.3 + 3.2 * b), (14.8, 6.3 + 3.2 * place), FAINT)
        for j in range(4):
            box(axes, 27 + 3.4 * j, 5 + 3.2 * place, 3, 2.6, "", TINTS[cells[b]])
        arrow(axes, (21.2, 6.3 + 3.2 * place), (26.8, 6.3 + 3.2 * place), FAINT)
    note(
        axes,
        33.8,
        31.8,
        "k+1 values of each row;\nthe knots of a cell are constants",
        ha="center",
        fontsize=8,
    )
    note(axes, 11, 31.8, "three runs: each reads\nthe same k+1 rows of C", ha="center", fontsize=8)
    for j in range(5):
        box(
            axes,
            49,
            5 + 2.6 * j,
            21,
            2.2,
            "base row" if j == 0 else f"C row  first + {j - 1}",
            TINTS[0],
            fontsize=8,
        )
    note(axes, 59.5, 19, "k+2 rows of a panel stay in registers", ha="center", fontsize=8)
    arrow(axes, (41, 9.5), (48.8, 12), ACCENT)
    note(axes, 45, 8.4, "broadcast", ha="center", fontsize=8, color=ACCENT)
    arrow(axes, (59.5, 20.5), (59.5, 23.8), ACCENT)
    note(axes, 60.5, 22, "multiply-add", fontsize=8, color=ACCENT)
    for p in range(4):
        box(axes, 49 + 5.25 * p, 24, 5, 2.6, "", TINTS[2])
    note(axes, 59.5, 28.2, "a row of y: up to 4 vectors of outputs", ha="center", fontsize=8)
    return figure


def backward() -> Any:
    """Draw the one pass of the backward kernel."""
    figure, axes = canvas(7.2, 2.7, 72, 27)
    for y, text in (
        (3, "x  (B, in)\nall that was saved"),
        (11, "C  (in, G+k, out)"),
        (19, "g  (B, out)\nfrom the next layer"),
    ):
        box(axes, 1, y, 15, 6, text, TINTS[0], fontsize=8)
    box(axes, 24, 3, 18, 6, "values B and slopes B'\nagain, in registers", TINTS[2], fontsize=8)
    box(axes, 24, 14, 18, 6, "g · Cᵀ\nfor the k+1 rows of the cell", TINTS[1], fontsize=8)
    box(axes, 52, 3, 18, 6, "∂C += B · g\nadded once a run", TINTS[3], fontsize=8)
    box(axes, 52, 14, 18, 6, "∂x = Σ B' · (g · Cᵀ)", TINTS[3], fontsize=8)
    arrow(axes, (16, 6), (24, 6))
    arrow(axes, (16, 14), (24, 16.5))
    arrow(axes, (16, 21), (24, 18.5))
    arrow(axes, (42, 5), (52, 5))
    arrow(axes, (42, 8), (52, 15.5))
    arrow(axes, (42, 18), (52, 18))
    axes.plot([16, 71.7, 71.7], [23.6, 23.6, 6], color=INK, lw=1.1)
    arrow(axes, (72, 6), (69.8, 6))
    note(axes, 47.5, 3.6, "B", color=ACCENT, ha="center")
    note(axes, 45.5, 9, "B'", color=ACCENT)
    note(axes, 47.5, 22.6, "g", color=ACCENT, ha="center")
    note(axes, 1, 26.2, "Never made: anything of size B · in · (G+k) or B · in · out.", fontsize=8)
    return figure


def gpu_operand() -> Any:
    """Draw which lane of a quad holds which columns of the left operand, and where a window lies."""
    figure, axes = canvas(7.2, 3.1, 72, 31)
    note(axes, 1, 2, "One row of the left operand: 32 columns, two mma.m16n8k16", fontweight="bold")
    columns = {
        t: [c + 16 * half for half in (0, 1) for c in (2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9)]
        for t in range(4)
    }
    owner = {c: t for t, mine in columns.items() for c in mine}
    for c in range(32):
        x = 2 + 2.1 * c
        box(axes, x, 6, 2.1, 3, "", TINTS[owner[c]])
        note(axes, x + 1.05, 5, str(c), ha="center", fontsize=6.5, color="#555555")
    for half in (0, 1):
        note(axes, 2 + 33.6 * half + 16.8, 3.7, f"instruction {half + 1}", ha="center", fontsize=8)
    note(
        axes,
        1,
        12,
        "The same columns by lane: lane t holds the 8 coefficient rows of input i + t",
        fontweight="bold",
    )
    rng = (1, 4, 0, 3)
    for t in range(4):
        left = 2 + 17.2 * t
        note(axes, left + 7.6, 14.6, f"lane {t}: {' '.join(map(str, columns[t]))}", ha="center", fontsize=7)
        for r in range(8):
            inside = rng[t] <= r <= rng[t] + 3
            box(
                axes,
                left + 1.9 * r,
                16,
                1.9,
                3.4,
                "B" if inside else "0",
                TINTS[t] if inside else "white",
                fontsize=8,
            )
            note(axes, left + 1.9 * r + 0.95, 20.6, str(r), ha="center", fontsize=6.5, color="#555555")
        note(axes, left + 7.6, 22.6, f"window of x[b, i+{t}] starts at {rng[t]}", ha="center", fontsize=7.5)
    note(
        axes, 1, 27.4,
        "A lane evaluates its (row, input) once, places the k+1 values among 8 numbers, and holds the\n"
        "operand. The basis never touches memory and moves between no lanes. C is read in the same order:\n"
        "that is in the addresses.",
        fontsize=8,
    )  # fmt: skip
    return figure


def gpu_dense() -> Any:
    """Draw a block of the dense forward kernel: what is in registers, in shared memory, and on its way."""
    figure, axes = canvas(7.2, 3.6, 72, 36)
    note(axes, 1, 2, "global memory", fontweight="bold")
    note(axes, 24, 2, "shared memory", fontweight="bold")
    note(axes, 50, 2, "registers of four warps", fontweight="bold")
    axes.vlines((21, 47), 1, 35, color=FAINT, lw=0.8, ls="--")
    box(axes, 1, 5, 16, 6, "x\n128 or 64 rows x 4 inputs", TINTS[0], fontsize=8)
    box(
        axes,
        1,
        14,
        16,
        9,
        "C and base weights\nchunks of 32 rows\nx outputs of the block",
        TINTS[1],
        fontsize=8,
    )
    box(axes, 1, 28, 16, 6, "y\nthe same rows x outputs", TINTS[2], fontsize=8)
    box(axes, 24, 5, 19, 6, "knots of 4 inputs,\ntheir reciprocal differences", TINTS[0], fontsize=8)
    for stage in range(3):
        box(
            axes,
            24 + 6.6 * stage,
            14,
            5.8,
            9,
            f"chunk\nn + {stage}" if stage else "chunk\nn",
            TINTS[1],
            fontsize=8,
        )
    note(axes, 33.5, 25, "ring of 3 or 4 chunks, by cp.async", ha="center", fontsize=8)
    box(axes, 50, 5, 21, 6, "cell, values, placed:\nleft operand (see above)", TINTS[0], fontsize=8)
    box(axes, 50, 14, 21, 6, "right operand, by ldmatrix", TINTS[1], fontsize=8)
    box(axes, 50, 25, 21, 6, "accumulators in float32\nrows of one warp x outputs", TINTS[2], fontsize=8)
    arrow(axes, (17, 7), (50, 6.2), ACCENT, -0.12)
    arrow(axes, (43, 9), (50, 9))
    arrow(axes, (17, 18), (24, 18))
    arrow(axes, (43.1, 17.5), (50, 17.5))
    arrow(axes, (60.5, 11), (60.5, 13.8), FAINT)
    arrow(axes, (60.5, 20.2), (60.5, 24.8), FORMULA)
    note(axes, 61.5, 22.5, "mma.sync", color=FORMULA, fontsize=8)
    arrow(axes, (50, 29), (17, 31), INK, -0.1)
    note(axes, 33.5, 33.4, "stored once", ha="center", fontsize=8)
    return figure


def gpu_gather() -> Any:
    """Draw a warp of the gather kernel: lanes are outputs, a coefficient row is a line of shared memory."""
    figure, axes = canvas(7.2, 2.9, 72, 29)
    note(
        axes,
        1,
        2,
        "coefficients of one input in shared memory: a row is a line of 32 banks",
        fontweight="bold",
    )
    first = 2
    for r in range(8):
        seen = first <= r <= first + 3
        note(axes, 1, 5.6 + 2.4 * r, f"r = {r}", fontsize=7)
        for lane in range(16):
            box(axes, 6 + 2.2 * lane, 4.6 + 2.4 * r, 2.2, 2.0, "", TINTS[0] if seen else "white")
    note(axes, 23.6, 25.2, "lane 0, 1, 2, ...: neighbouring outputs, one bank each", ha="center", fontsize=8)
    box(
        axes,
        49,
        5,
        21,
        5,
        "cell, k+1 values of (row, input)\none lane evaluates, all read",
        TINTS[2],
        fontsize=7.5,
    )
    box(
        axes, 49, 15, 21, 5, "y[b, o] += value · C[i, r, o]\nin each lane's registers", TINTS[3], fontsize=7.5
    )
    arrow(axes, (41.4, 14), (48.8, 17), ACCENT)
    arrow(axes, (59.5, 10.2), (59.5, 14.8), ACCENT)
    note(axes, 60.5, 12.5, "r = first .. first + k", fontsize=8)
    note(
        axes, 47, 24.6,
        "k+1 of G+k rows are read. The rows of a\nbatch may lie in any cell: lanes never meet\nin a bank.",
        fontsize=8,
    )  # fmt: skip
    return figure


DRAWINGS: dict[str, Callable[[], Any]] = {
    "kernel_window": window,
    "kernel_family": family,
    "kernel_cpu_forward": cpu_forward,
    "kernel_backward": backward,
    "kernel_gpu_operand": gpu_operand,
    "kernel_gpu_dense": gpu_dense,
    "kernel_gpu_gather": gpu_gather,
}


def draw(folder: Path) -> list[Path]:
    """Write every drawing into a folder, and return their paths."""
    paths = []
    with style():
        for name, make in DRAWINGS.items():
            paths.append(folder / f"{name}.svg")
            save(make(), paths[-1])
    return paths


if __name__ == "__main__":
    for path in draw(Path(sys.argv[1]) if sys.argv[1:] else FIGURES):
        print(path)
