"""Ranks of a gloo process group for tests: one interpreter imports everything, then forks."""

from __future__ import annotations

import datetime
import functools
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed as dist

from harness import paths

Case = Callable[[int, int], None]


class Cases:
    """The cases of a file: `@case` adds one, `@case.on(4)` one for so many ranks.

    Attributes:
        folder: what all ranks of this run may write to.
    """

    def __init__(self) -> None:
        self.known: list[Case] = []
        self.folder = Path(".")

    def __call__(self, function: Case) -> Case:
        self.known.append(function)
        return function

    def on(self, size: int) -> Callable[[Case], Case]:
        """Return what adds a case that other world sizes leave out."""

        def add(function: Case) -> Case:
            @functools.wraps(function)
            def run(rank: int, of: int) -> None:
                if of == size:
                    function(rank, of)

            return self(run)

        return add

    def serve(self) -> None:
        """Run them, or those that the command line names, on as many ranks as it says."""
        folder, size, *names = sys.argv[1:]
        self.folder = Path(folder)
        serve(folder, int(size), [case for case in self.known if not names or case.__name__ in names])


def start(file: str, folder: Path, size: int, *more: str) -> None:
    """Run `python FILE FOLDER SIZE ...`, which calls `serve`; raises AssertionError with what it printed."""
    done = subprocess.run(
        [sys.executable, file, str(folder), str(size), *more],
        env={**os.environ, "PYTHONPATH": paths(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def serve(folder: str, size: int, cases: Iterable[Case]) -> None:
    """Fork the ranks, each of which runs all cases; exit with 1 where one fails."""
    torch.set_num_threads(1)
    running = {}
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            os._exit(_rank(folder, rank, size, cases))
        running[pid] = rank
    failed = False
    while running:
        pid, status = os.wait()
        rank = running.pop(pid)
        if status:
            print(f"rank {rank} of {size} ended with {status}")
            failed = True
            for other in running:  # they would wait for it
                os.kill(other, 15)
    sys.exit(int(failed))


def _rank(folder: str, rank: int, size: int, cases: Iterable[Case]) -> int:
    name = "nothing"
    try:
        wait = datetime.timedelta(seconds=120)
        store = f"file://{folder}/ranks{size}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=wait)
        for case in cases:
            name = case.__name__
            case(rank, size)
            dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        print(f"rank {rank} of {size}, in {name}:\n{traceback.format_exc()}", flush=True)
        return 1
    return 0
