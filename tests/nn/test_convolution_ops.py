"""The ops of the compiled convolution as torch sees them: schema, shapes of fakes, bad arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from conv_cases import image, made
from harness import FUSED

pytestmark = pytest.mark.skipif("native" not in FUSED, reason="the native backend is not under test")

BAD_CALLS: tuple[tuple[str, dict[int, Any]], ...] = (
    ("stride", {7: [1]}),
    ("padding", {8: [1, 1]}),
    ("dilation", {9: [1, 1, 1]}),
    ("positive", {7: [0, 1]}),
    ("groups", {10: 3}),
    (r"at most 2\^30", {9: [2**62, 1]}),
    (r"at most 2\^30", {8: [0, 2**62, 0, 0]}),
    ("smaller than the kernel", {9: [9, 9]}),
    ("grid must be float64", {4: torch.zeros(4, 12)}),
    ("base_weight must be given", {6: 0}),
    ("bias", {3: torch.zeros(7, dtype=torch.float64)}),
)


@pytest.mark.parametrize("message,changed", BAD_CALLS, ids=[name for name, _ in BAD_CALLS])
def test_op_refuses_bad_arguments(message: str, changed: dict[int, Any]) -> None:
    """The op itself checks shapes before any kernel sees a pointer."""
    layer = made(2, kernel_size=3, bias=True)
    arguments: list[Any] = [image(2), layer.spline_weight, layer.base_weight, layer.bias, layer.grid, 3, 1]
    arguments += [[1, 1], [0, 0, 0, 0], [1, 1], 1, False]
    with torch.no_grad():
        assert torch.ops.kan_kernels.kan_conv.default(*arguments).shape == (3, 8, 7, 9)
        for index, value in changed.items():
            arguments[index] = value
        with pytest.raises(RuntimeError, match=message):
            torch.ops.kan_kernels.kan_conv.default(*arguments)


def test_ops_agree_with_their_fakes() -> None:
    """torch.library.opcheck: schema, shapes, strides and autograd of both ops."""
    layer = made(2, kernel_size=3, padding=1, bias=True)
    x = image(2).requires_grad_()
    for groups, last in ((1, False), (2, True)):
        weight = layer.spline_weight
        constants = (layer.spline_order, 1, [2, 1], [1, 1, 0, 2], [1, 2], groups, last)
        bias = torch.randn(8 * groups, dtype=x.dtype)
        operands = (x, weight, layer.base_weight, bias, layer.grid, *constants)
        tests = ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(torch.ops.kan_kernels.kan_conv.default, operands, test_utils=tests)
        y = torch.ops.kan_kernels.kan_conv.default(*operands).detach()
        backward = (x.detach(), weight.detach(), layer.base_weight.detach(), y, layer.grid, *constants)
        for needs in ((True, True), (True, False), (False, True)):
            torch.library.opcheck(
                torch.ops.kan_kernels.kan_conv_backward.default,
                (*backward, *needs),
                test_utils=("test_schema", "test_faketensor"),
            )
