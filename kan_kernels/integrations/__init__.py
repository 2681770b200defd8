"""Other KAN codebases on these kernels, without a changed line.

    from kan_kernels.integrations import accelerate, restore
    print(accelerate(model))  # what was taken, what was left, and why

A layer that is taken stays the same object with its own parameters, buffers, hooks, state dict and methods:
only its class becomes a subclass of its class, with a forward on the kernels. `restore` gives the class back.

Each peer has a folder named in ADAPTERS. Its module `adapter` is imported when it is first needed and never
imports the peer. It has
    NAME                      the peer, as the report calls it
    claims(module) -> bool    whether this is one of the peer's layers, or of a subclass of one
    lacks(module) -> str | None     what an unclaimed module that is much like the peer's lacks; else None
    reason(module) -> str | None    why a claimed module is left alone; None takes it. Changes nothing.
    mixin(module) -> type     the subclass of Accelerated, at module level, that has the fast methods
"""

import importlib
import sys
from dataclasses import replace
from types import ModuleType

from torch import nn

from .._engine.dispatch import explain
from ..nn import KANLinear
from ._shared.accelerated import Accelerated, accelerated_class, is_accelerated
from ._shared.report import Entry, Report, has_parameters, looks_like_a_kan

__all__ = ["Accelerated", "Entry", "Report", "accelerate", "explain", "is_accelerated", "restore"]

ADAPTERS = ("efficient_kan", "pykan", "fast_kan", "cheby_kan", "fourier_kan")
"""Folders of this package, asked in this order."""


def adapters() -> list[ModuleType]:
    """Return the adapters, imported."""
    return [importlib.import_module(f"{__name__}.{name}.adapter") for name in ADAPTERS]


def accelerate(model: nn.Module) -> Report:
    """Run the layers of other KAN codebases in this module tree on the kernels of this package.

    Every module of the tree is looked at once, the model itself included. A layer of a known peer is taken
    where its code is the peer's, or surely the same formula, and the kernels compute the same numbers;
    anything else is left alone. All is decided here, by reading the code, and before anything is changed: a
    method that is replaced on a peer's class afterwards is not seen. A second call changes nothing and says
    so.

    It works before and after `.to()`, deepcopy, pickle, DistributedDataParallel and torch.compile, and before
    fully_shard.

    Args:
        model: any module.

    Returns:
        What was taken, and what was left and why. Among the modules of unknown classes those are listed that
        look like a KAN by their names, or have a parameter, buffer or child that does; the others are
        counted.

    Raises:
        TypeError: `model` is no module.

    Example:
        >>> print(accelerate(nn.Sequential(KANLinear(2, 1))))
        accelerate: 0 taken, 1 left
          left  0  KANLinear  is a layer of kan_kernels
    """
    _check(model)
    taken, left = list[Entry](), list[Entry]()
    changes = list[tuple[nn.Module, type, Entry]]()
    inside_known: set[int] = set()
    unknown = list[tuple[str, nn.Module]]()
    known = adapters()
    order = {name: n for n, (name, _) in enumerate(model.named_modules())}
    for name, module in model.named_modules():
        class_name = _class_name(module)
        if is_accelerated(module):
            left.append(Entry(name, class_name, "is accelerated already"))
            inside_known.update(map(id, module.modules()))
            continue
        adapter = next((adapter for adapter in known if adapter.claims(module)), None)
        if adapter is None:
            unknown.append((name, module))
            continue
        inside_known.update(map(id, module.modules()))
        sharded = "is under fully_shard; accelerate before that" if _fully_sharded(module) else None
        why = sharded or adapter.reason(module)
        if why is not None:
            left.append(Entry(name, class_name, f"{adapter.NAME}: {why}"))
            continue
        try:
            made = accelerated_class(adapter.mixin(module), type(module))
        except TypeError as error:  # a class may refuse to be inherited from
            left.append(
                Entry(name, class_name, f"{adapter.NAME}: its class cannot be inherited from: {error}")
            )
            continue
        changes.append((module, made, Entry(name, class_name, adapter.NAME)))
    others = 0
    for name, module in unknown:
        if id(module) in inside_known:
            continue
        why = _why_unknown(module, known, inside_known)
        if why is not None:
            left.append(Entry(name, _class_name(module), why))
        elif has_parameters(module) and type(module).__module__.partition(".")[0] != "torch":
            others += 1
    for module, made, entry in changes:
        module.__class__ = made
        assert isinstance(module, Accelerated)
        module._kan_kernels_attach()
        module._kan_kernels_judge_again()
        note = module._kan_kernels_note()
        taken.append(replace(entry, why=f"{entry.why}{note and ': '}{note}"))
    return Report("accelerate", taken, sorted(left, key=lambda entry: order[entry.name]), others)


def restore(model: nn.Module) -> Report:
    """Give every layer that `accelerate` took its own class back, and return a report.

    Args:
        model: any module; its parameters and buffers stay as they are.

    Raises:
        TypeError: `model` is no module.

    Example:
        >>> print(restore(KANLinear(2, 1)))
        restore: 0 restored, 0 left
    """
    _check(model)
    report = Report("restore")
    for name, module in list(model.named_modules()):
        if is_accelerated(module):
            assert isinstance(module, Accelerated)
            original = module._kan_kernels_original
            module._kan_kernels_detach()
            for key in [key for key in module.__dict__ if key.startswith("_kan_kernels_")]:
                del module.__dict__[key]
            module.__class__ = original
            report.taken.append(Entry(name, _class_name(module), "has its own class again"))
        elif isinstance(module, Accelerated):
            report.left.append(
                Entry(
                    name,
                    _class_name(module),
                    "its class was changed again after `accelerate` (parametrized?): undo that first",
                )
            )
    return report


def _check(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")


def _class_name(module: nn.Module) -> str:
    return type(module).__qualname__


def _why_unknown(module: nn.Module, known: list[ModuleType], inside_known: set[int]) -> str | None:
    """Return what the report says of a module of no adapter's; None if there is nothing of a KAN in it."""
    if isinstance(module, KANLinear):
        return "is a layer of kan_kernels"
    if type(module).__module__.partition(".")[0] == "kan_kernels":
        return None
    what = looks_like_a_kan(module)
    inner = list(module.modules())[1:]
    holds_known = any(id(child) in inside_known or isinstance(child, KANLinear) for child in inner)
    if what is None or (holds_known and not has_parameters(module)):
        return None
    lacks = [text for adapter in known if (text := adapter.lacks(module)) is not None]
    if lacks:
        return "; ".join(lacks)
    names = ", ".join(adapter.NAME for adapter in known)
    return f"{what}, but no adapter knows this class (there are adapters for {names})"


def _fully_sharded(module: nn.Module) -> bool:
    """Return whether fully_shard has changed the module's class."""
    loaded = sys.modules.get("torch.distributed.fsdp")
    return loaded is not None and isinstance(module, loaded.FSDPModule)
