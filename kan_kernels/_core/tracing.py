"""torch.jit.trace: what must not become part of the trace."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_suspended = False  # a trace, by `untraced`


def tracing() -> bool:
    """Return whether torch.jit.trace records this."""
    return not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None


def untraced(
    function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Result:
    """Call a function that looks at sizes and values: in a trace what it finds are constants, silently."""
    if not tracing():
        return function(*args, **kwargs)
    global _suspended
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    _suspended = True
    try:
        return function(*args, **kwargs)
    finally:
        _suspended = False
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def within_trace() -> bool:
    """Return whether a trace is recorded around this, in `untraced` too."""
    return _suspended or torch._C._get_tracing_state() is not None
