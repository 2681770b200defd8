"""Which kernel runs a case, in which of its tiles, over how many parts; and the launch itself.

Nothing here looks at values. What depends on the device alone (the number of its processors) is asked for
once. Splits of sums depend on shapes and device only, so the same inputs give the same bits.
"""

from dataclasses import dataclass
from functools import cache

import torch

from ..._core.bases import BY_CODE
from ..._core.checks import HALF_DTYPES
from . import tuning
from .blocking import ceil_div, power_of_two, split
from .candidates import INPUTS, all_rows, candidates, even_tiles, tile_columns

ROW_SUM_COLUMNS, ROW_SUM_ROWS = 16, 32  # outputs and basis rows of a tile of gather_backward, at most
GATHER_WIDTH = 16  # outputs up to which a layer is too narrow for matrix units
# Basis rows from which k+1 fetched rows beat R products: matrix rate / R against 8 gathered edges a clock and
# processor (docs/triton.md). An estimate: no GPU has confirmed it.
GATHER_ROWS = {"half": 256, "tf32": 128, "tf32x3": 48, "ieee": 48}


@dataclass(frozen=True)
class Case:
    """The shapes and dtype of one contraction."""

    device: str
    dtype: torch.dtype
    rows: int
    features: int
    width: int
    basis_rows: int
    order: int
    arch: int = 90  # compute capability, 90 where there is none
    basis: int = 0  # its code; the order is that of B-splines, 0 for others
    fits: bool = True  # whether the basis keeps to the range of a 16-bit operand

    @property
    def local(self) -> bool:
        """Return whether a row sees the functions of its cell alone."""
        return BY_CODE[self.basis].local

    @property
    def half(self) -> bool:
        return self.dtype in HALF_DTYPES

    @property
    def warp_groups(self) -> bool:
        """Return whether matrix instructions belong to groups of warps (sm_90, sm_100): larger tiles fit."""
        return self.arch // 10 in (9, 10, 11)

    @staticmethod
    def of(
        x: torch.Tensor,
        dtype: torch.dtype,
        width: int,
        basis_rows: int,
        order: int,
        basis: int = 0,
        fits: bool = True,
    ) -> "Case":
        rows, features = x.shape
        arch = architecture(x.device)
        return Case(x.device.type, dtype, rows, features, width, basis_rows, order, arch, basis, fits)


def gathers(case: Case, precision: str) -> bool:
    """Return whether forward and input fetch coefficient rows rather than multiply matrices.

    Of a basis of full support all rows are needed, however many there are.
    """
    if sums_rows(case):
        return True
    return case.local and case.basis_rows >= GATHER_ROWS["half" if case.half else precision]


def sums_rows(case: Case) -> bool:
    """Return whether gradients of the weights are summed row by row rather than by products of matrices."""
    return case.dtype == torch.float64 or case.width <= GATHER_WIDTH or not case.fits


def one_pass(case: Case) -> bool:
    """Return whether one tile holds all outputs and basis rows, so that one pass gives both gradients."""
    if sums_rows(case):
        return case.width <= ROW_SUM_COLUMNS and case.basis_rows <= ROW_SUM_ROWS
    # float32 operands would not stay in registers
    limit = 16384 if case.warp_groups else 4096
    return case.half and INPUTS * all_rows(case) * tile_columns(case.width) <= limit


