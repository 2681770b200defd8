"""Whether the own code of a layer that was recognised by its structure computes the kernels' numbers.

A copy of a peer's code may have been edited. So both run, in float64 on the CPU, on a clone of the layer: the
peer's class and the layer's attributes, but few features, random weights and children of the clone's own.
"""

import copy
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import mro_class

_ROWS = 128
_TOLERANCE = 1e-9  # of the largest entry: float64 rounding of both, far below any edited formula
_Result = TypeVar("_Result")


def owner_by_code(module: nn.Module, names: Collection[str]) -> type | None:
    """The first class in the module's resolution order whose own forward names all these attributes."""

    def names_them(cls: type) -> bool:
        code = getattr(cls.__dict__.get("forward"), "__code__", None)
        return code is not None and set(names) <= set(code.co_names)

    return mro_class(module, names_them)


def more_than(module: nn.Module, names: Collection[str]) -> str | None:
    """A reason to leave a layer alone that has parameters, buffers or children beside these, or None."""
    extra = {*module._parameters, *module._buffers, *module._modules} - set(names)
    return f"has more than the peer's tensors: {', '.join(sorted(extra))}" if extra else None


def wrong_shape(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> str | None:
    """A reason to leave a layer alone that lacks one of these tensors in this shape, or None."""
    for name, shape in shapes.items():
        value = getattr(module, name, None)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            return f"{prefix}{name} is {got}, expected {shape}"
    return None


def random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal numbers in float64 on the CPU, whatever the caller's defaults are."""
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def clone(
    module: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    generator: torch.Generator,
    buffers: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module | None] | None = None,
) -> Any:
    """The class and attributes of a module, random parameters of these shapes, these buffers, no hooks.

    modules: its children; None copies the module's own to float64 on the CPU.
    """
    made = object.__new__(type(module))
    made.__dict__.update(module.__dict__)
    made._parameters = {name: nn.Parameter(random(shape, generator)) for name, shape in shapes.items()}
    made._buffers = dict(buffers)
    made._modules = copied(module._modules) if modules is None else dict(modules)
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(made, hooks, {})
    return made


def copied(modules: Mapping[str, nn.Module | None]) -> dict[str, nn.Module | None]:
    """Children, copied to float64 on the CPU."""
    return {
        name: None if child is None else copy.deepcopy(child).double().cpu()
        for name, child in modules.items()
    }


def inputs(low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Rows from a tenth below `low` to a tenth above `high`, which have one entry for each feature."""
    x = torch.rand(_ROWS, len(low), generator=generator, dtype=torch.float64, device="cpu")
    return low + (high - low) * (1.2 * x - 0.1)


def same(got: Tensor | None, want: Tensor | None) -> bool:
    if got is None or want is None:
        return got is want
    return got.shape == want.shape and bool(
        ((got - want).abs() <= _TOLERANCE * want.abs().max().clamp_min(1.0)).all()
    )


def isolated(probe: Callable[..., _Result]) -> Callable[..., _Result]:
    """Run a probe whatever the caller's modes are, and leave the random state as it is."""

    @functools.wraps(probe)
    def run(*args: Any) -> _Result:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.random.fork_rng(devices=[]),
        ):
            return probe(*args)

    return run


@isolated
def differs(
    peer: str,
    make: Callable[[torch.Generator], tuple[Any, Tensor]],
    own: Callable[[Any, Tensor], Tensor],
    ours: Callable[[Any, Tensor], Tensor],
) -> str | None:
    """A reason to leave a layer alone whose own code gives another y or other gradients, or None.

    Args:
        peer: what the report calls it.
        make: a new clone and inputs for it.
        own, ours: the same call of a clone by its own code and by the kernels. Each gets a copy of x: an
            activation may work in place; and the same random numbers.
    """
    try:
        for training in (True, False):
            generator = torch.Generator().manual_seed(7)
            made, x = make(generator)
            for module in made.modules():
                module.training = training
            x.requires_grad_()
            arguments = [x, *(p for p in made.parameters() if p.requires_grad)]
            results = []
            for call in (own, ours):
                torch.manual_seed(7)
                results.append(call(made, x.clone()))
            if not same(results[1], results[0]):
                return f"its forward computes something else than {peer}'s (compared on a probe)"
            g = random(tuple(results[0].shape), generator)
            gradients = [torch.autograd.grad(y, arguments, g, allow_unused=True) for y in results]
            if not all(map(same, gradients[1], gradients[0])):
                return f"its gradients are others than {peer}'s (compared on a probe)"
    except Exception as error:  # whatever code the copy has
        return f"its forward could not be compared on a probe: {type(error).__name__}: {error}"
    return None
