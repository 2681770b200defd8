"""docs/reproduction.md from the result files: our figure beside the paper's or pykan's, and the time.

python -m examples.report [--check]
"""

import argparse
import json
import sys
from pathlib import Path

from .common import FIGURES, RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "reproduction.md"
HEAD = """# The paper's figures, reproduced

Made by `python -m examples.report` from `examples/results/*.json`, which the examples write
(`python -m examples.figure_2_4`, ...). The paper is arXiv 2404.19756; "pykan" means its notebooks.
Times are wall clock on a machine that other programs may have shared.
"""


def section(path: Path) -> str:
    result = json.loads(path.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [f"## {result['title']}", "", "| | ours | paper or pykan |", "| :-- | :-- | :-- |"]
    lines += [f"| {row['what']} | {row['ours']} | {row['theirs']} |" for row in result["summary"]]
    lines += [
        "",
        f"{result['seconds']} s with {result['threads']} thread(s) of {result['cores']} cores; {versions}.",
    ]
    pictures = sorted(FIGURES.glob(f"{path.stem}*.svg"))
    lines += [f"\n![{picture.stem}](figures/{picture.name})" for picture in pictures]
    return "\n".join(lines)


def page() -> str:
    paths = sorted(p for p in RESULTS.glob("*.json") if "." not in p.stem)
    return "\n\n".join([HEAD.strip(), *map(section, paths)]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="write docs/reproduction.md")
    parser.add_argument("--check", action="store_true", help="fail if the page is not up to date")
    if not parser.parse_args().check:
        PAGE.write_text(page())
    elif not PAGE.exists() or PAGE.read_text() != page():
        sys.exit("docs/reproduction.md is not up to date: python -m examples.report")