def gather(case: Case) -> dict[str, int]:
    """Return the tile of a gathering kernel: 4 fetched coefficients of each basis value a thread and step."""
    columns = min(32, power_of_two(case.width))
    inputs = min(power_of_two(case.features), max(1, 32 // columns))
    rows = max(16, (8192 if case.device == "cpu" else 512) // (columns * inputs))
    rows = min(rows, max(16, power_of_two(case.rows)))
    return {"BM": rows, "BN": columns, "BI": inputs, "num_warps": 4, "num_stages": 1}


def row_sums(case: Case) -> dict[str, int]:
    """Return the tile of gather_backward: BM x BR x BN sums in registers."""
    columns = min(ROW_SUM_COLUMNS, power_of_two(case.width))
    size = 16384 if case.device == "cpu" else 1024
    basis_rows = power_of_two(case.basis_rows)
    if not one_pass(case):
        basis_rows = min(basis_rows, max(1, size // (16 * columns)))
    rows = min(max(16, size // (columns * basis_rows)), max(16, power_of_two(case.rows)), 256)
    return {"BM": rows, "BN": columns, "BR": min(basis_rows, ROW_SUM_ROWS), "num_warps": 8, "num_stages": 1}


def parts(case: Case, device: torch.device, precision: str = "ieee") -> tuple[int, int]:
    """Return (rows of a part, number of parts) of a sum over the batch.

    As many as leave the fewest processors idle, up to two for each; none short, and partial sums no larger
    than x and y.
    """
    if sums_rows(case):
        tile, shortest = row_sums(case), 1024
        programs = case.features * ceil_div(case.basis_rows, tile["BR"]) * ceil_div(case.width, tile["BN"])
    else:
        shortest = 256
        wide = case.warp_groups and precision != "tf32x3" and even_tiles(case.width)
        tiles = ceil_div(case.width, 256 if wide else 128)
        programs = ceil_div(case.features * case.basis_rows, INPUTS * 8) * tiles
    weights = case.features * (case.basis_rows + 1) * case.width
    allowed = case.rows * (case.features + case.width) // weights
    return split(case.rows, programs, allowed, shortest, processors(device))


@cache
def architecture(device: torch.device) -> int:
    """Compute capability as 10 major + minor; 90 for devices that have none, AMD's among them."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def processors(device: torch.device) -> int:
    """Count multiprocessors or compute units; few in the interpreter, an H100's on meta tensors."""
    if device.type != "cuda":
        return 4 if device.type == "cpu" else 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def interpreted(kernel) -> bool:
    """Return whether a kernel was defined under TRITON_INTERPRET=1."""
    return not hasattr(kernel, "device_caches")


def launch(kernel, device: torch.device, blocks: int, arguments: tuple, constants: dict, tile: dict) -> None:
    """Launch once on x's device and its current stream."""
    if device.type == "cpu":
        kernel[(blocks,)](*arguments, **constants, **tile)
        return
    with torch.cuda._DeviceGuard(device.index):
        kernel[(blocks,)](*arguments, **constants, **tile, enable_fp_fusion=True)


def sum_parts(kernel, parts: torch.Tensor, total: torch.Tensor) -> None:
    """Sum parts over their first dimension, in order, into total."""
    size, block = total.numel(), 1024
    tile = {"BLOCK": block, "num_warps": 4, "num_stages": 1}
    launch(kernel, total.device, ceil_div(size, block), (parts, total, size, parts.shape[0]), {}, tile)


# everything that a choice of tile looks at -> the tile
_tiles: dict[tuple, dict[str, int]] = {}
_LIMIT = 4096  # batches of any number of rows


def launch_tuned(kernel, device: torch.device, case: Case, blocks, arguments: tuple, constants: dict) -> None:
    """Launch once in the tile that `tuning` knows to be the fastest here, or else in the fixed one."""
    key = (
        kernel.fn.__name__, device, case, constants["M"], constants["PRECISION"], constants["BASE"],
        constants.get("POLY") is None, constants.get("ONE_PASS"), arguments[1] is None, interpreted(kernel),
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    tile = _tiles.get(key)
    if tile is None:
        tile = _choose(kernel, device, case, blocks, arguments, constants)
        if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            if len(_tiles) >= _LIMIT:
                _tiles.clear()
            _tiles[key] = tile
    launch(kernel, device, blocks(tile), arguments, constants, tile)


def _choose(kernel, device, case: Case, blocks, arguments: tuple, constants: dict) -> dict[str, int]:
    name = kernel.fn.__name__

    def run(tile: dict) -> None:
        launch(kernel, device, blocks(tile), arguments, constants, tile)

    return tuning.best(
        name, device, case, constants, candidates(name, case, constants, interpreted(kernel)), run
    )
