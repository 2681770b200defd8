"""Child processes that cannot outlive their time, with all that they started."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from subprocess import PIPE
from typing import Any

ROOT = Path(__file__).absolute().parents[1]
TIMED_OUT = "out of time"
_SIGNALS = {number.value: number.name for number in signal.Signals}


@dataclass
class Ended:
    """How a child ended: its status (negative: the signal), whether it was stopped for time, last output."""

    status: int
    timed_out: bool
    output: str

    def reason(self) -> str:
        """One line: what happened and the last thing it said."""
        if self.timed_out:
            how = TIMED_OUT
        elif self.status < 0:
            how = f"killed by signal {-self.status} ({_SIGNALS.get(-self.status, 'unknown')})"
        else:
            how = f"ended with status {self.status}"
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return f"{how}: {lines[-1][:200]}" if lines else how


def _start(
    command: list[str], extra: dict[str, str] | None, stdin: int, stdout: Any, stderr: Any
) -> subprocess.Popen[str]:
    """Start in the repository, which is on the import path, in a session of its own."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(extra or {})}
    streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True, **streams)


def _stop(process: subprocess.Popen[str]) -> None:
    """Kill the child and everything in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(command: list[str], limit: float, extra: dict[str, str] | None = None) -> Ended:
    """Run a command in the repository for at most ``limit`` seconds; its output, stdout and stderr as one."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = _start(command, extra, subprocess.DEVNULL, log, subprocess.STDOUT)
        timed_out = False
        try:
            process.wait(max(0.0, limit))
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _stop(process)
        log.seek(0)
        return Ended(process.returncode, timed_out, log.read())


class Lines:
    """A Python module as a child that is given one text and answers in lines."""

    def __init__(
        self, module: str, text: str, limit: float, stall: float, extra: dict[str, str] | None = None
    ) -> None:
        """``limit``: seconds in all. ``stall``: seconds without a line after which it counts as hung."""
        self.limit, self.stall, self.text = limit, stall, text
        self.ended: Ended | None = None
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by __iter__)
        self._process = _start([sys.executable, "-m", module], extra, PIPE, PIPE, self._log)

    def __iter__(self) -> Iterator[str]:
        """Lines until it ends or is stopped; ``ended`` is set then."""
        process, timed_out = self._process, False
        assert process.stdin is not None and process.stdout is not None
        waiting: queue.Queue[str | None] = queue.Queue()
        read = chain(process.stdout, [None])
        threading.Thread(target=lambda: [waiting.put(line) for line in read], daemon=True).start()
        end = time.monotonic() + self.limit
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(self.text)
                process.stdin.close()
            while True:
                left = max(0.01, min(self.stall, end - time.monotonic()))
                try:
                    line = waiting.get(timeout=left)
                except queue.Empty:
                    timed_out = True
                    break
                if line is None:
                    break
                yield line
            if not timed_out:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
        finally:
            _stop(process)
            self._log.seek(0)
            self.ended = Ended(process.returncode, timed_out, self._log.read())
            self._log.close()
