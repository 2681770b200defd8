"""Write the fingerprints of the peers' code, by which `accelerate` knows it: no line of theirs is kept.

    python tools/peer_revisions.py FILE...     add those of layers in these files, of any revision
    python tools/peer_revisions.py             add those of the pykan that is installed

A file is imported, the methods that the adapters judge are read with all that they call, and their
fingerprints are added to kan_kernels/integrations/_shared/revisions.py. A layer is added only if it would be
taken without being known, so an old revision that is faulty, or computes in another dtype, stays unknown.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch

from kan_kernels.integrations._shared import judge as judging
from kan_kernels.integrations._shared.revisions import KNOWN
from kan_kernels.integrations._shared.source import definition, fingerprint
from kan_kernels.integrations._shared.subject import Subject
from kan_kernels.integrations._shared.whitelist import MISSING, find
from kan_kernels.integrations.cheby_kan import adapter as cheby_kan
from kan_kernels.integrations.efficient_kan import adapter as efficient_kan
from kan_kernels.integrations.fast_kan import adapter as fast_kan
from kan_kernels.integrations.fourier_kan import adapter as fourier_kan

OUT = Path(judging.__file__).with_name("revisions.py")
MARK = '_TEXT = """'
# class -> adapter, an instance to try, further methods that are replaced where they are the peer's
PEERS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "KANLinear": (efficient_kan, lambda cls: cls(3, 2), ("update_grid",)),
    "FastKANLayer": (fast_kan, lambda cls: cls(3, 2), ()),
    "ChebyKANLayer": (cheby_kan, lambda cls: cls(3, 2, 4), ()),
    "NaiveFourierKANLayer": (fourier_kan, lambda cls: cls(3, 2, 5), ()),
}
PYKAN = {
    "KANLayer": ("forward", "update_grid_from_samples"),
    "MultKAN": ("forward", "reg"),
    "Symbolic_KANLayer": ("forward",),
}


class _All(judging._Reading):
    """A reading to which every revision is known, and which keeps what it read."""

    def departs(self, function: Any, name: str, method: bool = True) -> str | None:
        made = self.definition(function, name, method)
        add(self.subject.peer, name, fingerprint(made))
        for called, callee, of_class in self.called(made):
            if (called, of_class) not in self.functions:
                self.departs(callee, called, of_class)
        return None


def add(peer: str, name: str, revision: tuple[str, ...]) -> None:
    revisions = KNOWN.setdefault(peer, {}).get(name, ())
    if revision not in revisions:
        KNOWN[peer][name] = (*revisions, revision)


def read(cls: type, peer: str, root: str) -> None:
    value = find(cls, root)
    if value is not MISSING:
        subject = Subject(peer, root, frozenset(), frozenset(), open=False)
        _All(cls, subject).departs(definition(value).function, root)


def read_file(path: Path) -> None:
    name = f"peer_{len(sys.modules)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for class_name, (adapter, make, more) in PEERS.items():
        cls = getattr(module, class_name, None)
        if cls is None:
            continue
        layer = make(cls)
        if not adapter.claims(layer):
            print(f"{path}: {class_name} is not claimed: {adapter.lacks(layer)}")
            continue
        before = {peer: dict(functions) for peer, functions in KNOWN.items()}
        KNOWN.clear(), judging._readings.clear()
        why = adapter.reason(layer)
        KNOWN.update(before), judging._readings.clear()
        if why is not None:
            print(f"{path}: {class_name} stays unknown: {why}")
            continue
        for root in ("forward", *more):
            read(cls, adapter.NAME, root)
        for part, subject in adapter.SUBJECT.parts.items():
            read(type(getattr(layer, part)), subject.peer, subject.root)


def main(files: list[str]) -> None:
    torch.manual_seed(0)
    before = count()
    for file in files:
        read_file(Path(file))
    if not files:
        for class_name, roots in PYKAN.items():
            cls = getattr(importlib.import_module(f"kan.{class_name}"), class_name)
            for root in roots:
                read(cls, f"pykan {class_name}", root)
    text = ""
    for peer, functions in KNOWN.items():
        for name, revisions in functions.items():
            for revision in revisions:
                hashes = textwrap.fill(
                    " ".join(revision), 100, initial_indent="    ", subsequent_indent="    "
                )
                text += f"{peer} / {name}\n{hashes}\n"
    source = OUT.read_text()
    start = source.index(MARK) + len(MARK)
    OUT.write_text(source[:start] + "\n" + text + source[source.index('"""', start) :])
    print(f"{count() - before} added")


def count() -> int:
    return sum(len(revisions) for functions in KNOWN.values() for revisions in functions.values())


if __name__ == "__main__":
    main(sys.argv[1:])
