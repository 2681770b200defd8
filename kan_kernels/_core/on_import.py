"""What waits until somebody imports a module that we do not import ourselves."""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_waiting: dict[str, Callable[[ModuleType], Any]] = {}
_searching: set[str] = set()


class _Finder(importlib.abc.MetaPathFinder):
    """A finder that finds what the other finders do, for the modules that are waited for."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        function = _waiting.get(name)
        if function is None or name in _searching:
            return None
        _searching.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            _searching.discard(name)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                function(module)

            loader.exec_module = exec_module
        return spec


def after_import(name: str, function: Callable[[ModuleType], Any]) -> None:
    """Call the function with a module once it is there: now, or when it is imported."""
    if name in sys.modules:
        function(sys.modules[name])
        return
    if not _waiting:
        sys.meta_path.insert(0, _Finder())
    _waiting[name] = function
