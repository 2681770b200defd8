"""Docstrings: public ones are complete and their examples run; all speak in the imperative, in our words."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import kan_kernels
from documents import ROOT, tracked
from kan_kernels import symbolic
from kan_kernels.nn import function_library
from tools import public_names

EXTRAS = {
    "kan_kernels.estimators": "sklearn",
    "kan_kernels.integrations.pykan.convert": "kan",
    "kan_kernels.plotting.network": "matplotlib",
    "kan_kernels.plotting.pages": "matplotlib",
    "kan_kernels.plotting.scores": "matplotlib",
    "kan_kernels.plotting.style": "matplotlib",
    "kan_kernels.symbolic.discovery.laws": "sympy",
    "kan_kernels.symbolic.discovery.result": "sympy",
    "kan_kernels.symbolic.discovery.search": "sympy",
    "kan_kernels.symbolic.expressions": "sympy",
}
_VERBS = """
Accept Add Apply Ask Call Cast Check Clean Compare Compute Continue Convolve Copy Count Cut Define Do Draw
Drop Evaluate Find Fit Fix Follow Forget Give Go Initialise Join Judge Keep Launch Lay Load Look Make Map
Measure Move Multiply Note Place Polish Prepare Print Put Raise Rank Read Refine Refuse Register Replace
Return Round Run Save Scale Score Set Solve Sort Split Spread Store Sum Switch Take Tell Train Wrap Write
Yield
"""
VERBS = frozenset(_VERBS.split())
CLASS = re.compile(r"(A|An|The|All|Replaces) ")
# What is said no longer, what is said instead, and the rooms whose comments still say it.
WORDS = (
    (r"\bglobal bas[ie]s\b", "full support", ()),
    (r"\breach(es)? everywhere\b", "full support", ()),
    (r"\bside weights?\b", "row scale", ()),
    (r"\bturn(s|ed|ing)? (\w+ )?round\b", "transpose", ()),
    (r"\bnormed\b", "layer norm + RBF", ()),
    (r"\bremember(s|ed)?\b", "keep, store; tensor cache", ()),
    (r"(?<!`)\bplans?\b", "blocking", ()),
    (r"\bmatrix products?\b", "GEMM", ()),
    (r"\bcompat\b", "integrations", ()),
)


@cache
def sources() -> dict[str, str]:
    """Return the text of every module of the package, by its dotted name."""
    found = {}
    for path in tracked():
        if path.suffix == ".py" and path.parts[0] == "kan_kernels":
            parts = path.with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = (ROOT / path).read_text(encoding="utf-8")
    return found


EXAMPLES = {name: text.count(">>> ") for name, text in sources().items() if ">>> " in text}


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep what examples write, register and draw to themselves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(function_library, "_library", dict(function_library._library))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str, alone: None) -> None:
    """Every example of a module prints what it says."""
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    module = importlib.import_module(name)
    runner, printed = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS), io.StringIO()
    given = {"torch": torch, "symbolic": symbolic, "KAN": kan_kernels.KAN, "KANLinear": kan_kernels.KANLinear}
    for test in doctest.DocTestFinder().find(module, name, globs={**given, **vars(module)}):
        runner.run(test, out=printed.write)
    assert runner.failures == 0, printed.getvalue()
    assert runner.tries >= EXAMPLES[name]  # none was overlooked


def public() -> dict[str, Any]:
    """Return the public functions and classes, each by the first of its names."""
    found: dict[int, tuple[str, Any]] = {}
    for name in public_names.MODULES:
        module = importlib.import_module(name)
        for word in public_names.own_names(module):
            thing = getattr(module, word)
            if callable(thing):
                found.setdefault(id(thing), (f"{name}.{word}", thing))
    return dict(found.values())


def section(doc: str, *names: str) -> str:
    """Return the lines of the sections of these names."""
    found = re.findall(rf"^(?:{'|'.join(names)}):\n((?:(?:    .*)?\n)+)", doc + "\n", re.MULTILINE)
    return "".join(found)


def arguments(thing: Any) -> list[str]:
    """Return what a caller gives, or the fields of a record."""
    if dataclasses.is_dataclass(thing):
        return [field.name for field in dataclasses.fields(thing)]
    if hasattr(thing, "_fields"):
        return list(thing._fields)
    return list(inspect.signature(thing).parameters)


def raised(thing: Any) -> list[str]:
    """Return the errors about arguments that a function, or the making of an object, raises itself or by
    `checks`, and, of arguments that are "as for" another function, those of that one.
    """
    doc = inspect.cleandoc(thing.__doc__ or "")
    for name in re.findall(r"as for `(\w+)`", section(doc, "Args")):
        other = thing.__globals__.get(name) if inspect.isfunction(thing) else None
        if (
            other is not None
            and other is not thing
            and section(inspect.cleandoc(other.__doc__ or ""), "Raises")
        ):
            return [f"those of {name}"]
    made = thing.__init__ if inspect.isclass(thing) else inspect.unwrap(thing)
    if dataclasses.is_dataclass(thing):
        made = getattr(thing, "__post_init__", None)
    if not inspect.isfunction(made):
        return []
    tree = ast.parse(textwrap.dedent(inspect.getsource(made)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    names = {ast.unparse(call.func) for call in calls if isinstance(call, ast.Call)}
    found = names & {"TypeError", "ValueError"}
    checked = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return sorted(found | {name for name in checked if name.startswith("checks.")})


def lacks(thing: Any) -> list[str]:
    """Return what the docstring of a public function or class does not say."""
    doc = inspect.cleandoc(thing.__doc__ or "")
    entries = section(doc, "Args", "Attributes")
    said = {
        word
        for line in re.findall(r"(?:^    |\. )(\w+(?:, \w+)*):", entries, re.MULTILINE)
        for word in line.split(", ")
    }
    missing = [f"the argument {name}" for name in arguments(thing) if name not in said]
    if ">>> " not in section(doc, "Example"):
        missing.append("an Example")
    if not section(doc, "Raises") and (errors := raised(thing)):
        missing.append(f"Raises, with {', '.join(errors)}")
    if not inspect.isclass(thing):
        returns = inspect.signature(thing).return_annotation
        gives = str(returns) not in ("None", "Iterator[None]", "collections.abc.Iterator[None]")
        if gives and not section(doc, "Returns") and not re.search(r"\b[Rr]eturn\b", doc.split("\n\n")[0]):
            missing.append("Returns")
    return missing


def test_public_docstrings_are_complete() -> None:
    """Each says what it takes and returns, and has an example."""
    things = public()
    assert len(things) > 60
    wrong = [f"{name}: {', '.join(what)}" for name, thing in things.items() if (what := lacks(thing))]
    assert not wrong, "\n".join(wrong)


def test_lacks_sees_what_is_missing() -> None:
    """The check above fails where it should."""

    def bare(x: int, y: int) -> int:
        """Add.

        Args:
            x: a number.
        """
        return x + y

    assert lacks(bare) == ["the argument y", "an Example", "Returns"]

    def strict(x: int) -> None:
        """Check.

        Args:
            x: a number.

        Example:
            >>> 1
        """
        if x < 0:
            raise ValueError("x")

    assert lacks(strict) == ["Raises, with ValueError"]


def mood(node: ast.AST, doc: str) -> bool:
    """Return whether a docstring begins as it should."""
    if isinstance(node, ast.ClassDef):
        return bool(CLASS.match(doc))
    verbs = [word.rstrip(".,:;") in VERBS for word in doc.split()[:2]]
    return verbs[0] and not any(verbs[1:])  # "Return Tell ..." has one too many


def described(text: str) -> Iterator[tuple[str, ast.AST, str]]:
    """Yield each function and class of a module, private ones too, with its docstring."""

    def visit(node: Any, prefix: str) -> Iterator[tuple[str, ast.AST, str]]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                yield from visit(child, prefix)
                continue
            if doc := ast.get_docstring(child):
                yield prefix + child.name, child, doc
            yield from visit(child, f"{prefix}{child.name}.")

    yield from visit(ast.parse(text), "")


def test_docstrings_are_imperative() -> None:
    """A function's begins with a verb; a class's says what it is or replaces."""
    wrong, count = [], 0
    for module, text in sources().items():
        for name, node, doc in described(text):
            count += 1
            if not mood(node, doc):
                wrong.append(f"{module}.{name}: {doc.splitlines()[0]}")
    assert count > 1000
    assert not wrong, "\n".join(wrong)


def prose(path: Path) -> Iterator[str]:
    """Yield the comments, docstrings and names of functions and classes of a source file."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from re.findall(r"//[^\n]*|/\*.*?\*/", text, re.DOTALL)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name.replace("_", " ")


def test_words() -> None:
    """Comments, docstrings and names have one word for a thing."""
    wrong, count = [], 0
    for path in tracked():
        if path.parts[0] in ("kan_kernels", "csrc", "python") and path.suffix in (".py", ".h", ".cpp", ".cu"):
            for text in prose(path):
                count += 1
                wrong += [
                    f"{path}: {found[0]!r}, say {instead}: {text.strip()[:80]}"
                    for pattern, instead, rooms in WORDS
                    if not str(path).startswith(rooms) and (found := re.search(pattern, text, re.IGNORECASE))
                ]
    assert count > 2000
    assert not wrong, "\n".join(wrong)
