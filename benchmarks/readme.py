"""Keeps the table of the README equal to what the committed result file says."""

from __future__ import annotations

from pathlib import Path

from .document import Table, load
from .report import summary

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
README = Path(__file__).absolute().parent.parent / "README.md"


def render(text: str, block: str) -> str:
    """``text`` with what is between the markers replaced; ValueError unless each marker is there once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the README needs the markers {BEGIN} and {END}, once each and in this order")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{block}{END}{after}"


def update(result: Path, readme: Path = README, check: bool = False) -> bool:
    """Write the table into the README, or only look when ``check``. True when it was (or is) up to date."""
    text = readme.read_text()
    wanted = render(text, summary(Table(load(result))))
    if wanted == text:
        return True
    if not check:
        readme.write_text(wanted)
    return False
