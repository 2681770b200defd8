"""A convolution composed of `kan_linear`: any backend, device, derivative and transform.

A position of x meets all taps, so its bases are evaluated once: `kan_linear` maps the channels of a position
to (taps x out), and the results are added up where each tap puts them. Neither the image of the bases, (G+k)
times the input, nor the unfolded input exists; what exists at a time is one block of (positions, taps, out).
Where stride > 1 the positions fall into classes that meet different taps, each class a product of its own.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._core import checks
from .._core.function import Function
from .._core.tracing import tracing, untraced
from . import layer

# Numbers of one block of (positions, taps, out): on the CPU about what the last cache holds.
BLOCK = {"cpu": 1 << 21}
BLOCK_ELSEWHERE = 1 << 26
# Taps share an evaluation of the bases while that does not make the products on an axis this much larger.
WASTE = 1.5

Operands = tuple[Tensor, Tensor, Tensor, Tensor | None]  # of a group: rows, knots, spline and base weight


class Axis(NamedTuple):
    """A spatial dimension. Tap t of output o reads position o * stride + t * dilation - padding."""

    size: int
    kernel: int
    stride: int
    padding: tuple[int, int]
    dilation: int

    @property
    def out(self) -> int:
        return (self.size + sum(self.padding) - (self.kernel - 1) * self.dilation - 1) // self.stride + 1

    def start(self, tap: int) -> tuple[int, int]:
        """Return (residue, shift): output o reads position (o + shift) * stride + residue."""
        shift, residue = divmod(tap * self.dilation - self.padding[0], self.stride)
        return residue, shift


class Form(NamedTuple):
    """The constants of a convolution."""

    axes: tuple[Axis, ...]
    groups: int
    order: int
    base: str | None
    backend: str | None


def composed(
    x: Tensor,
    spline_weight: Tensor,
    grid: Tensor,
    base_weight: Tensor | None,
    bias: Tensor | None,
    form: Form,
) -> Tensor:
    """Compute `kan_conv` of images (N, C, *size), in blocks."""
    axes, groups, order, base, backend = form
    kernel = tuple(axis.kernel for axis in axes)
    count, channels, outputs = untraced(_sizes, x, spline_weight)
    inputs = channels // groups
    if tracing():  # of any batch size, but one image size: cat refuses others, where slices would cut them
        x = torch.cat((x, x.new_empty(0, channels, *(axis.size for axis in axes))))
    rows = x.movedim(1, -1)

    def group(n: int) -> Operands:
        """Return rows of x, knots, spline weight and base weight of group n."""
        if groups == 1:  # the very tensors: knots that were checked are known by their identity
            return rows, grid, spline_weight, base_weight
        part = slice(n * inputs, (n + 1) * inputs)
        base_part = None if base_weight is None else base_weight[part]
        return rows[..., part], grid[part], spline_weight[part], base_part

    def apply(operands: Operands, x: Tensor, taps: Sequence[tuple[int, ...]]) -> Tensor:
        """Apply kan_linear of the chosen taps: (..., channels) -> (..., taps * out)."""
        _, knots, weight, base_part = operands
        weight = _select(weight, taps, kernel, 2).flatten(2)
        base_weight = None if base_part is None else _select(base_part, taps, kernel, 1).flatten(1)
        return layer.call(x, weight, knots, base_weight, None, order, base, 0, backend)

    def block(operands: Operands, images: slice, ranges: Sequence[range]) -> Tensor:
        """Compute (n, *block, out) of one group: these images, outputs `ranges`."""
        shape = (*map(len, ranges), outputs)
        total = None
        for part in _classes(axes, ranges):
            taps = tuple(ps.taps for ps in part)
            z = apply(operands, operands[0][(images, *(ps.positions for ps in part))], taps)
            z = z.unflatten(-1, (*map(len, taps), outputs))
            y = scatter(z, Places(shape, tuple(z.shape[1:]), _moves(part, ranges)))
            total = y if total is None else total + y
        if total is None:  # every tap of every output lies in the padding: zeros that depend on everything
            empty = apply(operands, operands[0].flatten(0, -2)[:0], [tuple(range(size)) for size in kernel])
            total = empty.sum() + empty.new_zeros((operands[0][images].shape[0], *shape))
        return total

    def blocks(operands: Operands, images: slice, ranges: list[range], sizes: Sequence[int]) -> Tensor:
        """Compute all of one group's outputs for these images, cut into blocks axis by axis."""
        axis = len(ranges)
        if axis == len(axes):
            return block(operands, images, ranges)
        cut = _cut(axes[axis].out, sizes[axis])
        return _join([blocks(operands, images, [*ranges, part], sizes) for part in cut], axis + 1)

    # whole rows before several rows, whole images before several images
    room = BLOCK.get(x.device.type, BLOCK_ELSEWHERE) // (math.prod(kernel) * outputs)
    sizes: list[int] = []
    for length in (*reversed([axis.out for axis in axes]), count):
        sizes.insert(0, max(1, min(length, room)))
        room //= sizes[0]
    images = [_slice(part) for part in _cut(count, sizes[0])]
    if len(images) == 1 or tracing():
        images = [slice(None)]
    parts = [
        _join([blocks(operands, part, [], sizes[1:]) for part in images], 0)
        for operands in map(group, range(groups))
    ]
    y = _join(parts, -1)
    if bias is not None:
        y = y + bias.to(y.dtype)
    y = y.movedim(-1, 1)
    return y if channels_last(x) else y.contiguous()


