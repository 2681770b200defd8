"""Tiles of the kernels on matrix units that are worth trying, by what a case is and what registers hold."""

from typing import TYPE_CHECKING

import torch

from ..._core.bases import BY_CODE
from .blocking import ceil_div, power_of_two

if TYPE_CHECKING:
    from .tiling import Case

INPUTS = 16  # of a tile of gradients


def candidates(kernel: str, case: "Case", constants: dict, interpreted: bool) -> list[dict[str, int]]:
    """Return tiles worth trying, the fixed choice first. Keys are compile-time arguments of the kernel."""
    exact = constants.get("POLY") is None
    tiles = _distinct(_TILES[kernel](case, constants, exact, interpreted))
    if torch.version.hip is not None:  # 64 KiB of shared memory
        tiles = [{**tile, "num_stages": min(tile["num_stages"], 2)} for tile in tiles]
    return tiles


def _forward_tiles(case: "Case", constants: dict, exact: bool, small: bool):
    """Return (BM, BN, inputs x 8 rows, BK of the base, warps, stages)."""
    group, long = row_group(case), case.basis_rows > 8
    if small:
        shapes = [(32, 32, 4, 16, 4, 1)]
    elif case.order > 3:
        shapes = [(64, 64, 4, 32, 4, 1)]
    elif case.half and exact:
        shapes = [(128, 128, 8, 32, 8, 1), (128, 256, 8, 32, 8, 1), (64, 64, 8, 32, 8, 2)]
    elif case.half and long:
        shapes = [(64, 128, 8, 32, 4, 3), (128, 128, 8, 32, 8, 2), (64, 64, 8, 32, 4, 3)]
        if not case.warp_groups:
            shapes = [(64, 64, 8, 32, 8, 2)]
    elif case.half:
        shapes = [
            (128, 128, 8, 32, 4, 3),
            (64, 64, 8, 32, 4, 3),
            (128, 256, 8, 32, 8, 3),
            (128, 64, 8, 32, 4, 4),
        ]
        if case.warp_groups and case.rows >= 4096:  # half of the reads of coefficients
            shapes = [(256, 128, 8, 32, 8, 3), *shapes[:3]]
        elif case.warp_groups and even_tiles(case.width):  # values are made for twice as many outputs
            shapes = [shapes[2], *shapes[:2], shapes[3]]
    elif exact and not case.warp_groups:  # three products of TF32 parts
        shapes = [(32, 64, 4, 32, 8, 2)] if long else [(64, 64, 4, 32, 8, 2)]
    elif exact and long:
        shapes = [(64, 64, 4, 32, 8, 2)]
    elif exact:
        base = 16 if constants["M"] else 32  # a derivative comes with a row scale, which takes registers
        shapes = [(128, 128, 4, base, 8, 2), (64, 128, 4, 32, 8, 2), (64, 64, 4, 32, 4, 2)]
    elif long and not case.warp_groups:
        shapes = [(64, 64, 4, 32, 8, 2)]
    elif long:
        shapes = [(64, 128, 8, 32, 4, 2), (64, 64, 8, 32, 4, 2)]
    elif not case.warp_groups:
        shapes = [(64, 128, 8, 32, 8, 2), (64, 64, 8, 32, 8, 3)]
    else:
        shapes = [(128, 128, 8, 32, 4, 2), (64, 64, 8, 32, 4, 3), (128, 64, 8, 32, 4, 3)]
        if case.rows >= 4096:
            inputs = 4 if case.arch // 10 == 9 else 8  # 8 spill there with Triton 3.6
            shapes = [(256, 128, inputs, 32, 8, 2), *shapes]
    if case.arch // 10 != 9:
        shapes = [(bm, bn, bi, bk, 8, stages) for bm, bn, bi, bk, _, stages in shapes]
    for bm, bn, bi, bk, warps, stages in shapes:
        bi, bn = bi * 8 // group, tile_columns(case.width, bn)
        yield {
            "BM": _rows(case, bm),
            "BN": bn,
            "BI": bi,
            "BK": bk,
            "RG": group,
            **_launched(case, max(bi, bk), bn, warps, stages),
        }


def _input_tiles(case: "Case", constants: dict, exact: bool, small: bool):
    """Return (BM, BK, inputs, warps, stages)."""
    # twice the inputs for each read of g, where a tile holds all rows of them
    inputs = 2 * INPUTS if case.basis_rows <= 8 and case.features > INPUTS else INPUTS
    if small:
        shapes = [(32, 16, inputs, 4, 1)]
    elif case.order > 3 or (exact and not case.warp_groups):
        shapes = [(32, 32, INPUTS, 8, 2)]
    elif not case.warp_groups:
        shapes = [(64, 64 if case.half else 32, INPUTS, 8, 2)]
    elif case.half:
        shapes = [
            (128, 64, inputs, 8, 3),
            (128, 64, INPUTS, 8, 3),
            (64, 64, INPUTS, 4, 3),
            (128, 32, INPUTS, 8, 4),
        ]
    elif exact:
        shapes = [(128, 32, INPUTS, 8, 2), (64, 32, INPUTS, 8, 2)]
    else:
        shapes = [(128, 32, inputs, 8, 3), (128, 32, INPUTS, 8, 2), (64, 32, INPUTS, 4, 3)]
    for bm, bk, bi, warps, stages in shapes:
        bk = tile_columns(case.width, bk)
        yield {
            "BM": _rows(case, bm),
            "BK": bk,
            "BI": bi,
            "TOGETHER": case.warp_groups or not exact,  # strict products with mma.sync would spill
            "RG": row_group(case),
            **_launched(case, bi, bk, warps, stages),
        }


