"""The one base of all autograd Functions: a cheap apply, the rule of vmap, second order by composition."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .tracing import tracing

transforming: Callable[[], bool] = torch._C._are_functorch_transforms_active


def func_or_forward_mode() -> bool:
    """Return whether torch.func, or forward mode, is at work."""
    return transforming() or forward_ad._current_level >= 0


def recording() -> bool:
    """Return whether a backward pass is itself differentiated: create_graph, torch.func, forward mode."""
    if torch.compiler.is_compiling():  # a graph holds ops, which have gradients of their own
        return False
    return torch.is_grad_enabled() or func_or_forward_mode()


class Function(torch.autograd.Function):
    """The part that Functions of rows share."""

    ROWS: tuple[int, ...] = ()  # the arguments that have rows, if the output has rows too

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Call Function.apply without its inspect.signature().bind, which costs more than a small kernel."""
        if transforming():
            return super().apply(*args)  # type: ignore[no-untyped-call]
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Return (outputs, out_dims)."""
        return map_rows(cls.apply, cls.ROWS, info.batch_size, in_dims, args)


class ComposedFunction(Function):
    """A kernel with a gradient kernel; derivatives beyond those come from `compose`, the same in parts.

    A subclass has `forward`, `setup_context` that ends with `keep`, `gradients` and `compose`.
    """

    INPUTS = 0  # the first arguments, those that `compose` is differentiated by

    @classmethod
    def inputs_of(cls, ctx: Any) -> int:
        """Return how many that are in the call of a context."""
        return cls.INPUTS

    @classmethod
    def compose(cls, *args: Any) -> Any:
        """Return what `forward` does, differentiable to any order."""
        raise NotImplementedError

    @classmethod
    def gradients(cls, ctx: Any, *cotangents: Any) -> Sequence[Tensor | None]:
        """Return the gradients of the first INPUTS arguments, by kernels."""
        raise NotImplementedError

    @classmethod
    def plain(cls, *args: Any) -> Any:
        """Return the result for what records ops, not Functions: those of `forward` have gradients."""
        return cls.forward(*args)

    @classmethod
    def run(cls, *args: Any) -> Any:
        """Return the result by the kernel, or composed where torch.func or forward mode is at work."""
        if tracing():
            return cls.plain(*args)
        if func_or_forward_mode():  # within torch.compile too: ops have no tangents
            return cls.compose(*args)
        if torch.compiler.is_compiling():
            return cls.plain(*args)
        return cls.apply(*args)

    @classmethod
    def register(cls, op: str, *constants: Any) -> None:
        """Give the op the same first gradients; the Function has its arguments, and behind them constants."""

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            cls.keep(ctx, (*inputs, *constants))

        def backward(ctx: Any, *cotangents: Any) -> tuple[Tensor | None, ...]:
            others = len(ctx.constants) - cls.INPUTS - len(constants)
            return *cls.gradients(ctx, *cotangents), *(None,) * others

        torch.library.register_autograd(op, backward, setup_context=setup_context)

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], *more: Tensor) -> None:
        """Save the arguments, and further tensors behind them."""
        tensors = [value if isinstance(value, Tensor) else None for value in inputs]
        ctx.save_for_backward(*tensors, *more)
        ctx.constants = tuple(None if isinstance(value, Tensor) else value for value in inputs)
        ctx.set_materialize_grads(False)

    @staticmethod
    def kept(ctx: Any) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
        """Return the arguments, and the further tensors."""
        saved = ctx.saved_tensors
        count = len(ctx.constants)
        inputs = tuple(
            tensor if constant is None else constant
            for tensor, constant in zip(saved[:count], ctx.constants, strict=True)
        )
        return inputs, saved[count:]

    @classmethod
    def _composed_gradients(cls, ctx: Any, cotangents: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Return the gradients of `compose`, where the backward pass is itself to be differentiated."""
        inputs, _ = cls.kept(ctx)
        count = cls.inputs_of(ctx)
        needs = ctx.needs_input_grad[:count]
        # partial derivatives: of aliases, for one operand may have been made of another
        given = [value.view_as(value) if isinstance(value, Tensor) else value for value in inputs[:count]]
        wanted = [value for value, need in zip(given, needs, strict=True) if need]
        device = next(value.device.type for value in inputs if isinstance(value, Tensor))
        with torch.autocast(device, enabled=False):  # in the precision of the forward pass
            results = cls.compose(*given, *inputs[count:])
            results = results if isinstance(results, tuple) else (results,)
            asked = [n for n, g in enumerate(cotangents) if g is not None and results[n] is not None]
            ends, starts = [results[n] for n in asked], [cotangents[n] for n in asked]
            found = iter(torch.autograd.grad(ends, wanted, starts, create_graph=True))
        return [next(found) if need else None for need in needs]

    @classmethod
    def backward(cls, ctx: Any, *cotangents: Any) -> tuple[Tensor | None, ...]:
        """Return a gradient for each argument."""
        count = len(ctx.constants)
        if cotangents[0] is None and all(g is None for g in cotangents):
            return (None,) * count
        again = torch.is_grad_enabled()
        call = cls._composed_gradients(ctx, cotangents) if again else cls.gradients(ctx, *cotangents)
        return *call, *(None,) * (count - len(call))


