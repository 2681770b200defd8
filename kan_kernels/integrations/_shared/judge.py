"""Whether the code of a layer is a peer's: to the letter of a known revision, or a formula that can be
probed.

One mechanism for all peers. `judge` reads the method that a `Subject` names and all that it calls of its own
class and module, now. Code that was read is not read again as long as the same functions stand behind the
same names.
"""

import ast
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from torch import nn

from .accelerated import Accelerated
from .revisions import KNOWN
from .source import LOCAL, MISSING, Definition, Unreadable, canonical, definition, fingerprint, statements
from .subject import Subject
from .whitelist import DATA, Reader, Refused, find

_DEEPEST = 8  # calls of own functions inside each other: nobody's layer has more


@dataclass(frozen=True)
class Verdict:
    """A judgement of what the code of a layer is.

    Attributes:
        why: a reason to leave the layer alone, naming the line, or None.
        known: whether it is the peer's to the letter, so that no probe has to look for surprises.
    """

    why: str | None
    known: bool = False
    methods: tuple[tuple[str, frozenset[str]], ...] = ()
    """What the code calls of its own class, and of each part's: (name of the part or "", names)."""
    token: object = None
    """The same object as long as the same code was read; a key for what was worked out from running it."""


@dataclass(eq=False)
class _Reading:
    """A reading of a class's code, and the names that it found behind which functions."""

    cls: type
    subject: Subject
    functions: dict[tuple[str, bool], FunctionType] = field(default_factory=dict)  # by name, and if a method
    methods: set[str] = field(default_factory=set)
    names: list[tuple[Definition, str, Any]] = field(default_factory=list)
    definitions: list[Definition] = field(default_factory=list)
    unreadable: bool = False  # something of it: no reading to be kept
    depth: int = 0

    def definition(self, function: Any, name: str, method: bool) -> Definition:
        try:
            made = definition(function)
        except Unreadable as error:
            self.unreadable = True
            raise Refused(f"its {name} {error}") from None
        self.functions[name, method] = function
        self.definitions.append(made)
        return made

    def still_holds(self) -> bool:
        """Return whether the names that were looked up stand for the same objects, with the same code."""
        if self.unreadable or not all(made.still_runs() for made in self.definitions):
            return False
        for name in self.methods:
            value = find(self.cls, name)
            value = value.fget if isinstance(value, property) else value
            if value is not self.functions.get((name, True), value):
                return False
        return all(made.resolve(name) is value for made, name, value in self.names)

    # ---- the peer's to the letter

    def departs(self, function: Any, name: str, method: bool = True) -> str | None:
        """Return the first line that no known revision has, here or in a function called, or None."""
        made = self.definition(function, name, method)
        own = fingerprint(made)
        revisions = KNOWN.get(self.subject.peer, {}).get(name, ())
        if own not in revisions:
            same = max((_common(own, revision) for revision in revisions), default=0)
            nodes = [node for node, _ in statements(made)]
            where = made.line(nodes[min(same, len(nodes) - 1)])
            if same >= len(own):
                where = f"the end of {name}, {made.line(nodes[-1])}"
            return f"{where} is not {self.subject.peer}'s"
        for called, callee, method in self.called(made):
            self.methods |= {called} if method else set()
            if not isinstance(callee, FunctionType):
                return f"{called} is a {type(callee).__name__}, which {self.subject.peer}'s is not"
            if (called, method) not in self.functions:
                why = self.departs(callee, called, method)
                if why is not None:
                    return why
        return None

    def called(self, made: Definition) -> list[tuple[str, Any, bool]]:
        """Return what a function names of its class, and functions of its module that are not torch's."""
        found: list[tuple[str, Any, bool]] = []
        arguments = getattr(made.node.args, "args", [])
        me = arguments[0].arg if arguments else None
        for node in ast.walk(made.node):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == me:
                value = find(self.cls, node.attr)
                if value is not MISSING and node.attr not in self.subject.callables:
                    found.append((node.attr, value.fget if type(value) is property else value, True))
            elif isinstance(node, ast.Name):
                value = made.resolve(node.id)
                if value is LOCAL or value is MISSING:
                    continue
                self.names.append((made, node.id, value))
                if isinstance(value, FunctionType) and not canonical(value, ""):
                    found.append((node.id, value, False))
        return found

    # ---- a formula

    def follow(
        self, function: Any, name: str, positional: list[int], named: dict[str, int], method: bool
    ) -> int:
        """Return what the result of a call of an own function depends on.

        Raises:
            Refused: it may be more than a formula.
        """
        if method:
            self.methods.add(name)
        made = self.definition(function, name, method)
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Refused(f"{made.line(made.node)} calls itself")
        names = [a.arg for a in (*made.node.args.posonlyargs, *made.node.args.args)][1 if method else 0 :]
        if len(positional) > len(names):
            raise Refused(f"{made.line(made.node)} takes fewer arguments")
        returned = self.read(made, dict(zip(names, positional, strict=False)) | named, method)
        self.depth -= 1
        return returned

    def read(self, made: Definition, kinds: dict[str, int], method: bool) -> int:
        """Return what the result of a function depends on, given what its arguments do."""
        for node in ast.walk(made.node):
            if isinstance(node, ast.Name) and (value := made.resolve(node.id)) is not LOCAL:
                self.names.append((made, node.id, value))
        return Reader(self, made, self.subject, self.cls, kinds, method).returned


