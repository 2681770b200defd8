"""A tensor that is computed when something reads it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

# What is known before the values are.
_METADATA = {
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    Tensor.dtype.__get__,  # type: ignore[attr-defined]
    Tensor.device.__get__,  # type: ignore[attr-defined]
    Tensor.ndim.__get__,  # type: ignore[attr-defined]
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
}


class LazyTensor(Tensor):
    """Stands for the tensor that `build` returns; any function of torch that gets it sees that tensor.

    Args:
        shape: of that tensor.
        like: a tensor of its dtype and device.
        build: called once, at the first use, with gradients recorded if they were when this was made.
    """

    _build: Callable[[], Tensor] | None
    _tensor: Tensor
    _recording: bool

    @staticmethod
    def __new__(cls, shape: Sequence[int], like: Tensor, build: Callable[[], Tensor]) -> "LazyTensor":
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)  # type: ignore[attr-defined]
        made._build = build
        made._recording = torch.is_grad_enabled()
        return made

    def tensor(self) -> Tensor:
        """The values, as an ordinary tensor."""
        if self._build is not None:
            with torch.set_grad_enabled(self._recording):
                self._tensor = self._build()
            self._build = None  # and with it what it was computed from
        return self._tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(LazyTensor, LazyTensor.tensor, (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Reached only past `__torch_function__`, where gradients would be lost."""
        raise RuntimeError(f"{func} got a tensor of pykan that is computed when read: pass it times 1")
