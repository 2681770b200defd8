"""The site that `make docs` built: every public name and page is in it, drawings are drawn."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from test_docstrings import public

from documents import ROOT
from tools import drawings

SITE = ROOT / "build" / "site"
_needs_site = pytest.mark.skipif(not (SITE / "objects.inv").exists(), reason="`make docs` builds the site")


def built(test: Callable[[], None]) -> Callable[[], None]:
    """Mark a test that reads the site: `make test-all` builds it before, `make test` does not."""
    return pytest.mark.long(_needs_site(test))


def inventory() -> set[str]:
    """Return the names that the API reference has a heading for."""
    data = (SITE / "objects.inv").read_bytes()
    return {line.split()[0] for line in zlib.decompress(data.split(b"\n", 4)[4]).decode().splitlines()}


@built
def test_reference_has_every_public_name() -> None:
    """Each public function and class, by the name that it is imported by or that of its module."""
    names = inventory()
    missing = [
        name
        for name, thing in public().items()
        if not {name, f"{thing.__module__}.{thing.__qualname__}"} & names
    ]
    assert len(names) > 100
    assert not missing, missing


@built
def test_examples_are_code() -> None:
    """An example of a docstring is a program on the page, not a quotation."""
    text = (SITE / "api" / "training" / "index.html").read_text(encoding="utf-8")
    assert "<blockquote>" not in text and text.count('class="gp"') >= 5  # prompts


@built
def test_site_has_every_page() -> None:
    """Each page of docs is a page of the site, in its navigation, and loads nothing from elsewhere."""
    for page in (ROOT / "docs").rglob("*.md"):
        at = page.relative_to(ROOT / "docs").with_suffix("")
        path = SITE / (at.parent if at.name == "index" else at) / "index.html"
        text = path.read_text(encoding="utf-8")
        assert not re.findall(
            r'<(?:script|link|img)[^>]*(?:src|href)="https?://[^"]*\.(?:js|css|png|svg)', text
        )


def test_reference_asks_for_every_public_name() -> None:
    """A page asks for the name by its package or its module: the built site will hold it."""
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    asked = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    missing = [
        name for name, thing in public().items() if not {name.rpartition(".")[0], thing.__module__} & asked
    ]
    assert not missing, missing


def test_navigation_is_complete() -> None:
    """mkdocs.yml names every page once."""
    named = re.findall(
        r"^ +- (?:Home: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE
    )
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(named) == sorted(pages)


def test_drawings_are_drawn_and_shown(tmp_path: Path) -> None:
    """The script draws each picture; it is committed, and a page shows it."""
    drawn = {path.name for path in drawings.draw(tmp_path)}
    assert drawn == {path.name for path in drawings.FIGURES.glob("kernel_*.svg")}
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    for name in drawn:
        assert f"figures/{name})" in pages, name
        assert (tmp_path / name).stat().st_size > 10_000


def test_warnings_stop_the_build() -> None:
    """`--quiet` would drop warnings before `--strict` counts them."""
    (command,) = re.findall(r"-m mkdocs build(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "--strict" in command and "--quiet" not in command
