"""The two tasks of the demo: data, models, training with checkpoints, and a fair timing of one step."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from tools.extras import require

from . import measure
from .memory import peak_extra_bytes
from .providers.mlp import make_mlp

KAN_NAME, MLP_NAME, DEEP_NAME = "KAN", "MLP", "MLP, two hidden"
CHECKPOINTS = 60
STEP_BUDGET = measure.Budget(seconds=1.0, sample=0.004, most=120, least=5)


@dataclass
class Split:
    """x (n, in) in the grid range [-1, 1] and y, for training and for testing only."""

    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


@dataclass(frozen=True)
class Candidate:
    """A model of a task and its learning rate, which was chosen on a part of the training set."""

    name: str
    build: Callable[[], nn.Module]
    learning_rate: float
    text: str


@dataclass(frozen=True)
class Task:
    """What is learnt and how. ``classify`` decides the loss and which scores are better."""

    name: str
    split: Split
    classify: bool
    batch: int
    steps: int
    candidates: tuple[Candidate, ...]

    def loss(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, y) if self.classify else nn.functional.mse_loss(output, y)

    def score(self, model: nn.Module) -> float:
        """Test accuracy in percent, or root mean squared test error."""
        with torch.no_grad():
            output = model(self.split.x_test)
            if self.classify:
                return 100 * float((output.argmax(1) == self.split.y_test).float().mean())
            return math.sqrt(float(nn.functional.mse_loss(output, self.split.y_test)))


@dataclass
class Run:
    """One training: the model, and seconds (without evaluation) and test score at the checkpoints."""

    model: nn.Module
    seconds: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


@dataclass
class Result:
    """All seeds of one candidate, and its cost: medians of interleaved training steps."""

    task: Task
    candidate: Candidate
    runs: list[Run] = field(default_factory=list)
    step: dict[str, Any] = field(default_factory=dict)  # measure.Cell.summary
    peak_bytes: int | None = None

    @property
    def step_ms(self) -> float:
        return float(self.step["median_ms"])

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.runs[0].model.parameters())

    @property
    def final(self) -> list[float]:
        return [run.scores[-1] for run in self.runs]

    @property
    def mean(self) -> float:
        return statistics.mean(self.final)

    @property
    def spread(self) -> float:
        return statistics.stdev(self.final) if len(self.final) > 1 else 0.0

    @property
    def best(self) -> Run:
        return (max if self.task.classify else min)(self.runs, key=lambda run: run.scores[-1])


def digits() -> Split:
    """scikit-learn's 8x8 digits, pixels mapped to [-1, 1]; a quarter, stratified, is kept for the test."""
    data = require("sklearn.datasets").load_digits()
    split = require("sklearn.model_selection").train_test_split
    x, x_test, y, y_test = split(data.data, data.target, test_size=0.25, random_state=0, stratify=data.target)

    def pixels(values: object) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32) / 8 - 1

    return Split(pixels(x), torch.as_tensor(y), pixels(x_test), torch.as_tensor(y_test))


def toy_function(points: torch.Tensor) -> torch.Tensor:
    """f(x, y) = exp(sin(pi x) + y^2), the first example of the KAN paper. (n, 2) -> (n, 1)."""
    return torch.exp(torch.sin(math.pi * points[:, :1]) + points[:, 1:] ** 2)


