"""Small and narrow networks beside MLPs: what `make demo` says of their speed."""

from __future__ import annotations

from typing import Any

import torch

from .document import milliseconds, times
from .report import markdown_table
from .worker import Job, Worker
from .workloads import TRAIN, WORKLOADS

NAMES = ("toy", "toy4", "toy-deep", "medium", "mnist")
OURS, RIVALS = "ours", ("mlp-widths", "mlp-params")


class Speeds(Worker):
    """The harness's worker in this process: interleaved runs behind its gate, results kept in `cells`."""

    def __init__(self, level: str, names: tuple[str, ...] = NAMES) -> None:
        modes = {name: [TRAIN] for name in names}
        super().__init__(Job(modes, [OURS, *RIVALS], torch.get_num_threads(), level, {}), None)
        self.cells: dict[tuple[str, str], dict[str, Any]] = {}
        for name in names:
            self.run_workload(WORKLOADS[name])

    def send(self, event: str, **data: Any) -> None:
        if event == "cell":
            result = data["result"]
            if "median_ms" not in result:
                raise RuntimeError(f"{result['workload']}, {result['label']}: {result['reason']}")
            self.cells[result["workload"], result["provider"]] = result

    def ms(self, name: str, provider: str) -> float:
        return float(self.cells[name, provider]["median_ms"])


def speed_table(level: str = "quick") -> str:
    """Return the table, whoever wins; RuntimeError where the gate withholds a time."""
    speeds = Speeds(level)
    head = ["one forward and backward", "KAN, ms", "x MLP of the same widths", "x MLP of as many parameters"]
    body = []
    for name in NAMES:
        kan = speeds.ms(name, OURS)
        ratios = [times(kan / speeds.ms(name, rival)) for rival in RIVALS]
        body.append([WORKLOADS[name].shape, milliseconds(kan), *ratios])
    return f"## Small and narrow networks\n\n{markdown_table(head, body, (0,))}"
