"""Builds the extension in place with whatever the machine has, or says why it cannot be built here."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from tools import build_needs
from tools.extras import find_program

from ..children import run
from ..machine import all_threads

# Prints one JSON object: what loads and which backends run on the device given as an argument.
PROBE = """
import json, sys, torch
from kan_kernels._core import library
from kan_kernels.backends import BACKENDS
from kan_kernels._core.problem import Problem
device = sys.argv[1]
problem = Problem(device, torch.float32, torch.float32, 64, 64, 8, 3)
reasons = {name: backend.can_run(problem) for name, backend in BACKENDS.items()}
found = {"load_error": library.LOAD_ERROR, "devices": list(library.DEVICES), "backends": reasons}
print("PROBE" + json.dumps(found))
"""


def build(capability: str | None, limit: float) -> dict[str, Any]:
    """Build for the card's own architecture alone.

    capability: "9.0", say, or None. limit: seconds. Returns status (built, impossible or failed), reason, and
    of a failed build the log's end.
    """
    nvcc = find_program("nvcc")
    outcome: dict[str, Any] = {"nvcc": nvcc is not None}
    lacks = build_needs.lacking()
    if lacks:
        return {**outcome, "status": "impossible", "reason": build_needs.sentence(lacks)}
    path = os.environ.get("PATH", "")
    extra = {
        "MAX_JOBS": str(all_threads()),
        "KAN_KERNELS_CUDA": "auto",
        "TORCH_CUDA_ARCH_LIST": capability or "",
        "PATH": os.pathsep.join([path, os.path.dirname(nvcc)]) if nvcc else path,
    }  # fmt: skip
    ended = run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], limit, extra)
    if ended.status == 0 and not ended.timed_out:
        note = "" if nvcc else "no nvcc: CPU kernels only"
        return {**outcome, "status": "built", "reason": note}
    log = ended.output.splitlines()[-30:]
    return {**outcome, "status": "failed", "reason": ended.reason(), "log": log}


def probe(device: str, limit: float) -> dict[str, Any]:
    """What of kan_kernels loads, and each backend's reason why it cannot run on ``device`` (None: it can)."""
    ended = run([sys.executable, "-c", PROBE, device], limit)
    for line in ended.output.splitlines():
        if line.startswith("PROBE"):
            found: dict[str, Any] = json.loads(line.removeprefix("PROBE"))
            return found
    return {"load_error": ended.reason(), "devices": [], "backends": {}}
