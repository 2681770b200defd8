"""A short run of every fused backend under compute-sanitizer; as a module, the run itself."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

from tools.extras import find_program

from ..children import run

TOOLS = ("memcheck", "racecheck")
_SUMMARY = re.compile(r"(ERROR SUMMARY: .*|RACECHECK SUMMARY: .*)")


def sanitize(backends: list[str], limit: float) -> dict[str, Any]:
    """By tool: status (clean, errors, cut, failed or absent), summary and, after an error, the log's end."""
    program = find_program("compute-sanitizer")
    if program is None:
        return {tool: {"status": "absent", "summary": "compute-sanitizer was not found"} for tool in TOOLS}
    end = time.monotonic() + limit
    found: dict[str, Any] = {}
    for tool in TOOLS:
        left = end - time.monotonic()
        if left < 5:
            found[tool] = {"status": "cut", "summary": "no time was left"}
            continue
        command = [program, "--tool", tool, "--error-exitcode", "99", "--target-processes", "all"]
        command += [sys.executable, "-m", "benchmarks.gpu.sanitize", *backends]
        # the caching allocator hides what lies beyond a tensor's end
        ended = run(command, left, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
        summaries = _SUMMARY.findall(ended.output)
        status = "cut" if ended.timed_out else {0: "clean", 99: "errors"}.get(ended.status, "failed")
        found[tool] = {"status": status, "summary": summaries[-1] if summaries else ended.reason()}
        if status in ("errors", "failed"):
            found[tool]["log"] = ended.output.splitlines()[-40:]
    return found


def short_run(backends: list[str], device: str = "cuda") -> None:
    """Forward, first and second derivatives of layers that fill no tile, for each backend and dtype."""
    import torch

    from kan_kernels import KAN, use_backend

    for backend in backends:
        for dtype in (torch.float32, torch.bfloat16):
            for widths, grid_size in (((5, 33, 3), 5), ((2, 5, 1), 20), ((67, 130), 5)):
                network = KAN(list(widths), grid_size, 3, device=device, dtype=dtype, bias=True)
                x = torch.randn(37, widths[0], device=device, dtype=dtype, requires_grad=True)
                with use_backend(backend):
                    y = network(x)
                    (dx,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
                    dx.float().square().sum().backward()
                if not bool(torch.isfinite(x.grad).all()):  # type: ignore[arg-type]
                    raise SystemExit(f"{backend}: the gradient of {widths} in {dtype} is not finite")


if __name__ == "__main__":
    short_run(sys.argv[1:])
