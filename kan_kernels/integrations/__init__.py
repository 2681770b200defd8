"""Other KAN codebases on these kernels, without a changed line.

    from kan_kernels.integrations import accelerate, restore
    print(accelerate(model))  # what was taken, what was left, and why

A layer that is taken stays the same object with its own parameters, buffers, hooks, state dict and methods:
only its class becomes a subclass of its class, with a forward on the kernels. `restore` gives the class back.

Each peer has an adapter, a module of this package named in ADAPTERS that is imported when it is first needed
and never imports the peer. It has
    NAME                      the peer, as the report calls it
    claims(module) -> bool    whether this is one of the peer's layers, or of a subclass of one
    reason(module) -> str | None    why a claimed module is left alone; None takes it. Changes nothing.
    mixin(module) -> type     the subclass of Accelerated, at module level, that has the fast methods
"""

import copyreg
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import nn

from ..dispatch import explain
from ..nn import KANLinear

__all__ = ["Accelerated", "Entry", "Report", "accelerate", "explain", "restore"]

ADAPTERS = ("efficient_kan", "pykan", "fast_kan", "cheby_kan", "fourier_kan")
"""Modules of this package, asked in this order."""


@dataclass(frozen=True)
class Entry:
    """One module in a report: its name in the model ("" is the model itself), its class, and what or why."""

    name: str
    class_name: str
    why: str


@dataclass(frozen=True)
class Report:
    """What `accelerate` or `restore` did. Print it.

    Attributes:
        action: "accelerate" or "restore".
        taken: the modules whose class was changed, with the adapter's name and what to know about them.
        left: the modules that are or look like layers of a peer and were not changed, with the reason.
    """

    action: str
    taken: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)

    def __str__(self) -> str:
        done = {"accelerate": "taken", "restore": "restored"}[self.action]
        rows = [(done, e) for e in self.taken] + [("left", e) for e in self.left]
        lines = [f"{self.action}: {len(self.taken)} {done}, {len(self.left)} left"]
        if rows:
            names = [entry.name or "(the model)" for _, entry in rows]
            columns = [[what for what, _ in rows], names, [entry.class_name for _, entry in rows]]
            widths = [max(map(len, column)) for column in columns]
            for (_, entry), *cells in zip(rows, *columns, strict=True):
                padded = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
                lines.append(f"  {padded}  {entry.why}")
        return "\n".join(lines)


class Accelerated(nn.Module if TYPE_CHECKING else object):  # type: ignore[misc]
    """What the fast subclasses share; adapters put their methods into a subclass of this one.

    Whatever a mixin keeps on an instance belongs into `__dict__` under names that start with `_kan_kernels_`:
    it is left out of copies and pickles, and removed by `restore`.
    """

    _kan_kernels_original: type
    """The peer's class. Set on the classes that `accelerated_class` makes, and nowhere else."""

    def _kan_kernels_attach(self) -> None:
        """Called after the class was set: by `accelerate`, and on the instance of a copy, still empty."""

    def _kan_kernels_detach(self) -> None:
        """Called before `restore` takes the class away."""

    def _kan_kernels_note(self) -> str:
        """What the report says behind the adapter's name."""
        return ""

    def _kan_kernels_for_now(self) -> str:
        """A note for a layer that was taken and yet runs the peer's own code as it is; else nothing."""
        fallback = self._kan_kernels_fallback()
        return "" if fallback is None else f"for now its own code runs, since {fallback}"

    def _kan_kernels_fallback(self) -> str | None:
        """Why forward runs the peer's own code as the module is now; None if it runs the kernels."""
        return None

    def _kan_kernels_path(self) -> str:
        """What `explain` adds about the kernels that run."""
        return ""

    def _dispatch_options(self) -> str:
        """What `explain` says: whether the kernels run now, or why not."""
        why = self._kan_kernels_fallback()
        if why is None:
            return f"runs the kernels{self._kan_kernels_path()}"
        return f"runs the peer's own code: {why}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """copy, deepcopy and pickle: the dynamic class is made anew from two classes that have names."""
        function, args, *rest = super().__reduce_ex__(protocol)
        # a peer that reduces in its own way, or a class on top of ours, knows what to do
        if function is not copyreg.__newobj__ or not is_accelerated(self):  # type: ignore[attr-defined]
            return function, args, *rest
        if rest and isinstance(rest[0], dict):
            rest[0] = {key: value for key, value in rest[0].items() if not key.startswith("_kan_kernels_")}
        made = type(self)
        mixin = next(base for base in made.__bases__ if issubclass(base, Accelerated))
        return _rebuild, (mixin, made._kan_kernels_original, *args[1:]), *rest


_classes: dict[tuple[type, type], type[Accelerated]] = {}


def accelerated_class(mixin: type[Accelerated], original: type[nn.Module]) -> type[Accelerated]:
    """The subclass of a peer's class that runs a mixin's methods; the same one each time."""
    made = _classes.get((mixin, original))
    if made is None:
        body = {
            "__module__": original.__module__,
            "__qualname__": f"Accelerated{original.__qualname__}",
            "__doc__": original.__doc__,
            "_kan_kernels_original": original,
        }
        made = type(f"Accelerated{original.__name__}", (mixin, original), body)
        _classes[mixin, original] = made
    return made


def _rebuild(mixin: type[Accelerated], original: type[nn.Module], *args: Any) -> Accelerated:
    made = accelerated_class(mixin, original)
    module: Any = copyreg.__newobj__(made, *args)  # type: ignore[attr-defined]
    module._kan_kernels_attach()
    return module


def is_accelerated(module: nn.Module) -> bool:
    """Whether the module's class is one that `accelerate` set."""
    return "_kan_kernels_original" in type(module).__dict__


