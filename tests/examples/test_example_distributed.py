"""examples/distributed.py under torchrun: the loss of one process, and its checkpoint on other ranks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness import ROOT, paths


def loss(size: int, model: int, *more: str) -> tuple[str, float]:
    """Run it on so many ranks; return what it says of them, and the loss."""
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)] if size > 1 else []
    )
    command = [*launch, "-m", "examples.distributed", "--model", str(model), "--steps", "12", *more]
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths(), "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ((said, value),) = re.findall(r"^(.*) ranks, loss (.*)$", done.stdout, re.MULTILINE)
    return said, float(value)


@pytest.mark.long
def test_torchrun(tmp_path: Path) -> None:
    """One process and four find the same loss in float32; two go on from the checkpoint of four."""
    folder = str(tmp_path / "checkpoint")
    said, alone = loss(1, 1)
    assert said == "1 x 1"
    said, four = loss(4, 2, "--checkpoint", folder)
    assert said == "2 x 2" and abs(four - alone) < 1e-4 * alone
    said, further = loss(2, 2, "--checkpoint", folder)
    assert said == "1 x 2" and further < four
