"""A CUDA device that is not there: tensors that say "cuda:0" and live on the CPU.

It lets code that is meant for a GPU run to its end without one: it finds tensors of two devices in one
operation, host synchronisation where it is forbidden, and slips in the handling of events and graphs. It
says nothing about kernels or speed. `install()` switches it on for the rest of the process.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
# Operations that make the host wait for the device.
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.is_nonzero.default}
_state = SimpleNamespace(sync_is_error=False, capturing=None, stream=None)


class PretendTensor(torch.Tensor):
    """A wrapper around a CPU tensor that claims to be on CUDA."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> PretendTensor:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, layout=inner.layout, device=inner.device,
        )  # fmt: skip
        made.inner = inner
        return made

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendTensor({self.inner!r})"

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert a cuda:0 tensor to numpy; copy it to the CPU first")

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def record_stream(self, used_on: Stream) -> None:  # type: ignore[override]
        self.streams = {*getattr(self, "streams", ()), used_on}

    def __deepcopy__(self, memo: dict[int, Any]) -> PretendTensor:
        copied = PretendTensor(self.inner.detach().clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied._is_param = True  # type: ignore[attr-defined]
        memo[id(self)] = copied
        return copied  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, spec = tree_flatten((args, kwargs or {}))
        if _state.sync_is_error and func in WAITS:
            raise RuntimeError(f"called a synchronizing CUDA operation: {func}")
        mixed = [t for t in flat if isinstance(t, torch.Tensor) and not isinstance(t, cls) and t.dim() > 0]
        if mixed and func not in (aten.copy_.default, aten.index.Tensor):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {func} got cuda:0 and cpu"
            )
        by_inner = {id(t.inner): t for t in flat if isinstance(t, cls)}
        inner = [t.inner if isinstance(t, cls) else _on_cpu(t) for t in flat]
        inner_args, inner_kwargs = tree_unflatten(inner, spec)
        out = func(*inner_args, **inner_kwargs)
        if _state.capturing is not None:
            _state.capturing.append((func, inner_args, inner_kwargs, out))

        def wrap(t: Any) -> Any:
            if not isinstance(t, torch.Tensor):
                return t
            known = by_inner.get(id(t))
            return cls(t) if known is None else known

        return tree_map(wrap, out)


def _on_cpu(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value


def _is_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.split(":")[0] == "cuda"


class _ToPretend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: torch.Tensor) -> torch.Tensor:
        return PretendTensor(t.detach().clone())

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g.inner if isinstance(g, PretendTensor) else g


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Any) -> torch.Tensor:
        if _state.sync_is_error:
            raise RuntimeError("called a synchronizing CUDA operation: copy to the CPU")
        return t.inner.detach().clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        return PretendTensor(g)


class PretendDevice(TorchFunctionMode):
    """Sends every request for a CUDA tensor to the CPU and wraps what comes back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("cuda", "cpu", "to") and args and isinstance(args[0], torch.Tensor):
            return self._move(func, name, args, kwargs)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
            return tree_map(_wrap, func(*args, **kwargs))
        return func(*args, **kwargs)

    def _move(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        source, rest = args[0], list(args[1:])
        if name == "to" and rest and isinstance(rest[0], torch.Tensor):  # like another tensor
            rest[:1] = [rest[0].device, rest[0].dtype]
        named = [v for v in (*rest, kwargs.get("device")) if isinstance(v, (str, torch.device))]
        target = "cuda" if name == "cuda" else "cpu" if name == "cpu" else None
        if target is None and named:
            target = torch.device(named[0]).type
        rest = [v for v in rest if not isinstance(v, (str, torch.device)) and v is not None]
        kwargs.pop("device", None)
        here = isinstance(source, PretendTensor)
        moved = source
        if target == "cuda" and not here:
            moved = _ToPretend.apply(source)
        elif target == "cpu" and here:
            moved = _ToCpu.apply(source)
        dtypes = [v for v in (*rest, kwargs.get("dtype")) if isinstance(v, torch.dtype)]
        return torch.Tensor.to(moved, dtypes[0]) if dtypes else moved


def _wrap(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and not isinstance(value, PretendTensor):
        wrapped = PretendTensor(value.detach())
        return wrapped.requires_grad_() if value.requires_grad else wrapped
    return value


class Event:
    """torch.cuda.Event by the wall clock: nothing is asynchronous here."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return max(1e-6, 1e3 * (end.at - self.at))


class Stream:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)

    def synchronize(self) -> None:
        pass


class CUDAGraph:
    """Records operations and repeats them on the same memory."""

    def __init__(self) -> None:
        self.recorded: list[Any] = []

    def replay(self) -> None:
        assert self.recorded, "nothing was captured"
        for func, args, kwargs, out in self.recorded:
            again = func(*args, **kwargs)
            for old, new in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@contextlib.contextmanager
def graph(captured: CUDAGraph, **options: Any) -> Iterator[None]:
    """torch.cuda.graph: waiting for the device is an error inside, as in a capture."""
    was = _state.sync_is_error
    _state.capturing, _state.sync_is_error = captured.recorded, True
    try:
        yield
    finally:
        _state.capturing, _state.sync_is_error = None, was


@contextlib.contextmanager
def stream(chosen: Stream | None) -> Iterator[None]:
    assert chosen is None or isinstance(chosen, Stream)
    was = _state.stream
    _state.stream = chosen or was
    try:
        yield
    finally:
        _state.stream = was


def capturing() -> bool:
    return _state.capturing is not None


def set_sync_debug_mode(mode: str) -> None:
    _state.sync_is_error = mode == "error"


def install() -> None:
    """Replace what torch.cuda offers, give the native backend a "cuda" device, and wrap from here on."""
    properties = SimpleNamespace(
        name="Pretend GPU", major=9, minor=0, multi_processor_count=1, total_memory=2**30
    )
    nothing: Callable[..., None] = lambda *a, **k: None  # noqa: E731
    _state.stream = Stream()
    for name, value in {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        # too old for Triton, which could not launch anything
        "get_device_capability": lambda *a: (0, 0), "mem_get_info": lambda *a: (0, 0),
        "get_device_properties": lambda *a: properties,
        "memory_allocated": lambda *a: 0, "max_memory_allocated": lambda *a: 2**20,
        "synchronize": nothing, "empty_cache": nothing, "reset_peak_memory_stats": nothing, "_sleep": nothing,
        "current_stream": lambda *a: _state.stream, "is_current_stream_capturing": capturing,
        "device": lambda *a: contextlib.nullcontext(), "get_device_name": lambda *a: properties.name,
        "set_sync_debug_mode": set_sync_debug_mode,
        "Stream": Stream, "stream": stream, "Event": Event, "CUDAGraph": CUDAGraph, "graph": graph,
    }.items():  # fmt: skip
        setattr(torch.cuda, name, value)
    # Module.to would write the wrapper's storage, which it has not, into the old parameter
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    from kan_kernels._core import cuda_support

    # the CPU kernels stand in for the compiled ones: nothing speaks against them
    cuda_support.why_not = nothing
    PretendDevice().__enter__()
