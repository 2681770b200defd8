"""What every example shares: arguments, the result file, the machine it ran on."""

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import kan_kernels
from kan_kernels.plotting import save

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parents[1] / "docs" / "figures"
# what a picture does without: comments, names of groups, a third decimal, indentation
_NEEDLESS = {
    r"(?s)<!--.*?-->|<metadata>.*?</metadata>": "",
    r' id="[A-Za-z.]+\w*_\d+"': "",
    r"\b([1-9]\d*\.\d\d)\d+": r"\1",
    r"\s*\n\s*": "\n",
}


def main(name: str, title: str, run: Callable[[bool], dict[str, Any]]) -> None:
    """Run an example and write `results/<name>.json`, the rows that docs/reproduction.md reads.

    All that it found goes to `<name>.full.json` beside it, or to `<name>.fast.json` with --fast, which stay
    out of the repository. `run(fast)` returns {"summary": [{"what", "ours", "theirs"}], ...}; "theirs" is the
    paper's or pykan's.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--fast", action="store_true", help="a shortened run, for tests")
    fast = parser.parse_args().fast
    torch.set_default_dtype(torch.float64)
    start = time.perf_counter()
    result = run(fast)
    head = {
        "title": title,
        "fast": fast,
        "seconds": round(time.perf_counter() - start, 2),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "kan_kernels": kan_kernels.__version__,
        },
    }
    result = {**head, **result}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.{'fast' if fast else 'full'}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    if not fast:
        path = RESULTS / f"{name}.json"
        path.write_text(json.dumps({key: result[key] for key in (*head, "summary")}, indent=1) + "\n")
    for row in result["summary"]:
        print(f"{row['what']}: {row['ours']} (theirs: {row['theirs']})")
    print(f"{result['seconds']} s, {path}")


def rmse(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - y).square().mean().sqrt())


def save_figure(figure: Any, name: str, dpi: int = 160) -> None:
    """Write `docs/figures/<name>.svg`, for docs/reproduction.md."""
    FIGURES.mkdir(exist_ok=True)
    path = FIGURES / f"{name}.svg"
    save(figure, path, dpi)
    text = path.read_text()
    for pattern, replacement in _NEEDLESS.items():
        text = re.sub(pattern, replacement, text)
    path.write_text(text)
