"""What README, CONTRIBUTING, docs and comments point at is there: files, headings, objects, variables."""

from __future__ import annotations

import contextlib
import importlib
import re
from functools import cache
from typing import Any

from documents import BLOCKS, DOCUMENTS, ROOT, TEXTS, read, tracked

# Files of others, or that a command writes.
FOREIGN = {
    "ChebyKANLayer_unoptimized.py",
    "fftKAN.py",
    "feynman.md",
    "benchmarks/results/gpu.json",
    "formula.h",
    "kan.h",
    "kan.py",
    "laws.md",
    "math.h",
    "Python.h",
}
SOURCES = (".py", ".h", ".cpp", ".cu")


def slug(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_links() -> None:
    """Relative links name a file, and a heading in it."""
    count = 0
    for path, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("http://", "https://")):
                continue
            name, _, anchor = target.partition("#")
            linked = (path.parent / name).resolve() if name else path
            assert linked.exists(), f"{path.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", read(linked)[1], re.MULTILINE)
                assert anchor in map(slug, headings), f"{path.name}: {target}"
            count += 1
    assert count > 20


def test_the_map_is_complete() -> None:
    """docs/design.md has every module and folder of the package."""
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    for path in (ROOT / "kan_kernels").iterdir():
        module = path.suffix == ".py" and not path.stem.startswith("__")
        if module or (path / "__init__.py").exists():
            name = path.name if module else f"{path.name}/"
            assert re.search(rf"(?<![\w/]){re.escape(name)}(?!\w)", page), (
                f"docs/design.md does not name {name}"
            )


@cache
def tails() -> frozenset[str]:
    """Every way to name a file or folder of the tree from below: a/b.py, b.py, a."""
    return frozenset(
        "/".join(path.parts[start:end])
        for path in tracked()
        for start in range(len(path.parts))
        for end in range(start + 1, len(path.parts) + 1)
    )


FILE = re.compile(r"(?<![\w/.*<>{}~-])\w[\w./-]*\.(?:py|h|cpp|cu|cuh|md|npz|toml|txt|json|svg)\b")
FOLDER = re.compile(r"`((?:[a-z_]+/)+[a-z_]*)`")


def test_named_files_exist() -> None:
    """A path in a text, or in a block that is no program, is one of the tree's, from some folder on."""
    count = 0
    for path in DOCUMENTS:
        drawings = [b.code for b in BLOCKS if b.path == path and b.language == "text"]
        prose = "\n".join([TEXTS[path], *drawings])
        folders = [name.rstrip("/") for name in FOLDER.findall(prose)]
        for name in FILE.findall(prose) + folders:
            homes = (path.parent / name, ROOT / name)
            assert name in tails() | FOREIGN or any(home.exists() for home in homes), (
                f"{path.name} names {name}, which does not exist"
            )
            count += 1
    assert count > 100


def test_files_that_the_sources_name_exist() -> None:
    """So it is with comments and docstrings."""
    for path in tracked():
        if path.suffix in SOURCES and path.parts[0] != "tests":
            for name in FILE.findall((ROOT / path).read_text(encoding="utf-8")):
                if name.endswith((*SOURCES, ".md")):
                    assert name in tails() | FOREIGN, f"{path} names {name}, which does not exist"


def resolves(name: str) -> bool:
    """Whether a dotted name can be imported and looked up."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        with contextlib.suppress(ImportError):
            found: Any = importlib.import_module(".".join(parts[:end]))
            try:
                for part in parts[end:]:
                    found = getattr(found, part)
            except AttributeError:
                return False
            return True
    return False


def test_named_objects_exist() -> None:
    """`grids.refine`, `reference.basis_values`: what a text names of a module of ours is there."""
    modules: dict[str, list[str]] = {}
    for path in tracked():
        if path.suffix == ".py" and path.parts[0] in ("kan_kernels", "benchmarks", "examples"):
            parts = path.with_suffix("").parts
            dotted = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules.setdefault(dotted.rpartition(".")[2], []).append(dotted)
    count = 0
    for path, text in TEXTS.items():
        for name in re.findall(r"`([A-Za-z_]\w*(?:\.\w+)+)(?:\(.*?\))?`", text):
            first, _, rest = name.partition(".")
            if (
                first not in modules or first in ("layer", "model") or FILE.fullmatch(name)
            ):  # objects of the text
                continue
            homes = [name] if first in ("kan_kernels", "benchmarks", "examples") else []
            homes += [f"{module}.{rest}" for module in modules[first]] + [f"torch.{name}"]
            assert any(map(resolves, homes)), f"{path.name} names {name}, which does not exist"
            count += 1
    assert count > 20


def test_names_that_a_text_places_in_a_file_are_there() -> None:
    """ "`name` in `file`", "`name` (`file`)": the file has the name."""
    pattern = re.compile(r"`([A-Za-z_]\w+)`(?: in|,? \(|\s\()\s?`([\w./]+\.(?:py|h|cpp|cu))`")
    count = 0
    for path, text in TEXTS.items():
        for name, file in pattern.findall(text):
            homes = [ROOT / home for home in tracked() if str(home).endswith("/" + file) or str(home) == file]
            assert any(re.search(rf"\b{name}\b", home.read_text()) for home in homes), (
                f"{path.name}: {name}, {file}"
            )
            count += 1
    assert count


def test_environment_variables_are_read() -> None:
    """Each KAN_... that a text names occurs in the sources."""
    sources = "".join(
        (ROOT / path).read_text(encoding="utf-8")
        for path in tracked()
        if path.suffix in (".py", ".cpp", ".h", ".cu") or path.name in ("CMakeLists.txt", "Makefile")
    )
    for path, text in TEXTS.items():
        for name in re.findall(r"\bKAN_[A-Z_]+\b", text):
            assert name in sources, f"{path.name}: {name}"


def test_source_files_are_short() -> None:
    """Each has under the lines that CONTRIBUTING allows."""
    (most,) = map(
        int, re.findall(r"under (\d+) lines", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    )
    lengths = {
        str(path): (ROOT / path).read_text(encoding="utf-8").count("\n")
        for path in tracked()
        if path.suffix in SOURCES
    }
    assert len(lengths) > 300 and not {path: n for path, n in lengths.items() if n >= most}
