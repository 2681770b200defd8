"""Small work runs on one thread: a second one would gain little, and wait for its turn where others run."""

from __future__ import annotations

import sys

import pytest
import torch

from harness import child
from kan_kernels._core import threads

WORK = """
import os, torch
from pathlib import Path
from kan_kernels import KAN, symbolic
from kan_kernels.grids import update_grid
from kan_kernels.pruning import prune
from kan_kernels.training import fit

def seconds():
    "Time on a core: of this thread, and of all others."
    spent = [0.0, 0.0]
    for task in Path("/proc/self/task").iterdir():
        spent[task.name != str(os.getpid())] += int((task / "schedstat").read_text().split()[0]) / 1e9
    return spent

def share(function):
    "Return what the others worked beside this thread in 0.1 s of its own or more, and how long this one did."
    own, others = seconds()
    while True:  # a thread that something else woke for half a millisecond is no finding
        function()
        after = seconds()
        if after[0] - own > 0.1:
            return (after[1] - others) / (after[0] - own), after[0] - own

torch.set_num_threads(2)
torch.randn(1 << 20).exp()  # the pool is there, and sleeps soon
torch.manual_seed(0)
x = torch.rand(1000, 4, dtype=torch.float64) * 2 - 1
y = torch.exp(x[:, :1] * x[:, 1:2] + x[:, 2:3])
model = KAN([4, 5, 1], dtype=torch.float64)
work = {
    "fit": lambda: fit(model, (x, y), steps=3, lamb=1e-3, progress=False),
    "update_grid": lambda: update_grid(model, x),
    "prune": lambda: prune(model, x, node_threshold=0, edge_threshold=0),
    "auto": lambda: symbolic.auto(model, x, library=["x", "x^2", "sin"], r2_threshold=0),
    "polish": lambda: symbolic.polish(model, x, y, steps=2),
    "discover": lambda: symbolic.discover(x, y, work=60, progress=False),
    "discover by networks": lambda: symbolic.discover(x, y, shapes=[[4, 2, 1]], seeds=[0, 1], work=30),
    "fit of formulas": lambda: fit(model, (x, y), steps=1, progress=False),
}
import time
time.sleep(0.3)
for name, function in work.items():
    found = share(function)
    print(name, *found)
    assert found[0] < 0.05, (name, found)
assert torch.get_num_threads() == 2
large = torch.randn(1000, 1000, dtype=torch.float64)
assert share(lambda: (large @ large).exp())[0] > 0.1, "the measure sees no threads"
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
@pytest.mark.long
def test_a_scientists_network_stays_on_one_thread() -> None:
    """1000 rows through fit, grids, pruning, formulas and discover: the other threads sleep."""
    child(WORK, {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "passive"})


def test_few_gives_the_threads_back() -> None:
    """After an error too; large work keeps them."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError), threads.few(10):
            assert torch.get_num_threads() == 1
            1 / 0  # noqa: B018
        assert torch.get_num_threads() == 2
        with threads.few(threads.SERIAL + 1):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
