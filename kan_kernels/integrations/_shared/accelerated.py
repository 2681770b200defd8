"""The class of a layer that was taken: the peer's class with an adapter's fast methods on top."""

import copyreg
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..._engine import dispatch

_PURE = frozenset({"_WeightNorm", "_Orthogonal"})  # functions of torch's parametrizations, without a state


class Accelerated(nn.Module if TYPE_CHECKING else object):  # type: ignore[misc]
    """The common base of the fast subclasses; adapters put their methods into a subclass of it.

    Whatever a mixin keeps on an instance belongs into `__dict__` under names that start with `_kan_kernels_`:
    it is left out of copies and pickles, and removed by `restore`.

    The code of a layer is judged when it is taken, copied or unpickled, and again when an attribute is set or
    deleted that its code calls: a method, or a child whose code was judged. A forward reads the answer, and
    compares a few options where the code is not the peer's to the letter.

    Example:
        >>> isinstance(nn.Linear(2, 1), Accelerated)  # `accelerate` takes none
        False
    """

    _kan_kernels_original: type
    """The peer's class. Set on the classes that `accelerated_class` makes, and nowhere else."""

    _kan_kernels_mixin: "type[Accelerated]"
    """The adapter's class. Set beside it."""

    _kan_kernels_only_x = True
    """Whether forward takes nothing but x."""

    _kan_kernels_watched: frozenset[str] = frozenset()
    """Names whose replacement on the instance changes what its own code computes."""

    _kan_kernels_methods: tuple[tuple[str, frozenset[str]], ...] = ()
    """What its code calls of its own class and of its parts', as `Verdict.methods`."""

    _kan_kernels_known = False
    """Whether its code is the peer's to the letter."""

    _kan_kernels_reads: tuple[str, ...] = ()
    """Children whose tensors the kernels read in place of calling them."""

    _kan_kernels_left: str | None = None
    """Why the layer's own code runs, since it is no longer the code that was taken; None if it is."""

    _kan_kernels_dims: frozenset[int] | None = None
    """The numbers of dimensions of x for which its own code and the kernels agree; None for all."""

    _kan_kernels_judged: tuple[Any, ...] | None = None
    """`_kan_kernels_options` when it was judged, where its code may do something else with others."""

    def _kan_kernels_options(self) -> tuple[Any, ...]:
        """Return what the probe of code that is not the peer's to the letter was told of the layer."""
        return ()

    def _kan_kernels_why_own(self) -> str | None:
        """Return why the layer is no longer the one that was taken, or None; judge it again if it changed."""
        if not torch.compiler.is_compiling():
            judged = self._kan_kernels_judged
            if judged is not None and self._kan_kernels_options() != judged:
                self._kan_kernels_judge_again()
            if self._kan_kernels_left is None and (name := self._kan_kernels_replaced()) is not None:
                return f"{name} was replaced on this instance"  # for as long as it is
        return self._kan_kernels_left or self._kan_kernels_parametrized()

    def _kan_kernels_replaced(self) -> str | None:
        """Return a method that its code calls and that was put on the instance or a part, however it was."""
        for part, names in self._kan_kernels_methods:
            module = self._modules.get(part) if part else self
            if module is not None and not names.isdisjoint(module.__dict__):
                return ".".join([*([part] if part else []), min(names & module.__dict__.keys())])
        return None

    def _kan_kernels_parametrized(self) -> str | None:
        """Return which parametrization may draw numbers or count whenever a tensor is read, or None.

        Checks read tensors too, so that it would run more often than for its own code.
        """
        for part in (self, *map(self._modules.get, self._kan_kernels_reads)):
            lists: Any = None if part is None else part._modules.get("parametrizations")
            for made in () if lists is None else [made for each in lists.values() for made in each]:
                kind = type(made)
                if kind.__module__ != "torch.nn.utils.parametrizations" or kind.__name__ not in _PURE:
                    return f"it is parametrized by {kind.__qualname__}, which may do more whenever it is read"
        return None

    def _kan_kernels_why_own_for(self, x: Any) -> str | None:
        """Return why a call with x runs the layer's own code, by what was judged, or None."""
        why = self._kan_kernels_why_own()
        if why is None and (traced(x) or not self._kan_kernels_takes(x)):
            return "x is traced, or has dimensions that its code takes otherwise"
        return why

    def _kan_kernels_judge(self) -> "tuple[str | None, frozenset[int] | None]":
        """Return why the layer as it is now has to run its own code, or None, and `_kan_kernels_dims`."""
        return None, None

    def _kan_kernels_attach(self) -> None:
        """Prepare an instance whose class was just set: by `accelerate`, or for a copy, still empty."""

    def _kan_kernels_detach(self) -> None:
        """Clean up before `restore` takes the class away."""

    def _kan_kernels_note(self) -> str:
        """Return what the report says behind the adapter's name."""
        return ""

    def _kan_kernels_for_now(self) -> str:
        """Return a note for a layer that was taken and yet runs the peer's own code; else nothing."""
        fallback = self._kan_kernels_fallback()
        return "" if fallback is None else f"for now its own code runs, since {fallback}"

    def _kan_kernels_fallback(self) -> str | None:
        """Return why forward runs the peer's own code as the module is now; None if it runs the kernels."""
        return self._kan_kernels_why_own()

    def _kan_kernels_path(self) -> str:
        """Return what `explain` adds about the kernels that run."""
        return ""

    def _dispatch_options(self) -> str:
        """Return what `explain` says: whether the kernels run now, or why not."""
        why = self._kan_kernels_fallback()
        if why is None:
            return f"runs the kernels{self._kan_kernels_path()}"
        return f"runs the peer's own code: {why}"

    def _kan_kernels_takes(self, x: Any) -> bool:
        """Return whether its own code and the kernels agree for as many dimensions as x has."""
        return self._kan_kernels_dims is None or x.dim() in self._kan_kernels_dims

    def _kan_kernels_judge_again(self) -> None:
        """Put down what `_kan_kernels_judge` says, where it is not what holds for every layer."""
        state = self.__dict__
        for name in ("_kan_kernels_left", "_kan_kernels_dims", "_kan_kernels_judged"):
            state.pop(name, None)
        why, dims = self._kan_kernels_judge()
        if why is not None:
            state["_kan_kernels_left"] = why
        if dims is not None:
            state["_kan_kernels_dims"] = dims

    def _kan_kernels_watches(self, name: str) -> bool:
        """Return whether to judge the layer again where an attribute of this name is set or deleted."""
        called = (names for part, names in self._kan_kernels_methods if not part)
        return name in self._kan_kernels_watched or any(name in names for names in called)

    def __setattr__(self, name: str, value: Any) -> None:
        watched = self._kan_kernels_watches(name)  # setting __class__ takes this away
        super().__setattr__(name, value)
        if watched:
            self._kan_kernels_judge_again()

    def __delattr__(self, name: str) -> None:
        watched = self._kan_kernels_watches(name)
        super().__delattr__(name)
        if watched:
            self._kan_kernels_judge_again()

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self._kan_kernels_judge_again()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy, deepcopy and pickle: make the dynamic class anew from two classes that have names."""
        function, args, *rest = super().__reduce_ex__(protocol)
        # a peer that reduces in its own way, or a class on top of ours, knows what to do
        if function is not copyreg.__newobj__ or not is_accelerated(self):  # type: ignore[attr-defined]
            return function, args, *rest
        if rest and isinstance(rest[0], dict):
            rest[0] = {key: value for key, value in rest[0].items() if not key.startswith("_kan_kernels_")}
        made = type(self)
        return _rebuild, (made._kan_kernels_mixin, made._kan_kernels_original, *args[1:]), *rest


class WithMoreArguments(Accelerated):
    """A mixin on top of one whose forward takes x, for code whose forward takes more or calls it otherwise.

    Called with more than one argument, or by its name, the layer's own code runs. The others keep a forward
    of x alone, which torch.fx can trace.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 1:
            return self._kan_kernels_original.forward(self, *args, **kwargs)  # type: ignore[attr-defined]
        return super().forward(*args)


