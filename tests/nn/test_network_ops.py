"""The ops of a whole network as torch sees them: schema, fakes, tracing, and bad arguments by name."""

from __future__ import annotations

import pytest
import torch

from harness import DEVICE
from kan_kernels import KAN
from kan_kernels.backends import native

pytestmark = pytest.mark.skipif(native.NAMESPACE is None, reason="the library is not built")


def test_ops_name_the_layer() -> None:
    """What is wrong with an argument of the op itself, before a kernel runs."""
    op = torch.ops.kan_kernels.kan_network
    net, x = KAN([3, 4, 2], device=DEVICE), torch.rand(9, 3, device=DEVICE)
    splines, bases, grids = (
        [getattr(m, n).detach() for m in net.layers] for n in ("spline_weight", "base_weight", "grid")
    )
    good = [*splines, *bases, *grids]
    assert op(x, good, 2, 3, 1, [])[1].shape == (9 * 4,)
    for place, tensor, message in (
        (1, splines[1][:3], r"layers\[1\].*spline_weight has shape \(3, 8, 2\), expected \(4, 8, 2\)"),
        (1, splines[1].double(), r"layers\[1\].*dtype of the layer before"),
        (3, bases[0], r"layers\[1\].*base_weight has shape \(3, 4\), expected \(4, 2\)"),
        (5, grids[1][:, :-1], r"layers\[1\]"),
        (0, splines[0][0], r"layers\[0\].*3 dimensions"),
    ):
        wrong = [*good[:place], tensor, *good[place + 1 :]]
        with pytest.raises(RuntimeError, match=message):
            op(x, wrong, 2, 3, 1, [])
    with pytest.raises(RuntimeError, match="tensors: got 6 for 3 layers, expected 3 or 4 for each"):
        op(x, good, 3, 3, 1, [])
    for many in (2**40, 2**62, -1):
        with pytest.raises(RuntimeError, match=f"tensors: got 6 for {many} layers"):
            op(x, good, many, 3, 1, [])
    with pytest.raises(RuntimeError, match="tensors: got 0 for 0 layers"):
        op(x, [], 0, 3, 1, [])
    for products, message in (
        ([3, 1, 2, 2, 0], r"layers\[0\].*products has 5 outputs, expected 4"),
        ([2, 1, 2, 2, 0], r"layers\[1\].*grid has 4 rows, expected one for each of the 3"),
        ([2, 1, 2], "products must hold for each of 2 layers"),
        ([2, 1, 1, 2, 0], "products must hold"),
        ([2, -1, 2, 0], "products must hold"),
        ([2, 0, 2, 0, 1], "products holds more"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(x, good, 2, 3, 1, products)


@pytest.mark.parametrize(("bias", "products"), [(False, []), (True, []), (True, [1, 1, 3, 0, 1, 2])])
def test_opcheck(bias: bool, products: list[int]) -> None:
    """torch's own checks of the ops: schema, fakes, autograd, tracing."""
    widths = [3, (1, 1), (0, 1)] if products else [3, 4, 2]
    net = KAN(widths, bias=bias, mult_arity=[[], 3, 2] if products else 2, device=DEVICE)
    x = torch.rand(9, 3, device=DEVICE, requires_grad=True)
    kinds = ("spline_weight", "base_weight", *(("bias",) if bias else ()), "grid")
    tensors = [getattr(layer, name) for name in kinds for layer in net.layers]
    torch.library.opcheck(torch.ops.kan_kernels.kan_network.default, (x, tensors, 2, 3, 1, products))
    plain = [t.detach() for t in tensors]
    y, hidden = torch.ops.kan_kernels.kan_network(x.detach(), plain, 2, 3, 1, products)
    args = (x.detach(), hidden, plain, 2, torch.rand_like(y), 3, 1, True, True, products)
    torch.library.opcheck(torch.ops.kan_kernels.kan_network_backward.default, args)
