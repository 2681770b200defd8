"""One call of a Runner captured as a CUDA graph, with the numbers that a replay leaves behind."""

from __future__ import annotations

from typing import Any

import torch

from kan_kernels import warm_up

from ..modes import Numbers, Runner
from ..workloads import FORWARD


class GraphRunner(Runner):
    """``call()`` replays the graph; ``numbers()`` reads gradients where the capture put them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        body = self.call
        warm_up(body)
        self.release()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            y = body()
        assert isinstance(y, torch.Tensor)
        self.y = y.detach()
        self.static = [(p, p.grad) for p in (*self.parameters, self.x)]
        self.release()
        self.call = self.graph.replay

    def numbers(self) -> Numbers:
        """Replay once; what the gate compares is what the replay wrote."""
        self.graph.replay()
        for tensor, gradient in self.static:
            tensor.grad = gradient
        if self.mode == FORWARD:
            return Numbers(self.y)
        return Numbers(self.y, dx=self.x.grad, gradients=self.model.gradients())
