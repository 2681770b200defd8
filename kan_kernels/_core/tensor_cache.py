"""What was worked out from a tensor's values, kept for as long as torch counts no write to it."""

import weakref
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_Answer = TypeVar("_Answer")


def readable(tensor: Tensor) -> bool:
    """Return whether the tensor has values here and now: it is not traced, transformed or on meta."""
    if not has_values(tensor) or torch._C._are_functorch_transforms_active():
        return False
    return torch._C._get_tracing_state() is None


def has_values(tensor: Tensor) -> bool:
    """Return whether a tensor that nothing has wrapped has values: it is not compiled for, nor on meta."""
    return not (torch.compiler.is_compiling() or tensor.is_meta or isinstance(tensor, FakeTensor))


class TensorCache(Generic[_Answer]):
    """A cache of one answer for each tensor, in its present state; it goes with the tensor.

    A state is the count of writes, which costs nothing and misses what torch does not count: writes through
    `.data`, and all writes to inference tensors, for which nothing is kept. Tensors must be `readable`.
    """

    def __init__(self) -> None:
        # id -> (the tensor, its version then, the answer)
        self._entries: dict[int, tuple[weakref.ref[Tensor], int, _Answer]] = {}

    def get(self, tensor: Tensor) -> _Answer | None:
        """Return the answer that was put for this state of the tensor, or None."""
        entry = self._entries.get(id(tensor))
        if entry is None or tensor.is_inference():
            return None
        reference, version, answer = entry
        return answer if reference() is tensor and version == tensor._version else None

    def put(self, tensor: Tensor, answer: _Answer) -> None:
        """Keep the answer for this state of the tensor."""
        if tensor.is_inference():
            return
        key, entries = id(tensor), self._entries
        entries[key] = (weakref.ref(tensor, lambda _: entries.pop(key, None)), tensor._version, answer)