_readings: dict[tuple[type, str, str], tuple[_Reading, Verdict]] = {}


def judge(module: nn.Module, subject: Subject) -> Verdict:
    """Read the code of a layer; one that was taken keeps what its code calls, and whether it is the peer's.

    Args:
        module: of the peer's class, or of the class that `accelerate` put on top of it.
        subject: what the peer's code may read and call.

    Returns:
        A verdict on all that the method calls, methods of `parts` included.
    """
    verdict = _judged(module, subject)
    if isinstance(module, Accelerated):
        module.__dict__ |= {"_kan_kernels_methods": verdict.methods, "_kan_kernels_known": verdict.known}
    return verdict


def _judged(module: nn.Module, subject: Subject) -> Verdict:
    cls: type = getattr(type(module), "_kan_kernels_original", type(module))
    reading, verdict = _reading_of(cls, subject)
    methods: tuple[tuple[str, frozenset[str]], ...] = (("", frozenset(reading.methods)),)
    replaced = sorted(reading.methods & module.__dict__.keys())
    why = f"{replaced[0]} was replaced on this instance" if replaced else why_called_otherwise(cls)
    if why is not None:
        return Verdict(why, methods=methods)
    known, tokens = verdict.known, list[Any]([reading])
    for name, part in subject.parts.items():
        child = module._modules.get(name)
        if verdict.why is None and child is not None:
            of_part = _judged(child, part)
            known &= of_part.known
            methods += tuple((name, names) for inner, names in of_part.methods if not inner)
            tokens.append(of_part.token)
            if of_part.why is not None:
                return Verdict(f"{name} ({type(child).__qualname__}): {of_part.why}", methods=methods)
    return Verdict(verdict.why, known, methods, tuple(tokens))


def why_called_otherwise(cls: type) -> str | None:
    """Return why a call of a module of this class is more than its forward and hooks, or None."""
    if cls.__call__ is nn.Module.__call__:
        return None
    return f"{cls.__qualname__} has a __call__ of its own"


def _read(cls: type, subject: Subject) -> tuple[_Reading, Verdict]:
    reading = _Reading(cls, subject, methods={subject.root})
    root = find(cls, subject.root)
    try:
        departure = reading.departs(root, subject.root)
        if departure is None:
            return reading, Verdict(None, known=True)
        if not subject.open:
            return reading, Verdict(departure)
        made = reading.definition(root, subject.root, True)
        arguments = [a.arg for a in made.node.args.args]
        if len(arguments) < 2:
            raise Refused(f"{made.line(made.node)} takes no x")
        reading.read(made, {arguments[1]: DATA}, method=True)
        return reading, Verdict(None)
    except Refused as refused:
        return reading, Verdict(str(refused))


def _common(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Count the entries that two tuples begin with alike."""
    for n, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return n
    return min(len(a), len(b))


def why_not_known(cls: type, peer: str, name: str) -> str | None:
    """Return why a method of a class is not, with all that it calls, a peer's to the letter, or None."""
    why = why_called_otherwise(cls) if name == "forward" else None
    return why or _reading_of(cls, Subject(peer, name, frozenset(), frozenset(), open=False))[1].why


def _reading_of(cls: type, subject: Subject) -> tuple[_Reading, Verdict]:
    key = (cls, subject.peer, subject.root)
    kept = _readings.get(key)
    if kept is None or not kept[0].still_holds():
        kept = _readings[key] = _read(cls, subject)
    return kept