def traced(x: object) -> bool:
    """Return whether a call is being written down as operations of torch: the layer's own code has to run.

    torch.jit.trace and all that is built on it (TensorBoard, fvcore, the older ONNX exporter), torch.fx, and
    the newer ONNX exporter: none has a name for the kernels' ops. torch.compile and torch.export do.
    """
    if not isinstance(x, Tensor):
        return True
    if torch.compiler.is_compiling():
        return dispatch.exporting_to_onnx()
    return torch._C._get_tracing_state() is not None


_classes: dict[tuple[type, type], type[Accelerated]] = {}


def accelerated_class(mixin: type[Accelerated], original: type[nn.Module]) -> type[Accelerated]:
    """Return the subclass of a peer's class that runs a mixin's methods; the same one each time."""
    made = _classes.get((mixin, original))
    if made is None:
        body = {
            "__module__": original.__module__,
            "__qualname__": f"Accelerated{original.__qualname__}",
            "__doc__": original.__doc__,
            "_kan_kernels_original": original,
            "_kan_kernels_mixin": mixin,
        }
        arguments = list(inspect.signature(original.forward).parameters)
        more = mixin._kan_kernels_only_x and arguments[1:] != ["x"]
        bases = (WithMoreArguments, mixin, original) if more else (mixin, original)
        made = type(f"Accelerated{original.__name__}", bases, body)
        _classes[mixin, original] = made
    return made


def _rebuild(mixin: type[Accelerated], original: type[nn.Module], *args: Any) -> Accelerated:
    made = accelerated_class(mixin, original)
    module: Any = copyreg.__newobj__(made, *args)  # type: ignore[attr-defined]
    module._kan_kernels_attach()
    return module


def is_accelerated(module: nn.Module) -> bool:
    """Return whether the module's class is one that `accelerate` set.

    Args:
        module: any module; its children are not looked at.

    Example:
        >>> is_accelerated(nn.Linear(2, 1))
        False
    """
    return "_kan_kernels_original" in type(module).__dict__


def overrides(module: nn.Module, owner: type, names: tuple[str, ...]) -> str | None:
    """Return which of these methods the module does not have from `owner`, and where from, or None."""
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
    """Return the first class in the module's method resolution order that satisfies `is_owner`, or None."""
    return next((cls for cls in type(module).__mro__ if is_owner(cls)), None)
