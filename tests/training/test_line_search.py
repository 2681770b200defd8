"""The line search of the library on functions of one number: step for step that of training/lbfgs.py."""

from __future__ import annotations

import ctypes
import math
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kan_kernels.training.lbfgs import LBFGS, Point
from mutations.check_cpu import compiler

F64 = torch.float64
Function = Callable[[float], tuple[float, float]]
POINTER = ctypes.POINTER(ctypes.c_double)
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double, POINTER)


def function(draw: random.Random) -> Function:
    """A value and a slope of any x: smooth or rough, with kinks, plateaus, wrong slopes, infinities, NaN."""
    a, b, c, f = (draw.uniform(-1, 1) * 10 ** draw.uniform(-2, 2) for _ in range(4))
    noise, wrong = draw.choice((0.0, 0.0, 1e-3, 0.3)), draw.choice((1.0, 1.0, 1.0, 0.1, -0.5))
    level, edge = draw.choice((0.0, 1e-4, 0.5)), 10 ** draw.uniform(-2, 3)
    beyond = draw.choice((None, None, math.inf, math.nan, -math.inf))
    seed = draw.random()

    def call(x: float) -> tuple[float, float]:
        if not math.isfinite(x):
            return math.nan, math.nan
        if beyond is not None and abs(x) > edge:
            return beyond, beyond
        rough = random.Random(hash((seed, x)))
        value = a * x + abs(b) * x * x + c * math.sin(f * x) + 0.3 * abs(x - 0.4)
        slope = a + 2 * abs(b) * x + c * f * math.cos(f * x) + (0.3 if x > 0.4 else -0.3)
        value += noise * rough.uniform(-1, 1)
        if level:
            value = round(value / level) * level
        return value, slope * (wrong if x else 1.0) + noise * rough.uniform(-1, 1)

    return call


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """The library's, compiled without products that are fused with sums."""
    source = Path(__file__).with_name("line_search.cpp")
    library = tmp_path_factory.mktemp("line_search") / "line_search.so"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC"]
    subprocess.run([*str(compiler()).split(), *flags, str(source), "-o", str(library)], check=True)
    found = ctypes.CDLL(str(library)).line_search
    number = ctypes.c_double
    found.argtypes = [CALLBACK, *[number] * 5, ctypes.c_int64, POINTER]
    found.restype = ctypes.c_int64
    return found


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


@pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler: CXX is not set, c++ not on PATH")
def test_steps_of_both(search: Callable[..., int]) -> None:
    """Every bit of the step, where it ends and after how many evaluations."""
    ends, longest = set(), 0
    for seed in range(1000):
        draw = random.Random(seed)
        of, x = function(draw), draw.uniform(-1, 1)
        value, slope = of(x)
        d = -math.copysign(1.0, slope)  # times t it is exact
        t, most = 10 ** draw.uniform(-3, 2), draw.choice((0, 1, 2, 3, 5, 8, 25, 200))
        width = abs(d) * draw.choice((1.0, 1.0, 1e-6, 1e3))

        point = torch.tensor([x], dtype=F64, requires_grad=True)
        optimizer = LBFGS([point])
        at: list[float] = []

        def evaluate(of: Function = of, flat: torch.Tensor = optimizer._flat, at: list[float] = at):
            at.append(float(flat))
            value, gradient = of(at[-1])
            return value, torch.tensor([gradient], dtype=F64)

        start = Point(0.0, value, torch.tensor([slope], dtype=F64), slope * d)
        with torch.no_grad():
            direction = torch.tensor([d], dtype=F64)
            found, calls = optimizer._search(evaluate, True, direction, width, start, t, most)

        there: list[float] = []

        def write(x: float, gradient, of: Function = of, there: list[float] = there) -> float:
            there.append(x)
            value, gradient[0] = of(x)
            return value

        numbers = (ctypes.c_double * 5)(x)
        count = search(CALLBACK(write), d, width, value, slope * d, t, most, numbers)
        wanted = [float(optimizer._flat), found.t, found.value, found.slope, float(found.gradient)]
        if found.t == 0:  # the start's own gradient is not the C program's to know
            wanted[4] = numbers[4]
        assert count == calls and there == at, (seed, there, at)
        assert all(map(same, numbers, wanted)), (seed, list(numbers), wanted)
        ends.add((min(count, 9), found.t == 0, found.t > t))
        longest = max(longest, count)
    assert len(ends) >= 20 and longest >= 25


@pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler: CXX is not set, c++ not on PATH")
def test_back_from_an_infinite_direction(search: Callable[..., int]) -> None:
    """No step ends where it began, to the bit."""

    def write(x: float, gradient) -> float:
        gradient[0] = math.nan
        return math.nan

    numbers = (ctypes.c_double * 5)(0.3)
    assert search(CALLBACK(write), -math.inf, math.inf, 1.0, -math.inf, 1.0, 4, numbers) >= 1
    assert numbers[0] == 0.3 and numbers[1] == 0
