"""What every example shares: arguments, the result file, the machine it ran on."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import kan_kernels

RESULTS = Path(__file__).parent / "results"


def main(name: str, title: str, run: Callable[[bool], dict[str, Any]]) -> None:
    """Run an example and write `results/<name>.json`, or `<name>.fast.json` with --fast.

    `run(fast)` returns {"summary": [{"what", "ours", "theirs"}], ...}; "theirs" is the paper's or pykan's.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--fast", action="store_true", help="a shortened run, for tests")
    fast = parser.parse_args().fast
    torch.set_default_dtype(torch.float64)
    start = time.perf_counter()
    result = run(fast)
    result = {
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
        **result,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}{'.fast' if fast else ''}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["summary"]:
        print(f"{row['what']}: {row['ours']} (theirs: {row['theirs']})")
    print(f"{result['seconds']} s, {path}")


def rmse(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - y).square().mean().sqrt())