def map_rows(
    call: Callable[..., Any],
    rows: tuple[int, ...],
    size: int,
    in_dims: tuple[Any, ...],
    args: tuple[Any, ...],
) -> tuple[Any, Any]:
    """Return (outputs, out_dims) of `call` under vmap: fold the mapped dimension into the rows, or else loop.

    Folding needs an output with rows and nothing mapped but the arguments at positions `rows`, each (B, n) or
    None. A mapped weight, and a sum over the rows, take one call for each index.
    """
    if rows and all(dim is None or i in rows for i, dim in enumerate(in_dims)):
        folded = list(args)
        for i in rows:
            if args[i] is not None:
                folded[i] = _lead(args[i], in_dims[i], size).flatten(0, 1)
        return call(*folded).unflatten(0, (size, -1)), 0
    outputs = [
        call(*(arg if dim is None else arg.select(dim, n) for arg, dim in zip(args, in_dims, strict=True)))
        for n in range(size)
    ]
    if isinstance(outputs[0], Tensor):
        return torch.stack(outputs), 0
    return tuple(map(torch.stack, zip(*outputs, strict=True))), (0,) * len(outputs[0])


def map_features(
    call: Callable[..., Any],
    places: tuple[tuple[int, ...], tuple[int, ...]],
    size: int,
    in_dims: tuple[Any, ...],
    args: tuple[Any, ...],
) -> tuple[Any, Any]:
    """Return (outputs, out_dims) of `call` under vmap, where features never meet: more of them, side by side.

    places: where the first arguments and the outputs have their features. Behind those stand constants.
    """
    folded = list(args)
    for n, place in enumerate(places[0]):
        if args[n] is not None:
            t = _lead(args[n], in_dims[n], size).movedim(0, place)
            folded[n] = t.flatten(place, place + 1)
    outputs = call(*folded)
    unfolded = tuple(
        t.unflatten(place, (size, t.shape[place] // size)).movedim(place, 0)
        for t, place in zip(_all(outputs), places[1], strict=True)
    )
    return (unfolded[0], 0) if isinstance(outputs, Tensor) else (unfolded, (0,) * len(unfolded))


def map_stack(
    call: Callable[..., Any],
    ranks: tuple[int, ...],
    shared: int,
    size: int,
    in_dims: tuple[Any, ...],
    args: tuple[Any, ...],
) -> tuple[Any, Any]:
    """Return (outputs, out_dims) of `call` under vmap by one call that has networks side by side.

    ranks: the dimensions of an argument for one network. shared: the place of the argument that all networks
    may have in common. Behind the arguments with ranks stand constants.
    """
    pairs = list(zip(args, in_dims, ranks, strict=False))
    # under a vmap inside of this one they are a stack already
    inner = {
        t.shape[0 if dim != 0 else 1] for t, dim, rank in pairs if t is not None and _extra(t, dim) > rank
    }
    count = inner.pop() if inner else None
    stacked = []
    for place, (t, dim, rank) in enumerate(pairs):
        if t is None or (dim is None and t.dim() == rank and place == shared):
            stacked.append(t)
            continue
        was = _extra(t, dim) > rank
        t = _lead(t, dim, size)
        if count is not None:
            t = t if was else t.unsqueeze(1).expand(size, count, *t.shape[1:])
            t = t.flatten(0, 1)
        stacked.append(t)
    outputs = call(*stacked, *args[len(ranks) :])
    if count is not None:
        unfold = [t.unflatten(0, (size, count)) for t in _all(outputs)]
        outputs = unfold[0] if isinstance(outputs, Tensor) else tuple(unfold)
    return outputs, 0 if isinstance(outputs, Tensor) else (0,) * len(outputs)


def _extra(tensor: Tensor, dim: int | None) -> int:
    """Return the dimensions without the mapped one."""
    return tensor.dim() - (dim is not None)


def _all(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _lead(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Return the tensor with its mapped dimension first; expanded, if it is not mapped."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
