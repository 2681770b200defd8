"""What was worked out from a tensor's values, kept for as long as the tensor has them."""

import weakref
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_Answer = TypeVar("_Answer")


def readable(tensor: Tensor) -> bool:
    """Whether the tensor has values here and now: it is not traced, not transformed and not on meta."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or tensor.is_meta
        or isinstance(tensor, FakeTensor)
    )


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
        self._entries: dict[int, tuple[weakref.ref, int, Tensor | None, _Answer]] = {}

    def get(self, tensor: Tensor) -> _Answer | None:
        entry = self._entries.get(id(tensor))
        if entry is None:
            return None
        reference, version, values, answer = entry
        if reference() is not tensor:
            return None
        if values is None:
            return answer if version == tensor._version else None
        like = values.dtype == tensor.dtype and values.device == tensor.device
        return answer if like and torch.equal(values, tensor) else None

    def put(self, tensor: Tensor, answer: _Answer) -> None:
        """Keep the answer; under inference mode too, if it is itself no inference tensor."""
        values = None
        if self._by_value and tensor.is_cpu:
            with torch.inference_mode(False), torch.no_grad():
                values = tensor.detach().clone()
        elif tensor.is_inference():
            return
        version = -1 if tensor.is_inference() else tensor._version
        key, entries = id(tensor), self._entries
        entries[key] = (weakref.ref(tensor, lambda _: entries.pop(key, None)), version, values, answer)