def toy() -> Split:
    """1000 uniform points of [-1, 1]^2 to train on, and another 1000 to test."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(2000, 2, generator=generator, dtype=torch.float64) * 2 - 1
    y = toy_function(points)
    x = points.float()
    return Split(x[:1000], y[:1000].float(), x[1000:], y[1000:].float())


def _candidate(name: str, widths: tuple[int, ...], rate: float, smooth: bool = False) -> Candidate:
    def build() -> nn.Module:
        from kan_kernels import KAN

        return KAN(list(widths)) if name == KAN_NAME else make_mlp(widths, smooth)

    return Candidate(name, build, rate, f"{name} [{','.join(map(str, widths))}]")


def make_tasks(scale: float = 1.0) -> list[Task]:
    """Digits and the toy function. ``scale`` shortens the training, for tests.

    MLPs: hidden x (G+k+1), which matches the KAN's weights exactly (biases come on top); for the toy a second
    MLP with two hidden layers, because one layer of 45 units is not the best that 135 parameters can do: of
    two equal ones [2,9,9,1] comes nearest to them.
    """
    readers = _candidate(KAN_NAME, (64, 64, 10), 5e-3), _candidate(MLP_NAME, (64, 576, 10), 5e-3)
    fitters = (
        _candidate(KAN_NAME, (2, 5, 1), 5e-2),
        _candidate(MLP_NAME, (2, 45, 1), 5e-2, smooth=True),
        _candidate(DEEP_NAME, (2, 9, 9, 1), 5e-2, smooth=True),
    )
    return [
        Task("digits", digits(), True, 128, max(4, int(400 * scale)), readers),
        Task("exp(sin(πx)+y²)", toy(), False, 1000, max(4, int(3000 * scale)), fitters),
    ]


class Trainer:
    """Adam with decoupled decay and a one-cycle rate; ``step(x, y)`` is what the table times."""

    def __init__(self, task: Task, candidate: Candidate, model: nn.Module, steps: int) -> None:
        self.task, self.model = task, model
        decay = 0.01 if task.classify else 0.0
        rate = candidate.learning_rate
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)
        cycle = torch.optim.lr_scheduler.OneCycleLR
        self.schedule = cycle(self.optimizer, rate, total_steps=steps, pct_start=0.1)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = self.task.loss(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[Any]:
    """Yield rows without end: pieces of new orders, or all where a batch holds them."""
    while size >= n:
        yield slice(None)
    while True:
        yield from torch.randperm(n, generator=generator)[: n - n % size].split(size)


def train(task: Task, candidate: Candidate, seed: int, tick: Callable[[int], None]) -> Run:
    """Train once. ``tick(n)`` reports n more steps. Time spent on evaluation is not counted as training."""
    torch.manual_seed(seed)
    run = Run(candidate.build())
    trainer = Trainer(task, candidate, run.model, task.steps)
    shuffle = torch.Generator().manual_seed(seed)
    data, n = task.split, len(task.split.x)
    marks = {round(task.steps * (i + 1) / CHECKPOINTS) for i in range(CHECKPOINTS)} | {task.steps}
    spent, done, batches = 0.0, 0, _batches(n, task.batch, shuffle)
    for step in range(1, task.steps + 1):
        start = time.perf_counter()
        chosen = next(batches)
        trainer.step(data.x[chosen], data.y[chosen])
        trainer.schedule.step()
        spent += time.perf_counter() - start
        if step in marks:
            run.seconds.append(spent)
            run.scores.append(task.score(run.model))
            tick(step - done)
            done = step
    return run


def time_steps(results: list[Result]) -> None:
    """Time a training step of every candidate of one task, interleaved, on fresh models; then its memory."""
    task = results[0].task
    x, y = task.split.x[: task.batch], task.split.y[: task.batch]
    trainers = []
    for result in results:
        torch.manual_seed(0)
        trainers.append(Trainer(task, result.candidate, result.candidate.build(), 10**6))
    calls = [partial(trainer.step, x, y) for trainer in trainers]
    cells = [measure.Cell(r.candidate.name, call) for r, call in zip(results, calls, strict=True)]
    measure.measure(cells, STEP_BUDGET)
    for result, cell, trainer in zip(results, cells, trainers, strict=True):
        if cell.error is not None:
            raise RuntimeError(f"{result.candidate.text}: {cell.error}")
        result.step = cell.summary()
        result.peak_bytes, _ = peak_extra_bytes(cell.call, trainer.optimizer.zero_grad)
