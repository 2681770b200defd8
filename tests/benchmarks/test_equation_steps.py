"""The steps of benchmarks.equation_steps: they agree before they are timed, and the page has the table."""

from __future__ import annotations

import pytest
import torch

from benchmarks import equation_steps
from kan_kernels import KAN


def test_page_is_up_to_date() -> None:
    """The recipe has the table of the committed result."""
    assert equation_steps.main(["--check"]) == 0


def test_steps_agree_or_are_refused() -> None:
    """Both ways to write a step pass the gate; a gradient or a loss that is off does not."""
    net, x = KAN([2, 5, 1], dtype=torch.float64), torch.rand(9, 2, dtype=torch.float64)
    parameters = {name: value.detach() for name, value in net.named_parameters()}
    want = equation_steps.by_autograd(net, x)
    found = equation_steps.by_func(net, parameters, x)
    equation_steps.check(found, want, "torch.func")
    with pytest.raises(RuntimeError, match="a step: the loss is"):
        equation_steps.check((found[0], found[1] * (1 + 1e-6)), want, "a step")
    wrong = {name: value * (1 + 1e-6) for name, value in found[0].items()}
    with pytest.raises(RuntimeError, match=r"a step: the gradient of layers\.0\.spline_weight differs"):
        equation_steps.check((wrong, found[1]), want, "a step")
