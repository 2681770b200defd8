"""Few threads for little work: torch's operators start all of them from 32768 numbers on."""

import contextlib
from collections.abc import Iterator

import torch

# numbers in a temporary up to which a second thread gains little, and waits for its turn where others run
SERIAL = 1 << 18


@contextlib.contextmanager
def few(numbers: int) -> Iterator[None]:
    """Keep torch's own operators on this thread, where they work on so few numbers."""
    threads = torch.get_num_threads()
    if threads == 1 or numbers > SERIAL:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
