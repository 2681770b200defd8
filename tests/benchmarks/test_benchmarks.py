"""The benchmark harness runs: its correctness gate and its smallest sizes, without a word about speed."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import basis_forms, efficient_kan_form
from benchmarks.document import FORMAT, load, save
from benchmarks.gate import judge, reference_numbers
from benchmarks.modes import Runner
from benchmarks.providers import find_provider
from benchmarks.workloads import SECOND, TRAIN, find_workload, make_problem
from harness import PROJECT, run_benchmarks


@pytest.mark.long
def test_smoke(tmp_path: Path) -> None:
    """--smoke passes the gate for every workload and provider that is here, prints a table, changes no
    tracked file.
    """
    results = PROJECT / "benchmarks" / "results"
    before = {p: p.read_bytes() for p in results.rglob("*") if p.is_file()}
    done = run_benchmarks("--smoke", "--output", str(tmp_path / "smoke.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ours" in done.stdout.lower() or "native" in done.stdout.lower(), done.stdout
    assert "mlp" in done.stdout.lower(), done.stdout
    assert json.loads((tmp_path / "smoke.json").read_text())
    after = {p: p.read_bytes() for p in results.rglob("*") if p.is_file()}
    assert after == before, "a result in the tree was changed"


class KANNetwork(torch.nn.Module):
    """inkan's and flashkan's parameters, and their number of arguments."""

    def __init__(self, widths: list[int], grid_size: int, order: int, compile_basis: bool = True) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList()
        for i, o in pairwise(widths):
            layer, rows = torch.nn.Module(), grid_size + order
            for name, shape in (
                ("weight", (o, i * rows + i)),
                ("spline_weight", (o, i, rows)),
                ("base_weight", (o, i)),
            ):
                layer.register_parameter(name, torch.nn.Parameter(torch.zeros(shape)))
            self.layers.append(layer)


@pytest.mark.parametrize("key", ["efficient-kan", "fastkan", "inkan", "flashkan"])
def test_peers_that_are_not_here(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins get the workload's weights: efficient-kan's passes the gate, FastKAN's is finite."""
    monkeypatch.setitem(sys.modules, "efficient_kan", efficient_kan_form)
    monkeypatch.setitem(sys.modules, "fastkan", basis_forms)
    for name in ("inkan", "flashkan"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(KANNetwork=KANNetwork))
    problem, provider = make_problem(find_workload("smoke-network")), find_provider(key)
    assert provider.unavailable() is None and provider.refuses(problem.workload, TRAIN) is None
    model = provider.build(problem, TRAIN)
    if key in ("inkan", "flashkan"):
        (first, *_), weights = model.module.layers, problem.layers[0]
        spline = weights.spline.permute(2, 0, 1).float()
        both = torch.cat([spline.flatten(1), weights.base.t().float()], 1)
        assert torch.equal(first.weight, both) if key == "inkan" else torch.equal(first.spline_weight, spline)
        assert (provider.refuses(problem.workload, SECOND) is None) == (key == "inkan")
        return
    verdict = judge(provider, Runner(model, problem, TRAIN), reference_numbers(problem, TRAIN))
    assert verdict.passed and verdict.kind == ("exact" if key == "efficient-kan" else "finite")


def test_saved_as_reported(tmp_path: Path) -> None:
    """What a report says after saving is what it says when read: 1.24499996 is rounded once, to 1.245."""
    ratio = {"median": 1.24499996, "p25": 2 / 3}
    row = {"what": "a", "ratio": ratio, "median_ms": 1e-5 / 3, "status": "ok", "count": 12345678}
    document = {"format": FORMAT, "name": "x", "results": [row]}
    save(document, tmp_path / "x.json")
    assert load(tmp_path / "x.json") == document
    rounded = {"ratio": {"median": 1.245, "p25": 0.666667}, "median_ms": 3.33333e-6}
    assert document["results"][0] == {**row, **rounded}
    assert row["count"] == 12345678


def test_bad_arguments() -> None:
    """An unknown option is an error, not a long run."""
    done = run_benchmarks("--no-such-option")
    assert done.returncode != 0 and "no-such-option" in done.stderr
