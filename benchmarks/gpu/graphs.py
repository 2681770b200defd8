"""One call of a Runner captured as a CUDA graph, with the numbers that a replay leaves behind."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kan_kernels import warm_up

from ..modes import Numbers, Runner
from ..providers import Model
from ..workloads import FORWARD, Problem


class GraphRunner(Runner):
    """``call()`` replays the graph; ``numbers()`` reads gradients where the capture put them."""

    def __init__(
        self,
        model: Model,
        problem: Problem,
        mode: str,
        network: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__(model, problem, mode, network)
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