def adapters() -> list[ModuleType]:
    """The adapters, imported."""
    return [importlib.import_module(f"{__name__}.{name}") for name in ADAPTERS]


def accelerate(model: nn.Module) -> Report:
    """Run the layers of other KAN codebases in this module tree on the kernels of this package.

    Every module of the tree is looked at once, the model itself included. A layer of a known peer is taken
    where the kernels compute the same numbers; a subclass with a forward of its own, and anything that the
    kernels do not have, is left alone. All is decided before anything is changed. A second call changes
    nothing and says so.

    It works before and after `.to()`, deepcopy, pickle, DistributedDataParallel and torch.compile.

    Args:
        model: any module.

    Returns:
        What was taken, and what was left and why. Among the modules of unknown classes those that have
        parameters of their own are listed, torch's own classes and parts of a peer's layer left out.

    Raises:
        TypeError: `model` is no module.
    """
    _check(model)
    report, changes = Report("accelerate"), list[tuple[nn.Module, type[Accelerated], Entry]]()
    inside_known: set[int] = set()
    known = adapters()
    for name, module in model.named_modules():
        class_name = _class_name(module)
        if is_accelerated(module):
            report.left.append(Entry(name, class_name, "is accelerated already"))
            inside_known.update(map(id, module.modules()))
            continue
        adapter = next((adapter for adapter in known if adapter.claims(module)), None)
        if adapter is None:
            if id(module) not in inside_known:
                why = _why_unknown(module, known)
                if why is not None:
                    report.left.append(Entry(name, class_name, why))
            continue
        inside_known.update(map(id, module.modules()))
        why = adapter.reason(module)
        if why is not None:
            report.left.append(Entry(name, class_name, f"{adapter.NAME}: {why}"))
            continue
        changes.append((module, adapter.mixin(module), Entry(name, class_name, adapter.NAME)))
    for module, mixin, entry in changes:
        module.__class__ = accelerated_class(mixin, type(module))
        assert isinstance(module, Accelerated)
        module._kan_kernels_attach()
        note = module._kan_kernels_note()
        report.taken.append(Entry(entry.name, entry.class_name, f"{entry.why}{note and ': '}{note}"))
    return report


def restore(model: nn.Module) -> Report:
    """Give every layer that `accelerate` took its own class back; parameters and buffers stay as they are.

    Raises:
        TypeError: `model` is no module.
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


def overrides(module: nn.Module, owner: type, names: tuple[str, ...]) -> str | None:
    """The first of these methods that the module does not have from `owner`, where it was found, or None."""
    for name in names:
        if name in module.__dict__:
            return f"{name} was replaced on this instance"
        for cls in type(module).__mro__:
            if cls is owner:
                break
            if name in cls.__dict__:
                return f"{cls.__qualname__} has a {name} of its own"
    return None


def mro_class(module: nn.Module, is_owner: Callable[[type], bool]) -> type | None:
    """The first class in the module's method resolution order that satisfies `is_owner`, or None."""
    return next((cls for cls in type(module).__mro__ if is_owner(cls)), None)


def _check(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")


def _class_name(module: nn.Module) -> str:
    return type(module).__qualname__


def _why_unknown(module: nn.Module, known: list[ModuleType]) -> str | None:
    """For the report; None if there is nothing to say about a module like this."""
    if isinstance(module, KANLinear):
        return "is a layer of kan_kernels"
    if type(module).__module__.partition(".")[0] == "torch" or not _has_parameters(module):
        return None
    return f"no adapter knows this class (there are adapters for {', '.join(a.NAME for a in known)})"


def _has_parameters(module: nn.Module) -> bool:
    """Of its own, not of its children."""
    return any(p is not None for p in module._parameters.values())
