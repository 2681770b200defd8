"""Applies the faults of a list one at a time and demands that the tests see them.

`python tests/mutations/run.py cuda|cpu|triton [NAME-PART ...]`; exit status 0 means: the kernels as
they are pass, and every fault was caught. The faults are made in a copy of the sources and the package.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = ("csrc", "kan_kernels")


def load(name: str) -> list[dict]:
    """The faults of one list: name, file, from, to, and the tier that has it, if not `faults`."""
    return json.loads((HERE / f"{name}.json").read_text())


def mutate(root: Path, fault: dict) -> None:
    """Make the fault in the copy at `root`; its `from` must be there exactly once."""
    path = root / fault["file"]
    text = path.read_text()
    count = text.count(fault["from"])
    if count != 1:
        raise ValueError(f"{fault['name']}: {fault['file']} holds its text {count} times, expected once")
    path.write_text(text.replace(fault["from"], fault["to"]))


def caught(name: str, root: Path, timeout: float = 600) -> str | None:
    """How the short tests fail on the sources at `root`, in one line, or None if they pass."""
    environment = {
        **os.environ,
        "KAN_CUDA_HOST_ROOT": str(root),
        "PYTHONPATH": os.pathsep.join(map(str, (root, ROOT / "tests", ROOT / "tests/support"))),
    }
    command = [sys.executable, "-m", f"mutations.check_{name}", str(root)]
    try:
        done = subprocess.run(
            command, cwd=ROOT / "tests", env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return f"no end after {timeout:.0f} s"
    if done.returncode == 0:
        return None
    lines = (done.stdout + done.stderr).strip().splitlines() or [f"exit status {done.returncode}"]
    if any("does not compile" in line for line in lines):
        raise ValueError("a fault must compile:\n" + "\n".join(lines[-12:]))
    return lines[-1][:150]


def seen(name: str, fault: dict) -> str | None:
    """How the short tests fail on a copy of the sources with the fault, or None if they pass."""
    with tempfile.TemporaryDirectory() as folder:
        for part in SOURCES:
            shutil.copytree(ROOT / part, Path(folder) / part, ignore=shutil.ignore_patterns("__pycache__"))
        mutate(Path(folder), fault)
        return caught(name, Path(folder))


def run(name: str, faults: list[dict]) -> list[str]:
    """The names of the faults that no test saw."""
    if (failure := caught(name, ROOT)) is not None:
        raise SystemExit(f"the kernels fail as they are: {failure}")
    missed = []
    for fault in faults:
        how = seen(name, fault)
        print(f"{'MISSED' if how is None else 'caught'}  {fault['name']}: {how}", flush=True)
        if how is None:
            missed.append(fault["name"])
    return missed


def main(arguments: list[str]) -> int:
    name, *rest = arguments
    faults = [fault for fault in load(name) if all(part in fault["name"] for part in rest)]
    missed = run(name, faults)
    print(f"{len(faults) - len(missed)} of {len(faults)} faults caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
