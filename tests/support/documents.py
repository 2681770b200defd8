"""README, CONTRIBUTING and docs, taken apart: fenced blocks, and the text around them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "tests" / "fixtures" / "README.md"]
)
LEFT_OUT = {".git", ".venv", "build", "dist", "__pycache__", "results"}


@dataclass(frozen=True)
class Block:
    """What stands between two fences, and the comment right before them."""

    path: Path
    line: int
    language: str
    marker: str
    code: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def read(path: Path) -> tuple[list[Block], str]:
    """Return a document's blocks, and the text around them."""
    blocks: list[Block] = []
    text: list[str] = []
    fence, inside, marker = "", [""], ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            if fence:
                blocks.append(Block(path, number - len(inside), fence, marker, "\n".join(inside) + "\n"))
                fence, marker = "", ""
            else:
                fence, inside = line[3:] or "no language", []
        elif fence:
            inside.append(line)
        else:
            if line:
                marker = (re.findall(r"^<!-- (.*) -->$", line) or [""])[0]
            text.append(line)
    assert not fence, f"{path}: a fence is not closed"
    return blocks, "\n".join(text)


BLOCKS = [block for path in DOCUMENTS for block in read(path)[0]]
TEXTS = {path: read(path)[1] for path in DOCUMENTS}
PYTHON = [block for block in BLOCKS if block.language == "python"]


@cache
def tracked() -> tuple[Path, ...]:
    """Every file of the tree that could be committed, relative to its root."""
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in LEFT_OUT and not name.endswith("_cache")]
        found += [Path(folder, name).relative_to(ROOT) for name in names]
    return tuple(found)
