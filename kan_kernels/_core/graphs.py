"""CUDA graphs: what a layer looks at, compiles or measures once must be over when the capture begins."""

import warnings
from collections.abc import Callable
from typing import Any

import torch

TIMES = 3  # torch's own advice: lazy set-up and autotuning are over after them
_said: set[str] = set()


def warm_up(call: Callable[[], Any], times: int = TIMES) -> None:
    """Run `call` on a stream of its own, so that a CUDA graph captured after it holds the fastest kernels.

    A graph keeps for ever what it was captured with, and a capture can neither read knots nor measure tiles.
    For a training step `call` is the forward and backward pass, with the shapes that will be captured.

    `torch.cuda.make_graphed_callables` and `torch.compile(mode="reduce-overhead")` do this by themselves.

    Args:
        call: takes no arguments. What it writes, gradients and optimizer states, is written `times` times.
        times: how often it runs.

    Raises:
        RuntimeError: there is no GPU, or a graph is already being captured.
        ValueError: times is not positive.

    Example:
        >>> if torch.cuda.is_available():
        ...     x = torch.ones(8, device="cuda")
        ...     warm_up(lambda: x * 2)  # and of a layer just so
        ...     with torch.cuda.graph(torch.cuda.CUDAGraph()):
        ...         y = x * 2
    """
    if times < 1:
        raise ValueError(f"times: got {times}, expected 1 or more")
    if not torch.cuda.is_available():
        raise RuntimeError("warm_up: torch sees no GPU here, and only a GPU captures graphs")
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("warm_up: a CUDA graph is already being captured; call it before the capture")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(times):
            call()
    torch.cuda.current_stream().wait_stream(side)


def captured_without(what: str) -> bool:
    """Return whether a CUDA graph is being captured; if so, warn once that it will lack something."""
    if not torch.cuda.is_current_stream_capturing():
        return False
    if what not in _said:
        _said.add(what)
        warnings.warn(
            f"kan_kernels: a CUDA graph is captured without {what}, and will run slower for ever; call "
            "kan_kernels.warm_up(step) before the capture",
            RuntimeWarning,
            stacklevel=3,
        )
    return True
