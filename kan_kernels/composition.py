"""Which spline layers a model has, and whether they are all that it computes."""

import functools
from typing import Any

from torch import nn

from . import replicas
from .nn import KAN, KANLinear, MultiHeadKANLinear, Products, SelectedInputs
from .nn.heads import HeadFunctions

KNOWN = "a KAN or a KANLinear (integrations.convert makes them of pykan's and efficient-kan's models)"


def layers_of(model: Any, argument: str = "model", *, sharded: bool = False) -> list[KANLinear]:
    """Return the layers of a KAN, or the KANLinear itself.

    Raises:
        TypeError: `model`, the argument of that name, is neither.
        ValueError: its parameters are sharded over ranks, and not `sharded`, whether they may be.
    """
    if not sharded and isinstance(model, nn.Module) and replicas.is_sharded(model):
        raise ValueError(
            f"{argument}: its parameters are sharded over ranks (fully_shard, parallelize_module), expected "
            "whole ones; do this before sharding, or on a model that loaded their full tensors"
        )
    if isinstance(model, KANLinear):
        return [model]
    if isinstance(model, KAN):
        return [getattr(layer, "_orig_mod", layer) for layer in model.layers]  # some may be compiled
    expected = KNOWN
    if isinstance(model, SelectedInputs):
        expected += "; go on with its .model and .select(x)"
    if isinstance(model, MultiHeadKANLinear):
        expected += "; head_functions.untied makes a KANLinear that computes the same"
    kind = type(model)
    named = kind.__qualname__
    if named in ("KAN", "KANLinear"):  # other codebases' have these names too
        named = f"{kind.__module__}.{named}"
    raise TypeError(f"{argument}: got {named}, expected {expected}")


def opened(model: nn.Module, x: Any = None) -> tuple[nn.Module, Any]:
    """Return the model in `SelectedInputs` and its columns of x; any other model, and x, as they are."""
    if not isinstance(model, SelectedInputs):
        return model, x
    return model.model, None if x is None else model.select(x)


def products_of(model: nn.Module) -> list[Products]:
    """Return the nodes behind every layer of a KAN, or behind a KANLinear: of many they are the outputs."""
    products = model._modules.get("products")
    if isinstance(products, nn.ModuleList):
        return list(products)  # type: ignore[arg-type]
    return [_sums(layer.out_features) for layer in layers_of(model, sharded=True)]


@functools.lru_cache(maxsize=64)
def _sums(count: int) -> Products:
    return Products(count, ())


def spline_layers(model: nn.Module, *, sharded: bool = False) -> dict[str, KANLinear | HeadFunctions]:
    """Return every KANLinear, KANActivation and MultiHeadKANLinear in a module, by its name there.

    Raises:
        TypeError: `model` is no module, or has none of them.
        ValueError: its parameters are sharded over ranks, and not `sharded`, whether they may be.
    """
    expected = "a module with KANLinear, KANActivation or MultiHeadKANLinear layers"
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected {expected}")
    if not sharded and replicas.is_sharded(model):
        raise ValueError(
            "model: its parameters are sharded over ranks (fully_shard, parallelize_module), expected whole "
            "ones"
        )
    kinds = (KANLinear, HeadFunctions)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, kinds):  # what torch.compile put around it is no part of its name
            found[".".join(part for part in name.split(".") if part != "_orig_mod")] = module
    if not found:
        raise TypeError(f"model: got {type(model).__name__} without any, expected {expected}")
    return found


_FORWARDS = {KAN.forward, KANLinear.forward, Products.forward}


def why_no_chain(model: nn.Module) -> str | None:
    """Return why a KAN or KANLinear may be more than its layers, one after the other, or None."""
    layers = [(f"layers[{n}]", layer) for n, layer in enumerate(layers_of(model, sharded=True))]
    products = [(f"products[{n}]", part) for n, part in enumerate(products_of(model))]
    for name, part in [("it", model), *layers, *products]:
        part = getattr(part, "_orig_mod", part)  # the model, or products, may be compiled
        if type(part).forward not in _FORWARDS or "forward" in vars(part):
            return f"{name} has a forward of its own"
        held = [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]
        if not all(_is_torchs(hook) for hook in held):
            return f"{name} has hooks"
    return None


def _is_torchs(hook: Any) -> bool:
    """Return whether a hook makes weights, or shards them: no function of x."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    place = getattr(hook, "__module__", None) or ""
    return place.startswith(("torch.nn.utils.", "torch.distributed."))


def check_chain(model: nn.Module, argument: str = "model") -> None:
    """Raise ValueError where the layers of a KAN alone do not say what it computes."""
    if (why := why_no_chain(model)) is not None:
        raise ValueError(
            f"{argument}: {why}, of which its weights tell nothing, expected a KAN without; one of the same "
            "widths takes its state_dict"
        )


def check_plain(layer: nn.Module, *names: str) -> None:
    """Raise ValueError unless these parameters of a layer, spline_weight by default, are its own tensors."""
    for name in names or ("spline_weight",):
        held = layer._parameters.get(name, layer)
        if held is not None and not isinstance(held, nn.Parameter):
            raise ValueError(
                f"model: {name} is parametrized (or pruned by torch), expected a plain parameter; remove the "
                "parametrization first"
            )
