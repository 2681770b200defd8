"""The package's types, as a type checker sees them in code that uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness import ROOT

pytest.importorskip("mypy", reason="mypy is no part of the package")

PROGRAM = """
from torch import Tensor, nn
from typing_extensions import assert_type

from kan_kernels import KAN, KANConv2d, KANLinear, explain
from kan_kernels.integrations import efficient_kan, fast_kan

model = KAN([2, 5, 1], grid_size=5)
assert_type(model.layers[0], KANLinear)
model.layers[0].set_edge_mask(None)
model.layers[-1].reset_parameters()
for layer in model.layers:
    assert_type(layer.grid, Tensor)
    assert_type(layer.grid_size, int)
    layer.spline_weight.requires_grad_(False)
first = model.layers[:1]
first[0].set_symbolic(None)
model.layers = nn.ModuleList([KANLinear(2, 1)])
model.reset_parameters()
low, high = model.layers[0].grid_range
assert_type(low, float)
assert_type(len(model.layers), int)
assert_type(efficient_kan.KAN([2, 1]).layers[0].spline_order, int)
assert_type(fast_kan.FastKAN([2, 1]).layers[0], fast_kan.FastKANLayer)
assert_type(KANConv2d(2, 3, 3).padding, str | tuple[int, ...])
assert_type(explain(model), str)
"""

WRONG = """
from kan_kernels import KAN

model = KAN([2, 5, 1])
model.layers[0].set_edge_mask("none")
model.layers[0].no_such_method()
"""


@pytest.mark.long
def test_a_users_program(tmp_path: Path) -> None:
    """What is in `layers` is known: its methods type-check, and mistakes are found, each of them."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\npython_version = 3.11\nignore_missing_imports = True\n"
        "[mypy-kan_kernels.*]\nignore_errors = True\n"
    )
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--config-file", "mypy.ini"]
    done = subprocess.run(
        [*command, "program.py", "wrong.py"],
        cwd=tmp_path, env={"MYPYPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if ": error: " in line]
    found = [line.partition(": error: ")[0] for line in lines]
    assert found == ["wrong.py:5", "wrong.py:6"], done.stdout + done.stderr