def _sizes(x: Tensor, spline_weight: Tensor) -> tuple[int, int, int]:
    """Return images, channels, outputs of a group."""
    return x.shape[0], x.shape[1], spline_weight.shape[-1]


class Taps(NamedTuple):
    """The taps of one axis that share positions of x."""

    taps: tuple[int, ...]
    shifts: tuple[int, ...]
    first: int  # of the class's positions that are read, counted in strides
    last: int  # one past the last
    positions: slice  # the same in x


def _classes(axes: Sequence[Axis], outputs: Sequence[range]) -> Iterator[tuple[Taps, ...]]:
    """Return for one block of outputs the products of each axis's classes of taps."""
    return itertools.product(*(list(_axis_classes(a, o)) for a, o in zip(axes, outputs, strict=True)))


def _axis_classes(axis: Axis, outputs: range) -> Iterator[Taps]:
    """Return taps by residue; one by one where few outputs would make the shared positions mostly idle."""
    residues: dict[int, list[int]] = {}
    for tap in range(axis.kernel):
        residues.setdefault(axis.start(tap)[0], []).append(tap)
    for residue, taps in residues.items():
        together = list(_taps(axis, residue, taps, outputs))
        alone = [part for tap in taps for part in _taps(axis, residue, [tap], outputs)]
        work = sum(part.last - part.first for part in alone)
        shared = sum((part.last - part.first) * len(part.taps) for part in together)
        yield from together if shared <= WASTE * work else alone


