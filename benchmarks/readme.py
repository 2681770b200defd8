"""Keeps the tables of the pages equal to what the committed result files say."""

from __future__ import annotations

from pathlib import Path

from .document import Table, load
from .report import summary

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
README = Path(__file__).absolute().parent.parent / "README.md"


def render(text: str, block: str, begin: str = BEGIN, end: str = END) -> str:
    """``text`` with what is between the markers replaced; ValueError unless each marker is there once."""
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the page needs the markers {begin} and {end}, once each and in this order")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{block}{end}{after}"


def update(result: Path, readme: Path = README, check: bool = False) -> bool:
    """Write the table into the README, or only look when ``check``. True when it was (or is) up to date."""
    return put(readme, summary(Table(load(result))), check)


def put(page: Path, block: str, check: bool = False, begin: str = BEGIN, end: str = END) -> bool:
    """The block between the markers of a page; arguments and result as for ``update``."""
    text = page.read_text()
    wanted = render(text, block, begin, end)
    if wanted == text:
        return True
    if not check:
        page.write_text(wanted)
    return False
