"""A tensor that is computed when something reads it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..._core.function import Function, transforming

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
    """A stand-in for the tensor build(*inputs); any function of torch that gets it sees that tensor.

    An autograd Function (backward hooks, checkpoints, DistributedDataParallel) takes the gradient's way from
    this object and not from that tensor. So it is itself the output of a Function, `_Deferred`; and where
    another Function returned it, that one's history is what the values are given.

    Args:
        shape: of the tensor that it stands for; dtype and device are the first input's.
        build: called once, at the first use, with gradients recorded if they were when this was made, and
            once more for a gradient that comes back through a Function. Differentiable, and uses all inputs.
        inputs: every tensor that it is a function of and that may require grad.
    """

    _build: Callable[[], Tensor] | None
    _tensor: Tensor
    _recording: bool
    _history: Any  # the node of the graph that the values belong to; None if they carry no gradient
    _written: "_Written | None"

    @staticmethod
    def __new__(cls, shape: Sequence[int], build: Callable[..., Tensor], *inputs: Tensor) -> "LazyTensor":
        recording = torch.is_grad_enabled()
        if recording and any(t.requires_grad for t in inputs):
            written = _Written()
            made = _Deferred.apply(shape, build, written, *inputs)
            made._written, made._history = written, _node(made)
        else:
            made = cls._wrapper(shape, inputs[0])
            made._written = made._history = None
        made._build, made._recording = lambda: build(*inputs), recording
        return made

    @classmethod
    def _wrapper(cls, shape: Sequence[int], like: Tensor) -> "LazyTensor":
        return Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)  # type: ignore[attr-defined]

    def tensor(self) -> Tensor:
        """Return the values, as an ordinary tensor with this object's place in the graph."""
        node = _node(self)
        if node is not self._history:  # a Function returned this object
            self._history = node
            with _outside_transforms(), torch.inference_mode(False), torch.enable_grad():
                self._tensor = _Read.apply(self)
        return self._values()

    def _values(self) -> Tensor:
        """Return the values, with the history of what they were computed from."""
        if self._build is not None:
            # an inference tensor or one without gradients would stay so for the readers that come later
            with torch.inference_mode(False), torch.set_grad_enabled(self._recording):
                self._tensor = self._build()
            self._build = None  # and with it what it was computed from
            if self._written is not None:
                self._written.watch(self._tensor)
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
        """Refuse: reached only past `__torch_function__`, where gradients would be lost."""
        raise RuntimeError(f"{func} got a tensor of pykan that is computed when read: pass it times 1")


def _outside_transforms() -> AbstractContextManager[Any]:
    """Return a context without torch.func's transforms, which have no part in what was made before them."""
    if not transforming():
        return nullcontext()
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()


def _node(lazy: LazyTensor) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return lazy.grad_fn


class _Written:
    """A flag: whether a tensor was written into since it was made."""

    def __init__(self) -> None:
        self._watched: tuple[Tensor, int] | None = None

    def watch(self, tensor: Tensor) -> None:
        self._watched = (tensor, tensor._version)

    def __bool__(self) -> bool:
        return self._watched is not None and self._watched[0]._version != self._watched[1]


class _Deferred(Function):
    """A LazyTensor, differentiable without having been read: backward computes what it stands for."""

    @staticmethod
    def forward(shape: Any, build: Any, written: _Written, *inputs: Tensor) -> Tensor:
        return LazyTensor._wrapper(shape, inputs[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.build, ctx.written, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.written:
            raise RuntimeError(
                "a tensor of pykan that is computed when read was written into and passed to an autograd "
                "Function: pass a clone"
            )
        higher = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = [t.view_as(t) for t in ctx.saved_tensors]  # one may have been computed from another
            wanted = [t for t in inputs if t.requires_grad]
            grads = iter(torch.autograd.grad(ctx.build(*inputs), wanted, g, create_graph=higher))
        return None, None, None, *(next(grads) if t.requires_grad else None for t in inputs)


class _Read(Function):
    """The values of a LazyTensor that a Function returned, with that Function's history."""

    @staticmethod
    def forward(lazy: LazyTensor) -> Tensor:
        return lazy._values().detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g