def _taps(axis: Axis, residue: int, taps: list[int], outputs: range) -> Iterator[Taps]:
    """Return the positions that these taps of these outputs read inside x; nothing where there are none."""
    available = -(-(axis.size - residue) // axis.stride)
    shifts = [axis.start(tap)[1] for tap in taps]
    inside = [
        (tap, shift)
        for tap, shift in zip(taps, shifts, strict=True)
        if max(outputs.start + shift, 0) < min(outputs.stop + shift, available)
    ]
    if not inside:
        return
    first = max(0, outputs.start + min(shift for _, shift in inside))
    last = min(available, outputs.stop + max(shift for _, shift in inside))
    positions = slice(first * axis.stride + residue, (last - 1) * axis.stride + residue + 1, axis.stride)
    yield Taps(tuple(tap for tap, _ in inside), tuple(shift for _, shift in inside), first, last, positions)


Move = tuple[tuple[slice, ...] | None, tuple[slice | int, ...]]


def _moves(part: Sequence[Taps], outputs: Sequence[range]) -> tuple[Move, ...]:
    """Return (where in the block of y, where in z) for each tap of a class; z: (n, *positions, *taps, out).

    None is all of the block: indexing would make an alias, which torch's older vmap does not know.
    """
    moves = []
    for index in itertools.product(*(range(len(ps.taps)) for ps in part)):
        to: list[slice] = [slice(None)]
        origin: list[slice | int] = [slice(None)]
        for ps, n, wanted in zip(part, index, outputs, strict=True):
            shift = ps.shifts[n]
            begin, end = max(wanted.start, ps.first - shift), min(wanted.stop, ps.last - shift)
            to.append(slice(begin - wanted.start, end - wanted.start))
            origin.append(slice(begin + shift - ps.first, end + shift - ps.first))
        whole = all(place == slice(0, len(wanted)) for place, wanted in zip(to[1:], outputs, strict=True))
        moves.append((None if whole else tuple(to), (*origin, *index)))
    return tuple(moves)


class Places:
    """The places where each tap puts its rows: constants of a Scatter. torch.func would look into a tuple."""

    def __init__(self, block: tuple[int, ...], source: tuple[int, ...], moves: tuple[Move, ...]) -> None:
        self.block = block  # the shape of y behind its rows: (*block, out)
        self.source = source  # the shape of z behind its rows: (*positions, *taps, out)
        self.moves = moves


def scatter(z: Tensor, places: Places) -> Tensor:
    """Add up z (n, *positions, *taps, out) where each tap puts it: (n, *block, out)."""
    if torch.compiler.is_compiling() or tracing():  # neither takes a Function, and neither needs one
        return _scatter(z, places)
    return Scatter.apply(z, places)


def _scatter(z: Tensor, places: Places) -> Tensor:
    # sums in float32 at least
    dtype = torch.float32 if z.dtype in checks.HALF_DTYPES else z.dtype
    y = z.new_zeros((z.shape[0], *places.block), dtype=dtype)
    for to, origin in places.moves:
        (y if to is None else y[to]).add_(z[origin])
    return y.to(z.dtype)


class Scatter(Function):
    """The linear `scatter`. Plain autograd's backward would fill a z of zeros for each tap."""

    ROWS = (0,)

    @staticmethod
    def forward(z, places):
        return _scatter(z, places)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.places = inputs[1]

    @staticmethod
    def backward(ctx, g):
        return Gather.apply(g, ctx.places), None

    @staticmethod
    def jvp(ctx, z_t, *_):
        return Scatter.apply(z_t, ctx.places)


class Gather(Function):
    """The adjoint of Scatter: every tap reads the outputs that it wrote."""

    ROWS = (0,)

    @staticmethod
    def forward(g, places):
        shape = (g.shape[0], *places.source)
        z = g.new_empty(shape)
        for to, origin in places.moves:
            for gap in _gaps(origin, shape):
                z[gap] = 0
            z[origin] = g if to is None else g[to]
        return z

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.places = inputs[1]

    @staticmethod
    def backward(ctx, z):
        return Scatter.apply(z, ctx.places), None

    @staticmethod
    def jvp(ctx, g_t, *_):
        return Gather.apply(g_t, ctx.places)


def _gaps(origin: tuple[slice | int, ...], shape: Sequence[int]) -> Iterator[tuple[slice | int, ...]]:
    """Return positions of a tap that no output of the block reads: what is beside `origin`, axis by axis."""
    for dim, part in enumerate(origin):
        if isinstance(part, slice) and part.start is not None:
            for rest in (slice(0, part.start), slice(part.stop, shape[dim])):
                if rest.start < rest.stop:
                    yield (
                        *origin[:dim],
                        rest,
                        *(s if isinstance(s, int) else slice(None) for s in origin[dim + 1 :]),
                    )


def _select(weight: Tensor, taps: Sequence[tuple[int, ...]], kernel: tuple[int, ...], first: int) -> Tensor:
    """Take the chosen taps of the weight's kernel dimensions, the first of which is `first`: a view."""
    for dim, (chosen, size) in enumerate(zip(taps, kernel, strict=True), first):
        if len(chosen) != size:
            step = chosen[1] - chosen[0] if len(chosen) > 1 else 1  # taps of a residue are evenly spaced
            weight = weight[(slice(None),) * dim + (slice(chosen[0], chosen[-1] + 1, step),)]
    return weight


def _slice(numbers: range) -> slice:
    return slice(numbers.start, numbers.stop)


def _cut(length: int, size: int) -> list[range]:
    return [range(n, min(n + size, length)) for n in range(0, max(length, 1), size)]


def _join(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def channels_last(x: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.dim() in formats and not x.is_contiguous() and x.is_contiguous(memory_format=formats[x.dim()])