def _backward_tiles(case: "Case", constants: dict, exact: bool, small: bool):
    """Return (BM, BN, warps, stages)."""
    rows, columns, most = row_group(case), 128, 256
    if constants["ONE_PASS"]:
        rows, columns = all_rows(case), tile_columns(case.width)
        bm = 64 if case.warp_groups else 32
        shapes = [(bm, columns, 8, 1)]
    elif case.order > 3:
        shapes = [(16, 64, 8, 1)]
    elif case.half:
        shapes = [(64, 128, 8, 3), (64, 256, 8, 3), (64, 64, 4, 3)]
        if BY_CODE[case.basis].coefficients:  # they take registers
            shapes = shapes if case.warp_groups else [(32, 128, 8, 3), *shapes[1:]]
        elif case.warp_groups and even_tiles(case.width):
            shapes = [shapes[1], shapes[0], shapes[2]]
    elif exact and not case.warp_groups:
        shapes = [(16, 64, 8, 2)]
    elif exact or not case.warp_groups:
        shapes = [(32, 128, 8, 2), (64, 128, 8, 2), (32, 64, 4, 2)]
    else:
        shapes = [(32, 256, 8, 3), (32, 128, 8, 2), (32, 64, 4, 2)]
        if not even_tiles(case.width):
            shapes = [shapes[1], shapes[0], shapes[2]]
    if small:
        shapes, most = [(32, columns if constants["ONE_PASS"] else 32, 4, 1)], columns
    for bm, bn, warps, stages in shapes:
        bn = tile_columns(case.width, min(bn, most))
        yield {"BM": bm, "BN": bn, "BI": INPUTS, "RG": rows, **_launched(case, INPUTS, bn, warps, stages)}


def _base_tiles(case: "Case", constants: dict, exact: bool, small: bool):
    """Return (BM, BN, BI, warps, stages)."""
    if small:
        shapes = [(16, 16, 16, 4, 1)]
    else:
        strict = constants["PRECISION"] == "tf32x3"
        wide = even_tiles(case.width)  # each value is made once for 256 outputs
        if not case.warp_groups:
            shapes = [(32, 64, 64, 8, 2) if strict else (32, 128, 64, 4, 3 if case.half else 2)]
        elif strict:
            shapes = [(32, 128, 128, 8, 2)]
        elif wide and (case.half or case.arch // 10 == 9):  # TF32 would spill on 10.x
            shapes = [(32, 256, 128, 8, 3 if case.half else 2)]
        else:
            shapes = [(64 if case.half else 32, 128, 64, 4, 3)]
    for bm, bn, bi, warps, stages in shapes:
        bn = tile_columns(case.width, bn)
        yield {"BM": bm, "BN": bn, "BI": bi, **_launched(case, bi, bn, warps, stages)}


_TILES = {
    "dense_forward": _forward_tiles,
    "dense_input": _input_tiles,
    "dense_backward": _backward_tiles,
    "base_gradient": _base_tiles,
}


def _distinct(tiles) -> list[dict[str, int]]:
    out: list[dict[str, int]] = []
    for tile in tiles:
        if tile not in out:
            out.append(tile)
    return out


def _rows(case: "Case", most: int) -> int:
    """Return rows of a tile: no more than a small batch has, but what a matrix instruction takes."""
    return min(most, max(64 if most > 32 else most, power_of_two(case.rows)))


def _launched(case: "Case", inputs: int, outputs: int, warps: int, stages: int) -> dict[str, int]:
    """Return whether a tile of so many inputs and outputs divides the layer, and how it is launched."""
    even = {"EVEN_I": case.features % inputs == 0, "EVEN_O": case.width % outputs == 0}
    return {**even, "num_warps": warps, "num_stages": stages}


def all_rows(case: "Case") -> int:
    return max(4, power_of_two(case.basis_rows))


def tile_columns(width: int, most: int = 1 << 30) -> int:
    """Return columns of a tile: a power of two, at least the 16 of a matrix instruction."""
    return min(most, max(16, power_of_two(width)))


def even_tiles(width: int) -> bool:
    """Return whether tiles of 256 outputs hold no more of what does not exist than tiles of 128."""
    return ceil_div(width, 128) % 2 == 0


def row_group(case: "Case") -> int:
    """Return how many basis rows of one input a tile takes at a time."""
    return 8 if case.basis_rows > 4 else 4
