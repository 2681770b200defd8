"""Keeps the tables of the pages equal to what the committed result files say."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).absolute().parent.parent / "docs" / "benchmarks.md"


def render(text: str, block: str, marker: str = "benchmarks") -> str:
    """Return ``text`` with what is between the markers replaced; ValueError unless each is there once."""
    begin, end = (f"<!-- {marker}:{side} -->" for side in ("begin", "end"))
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the page needs the markers {begin} and {end}, once each and in this order")
    return f"{text.split(begin)[0]}{begin}\n{block}{end}{text.split(end)[1]}"


def refresh(page: Path, block: str, check: bool, command: str, marker: str = "benchmarks") -> int:
    """Write the block between the markers of a page, or with ``check`` return 1 where it is out of date."""
    text = page.read_text()
    wanted = render(text, block, marker)
    if not check:
        page.write_text(wanted)
    stale = check and wanted != text
    outcome = f"OUT OF DATE: run {command}" if stale else "up to date" if check else "written"
    print(f"{page.name} is {outcome}")
    return int(stale)
