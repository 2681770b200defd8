"""What was worked out from a tensor's values, kept for as long as the tensor has them."""

import ctypes
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_Answer = TypeVar("_Answer")

_PLAIN = (Tensor, torch.nn.Parameter)


def _c_memcmp() -> Callable[[int, int, int], int] | None:
    try:
        function = ctypes.PyDLL(None).memcmp
    except (AttributeError, OSError, TypeError):  # no C library among the symbols of the process
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    return function


_memcmp = _c_memcmp()


def readable(tensor: Tensor) -> bool:
    """Whether the tensor has values here and now: it is not traced, not transformed and not on meta."""
    if not has_values(tensor) or torch._C._are_functorch_transforms_active():
        return False
    return torch._C._get_tracing_state() is None


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor that nothing has wrapped has values: it is not compiled for and not on meta."""
    return not (torch.compiler.is_compiling() or tensor.is_meta or isinstance(tensor, FakeTensor))


_FEW = 400  # numbers that torch.equal compares sooner than memcmp, which needs more questions first


class _Copy:
    """The values of a tensor on the CPU as they were."""

    def __init__(self, tensor: Tensor) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self.values = tensor.detach().clone(memory_format=torch.contiguous_format)
        self.dtype, self.strides, self.bytes = tensor.dtype, self.values.stride(), self.values.nbytes
        self.pointer = self.values.data_ptr()
        self.by_bytes = tensor.numel() > _FEW

    def equals(self, tensor: Tensor) -> bool:
        """Whether a tensor has them now, and the shape, dtype and device."""
        if tensor.dtype is not self.dtype or not tensor.is_cpu:
            return False
        if not self.by_bytes or _memcmp is None or type(tensor) not in _PLAIN or not tensor.is_contiguous():
            return torch.equal(self.values, tensor)
        # strides and bytes, which torch.jit.trace does not record, tell the shapes of contiguous tensors
        same_shape = tensor.stride() == self.strides and tensor.nbytes == self.bytes
        return same_shape and not _memcmp(tensor.data_ptr(), self.pointer, self.bytes)


class Remembered(Generic[_Answer]):
    """One answer for each tensor, in its present state; it goes with the tensor.

    Without `by_value` a state is the count of writes, which costs nothing and misses what torch does not
    count: writes through `.data`, and all writes to inference tensors, for which nothing is kept. With it the
    values of a tensor on the CPU are kept and compared; on other devices that would wait for them, so the
    count is used there too.

    Tensors must be `readable`.
    """

    def __init__(self, by_value: bool = False) -> None:
        self._by_value = by_value
        # id -> (the tensor, its version then, its values then or None, the answer)
        self._entries: dict[int, tuple[weakref.ref, int, _Copy | None, _Answer]] = {}

    def get(self, tensor: Tensor) -> _Answer | None:
        entry = self._entries.get(id(tensor))
        if entry is None:
            return None
        reference, version, values, answer = entry
        if reference() is not tensor:
            return None
        if values is None:
            return answer if version == tensor._version else None
        return answer if values.equals(tensor) else None

    def put(self, tensor: Tensor, answer: _Answer) -> None:
        """Keep the answer; under inference mode too, if it is itself no inference tensor."""
        values = None
        if self._by_value and tensor.is_cpu:
            values = _Copy(tensor)
        elif tensor.is_inference():
            return
        version = -1 if tensor.is_inference() else tensor._version
        key, entries = id(tensor), self._entries
        entries[key] = (weakref.ref(tensor, lambda _: entries.pop(key, None)), version, values, answer)
