"""Figure 6.1: the fast run measures every network of the smoke workloads, and a missing time is an error."""

from __future__ import annotations

import copy
import importlib
import json
from typing import Any

import pytest

from benchmarks.document import Table
from examples import common
from harness import ROOT, child


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    child("""
import sys
sys.argv = ["figure_6_1", "--fast"]
import runpy
runpy.run_module("examples.figure_6_1", run_name="__main__")
""")
    return json.loads((ROOT / "examples" / "results" / "figure_6_1.fast.json").read_text())


@pytest.mark.long
def test_figure_6_1(result: dict[str, Any]) -> None:
    """All four networks pass their gate and are timed, and the table shows the ratios of those times."""
    cells = {cell["provider"]: cell for cell in result["results"]}
    assert set(cells) == {"ours", "mlp-params", "mlp-widths", "textbook"}
    assert all(cell["status"] == "ok" and cell["mode"] == "training-step" for cell in cells.values())
    assert cells["ours"]["gate"]["kind"] == cells["textbook"]["gate"]["kind"] == "exact"
    assert max(cells["ours"]["gate"]["errors"].values()) < 1e-4
    ratio = cells["ours"]["median_ms"] / cells["mlp-params"]["median_ms"]
    module: Any = importlib.import_module("examples.figure_6_1")
    overall, row, machine = result["summary"]
    assert overall["ours"].startswith(module.times(ratio)) and row["ours"].startswith(module.times(ratio))
    assert (
        "torch" in machine["ours"]
        and row["what"] == "[5,4,3] B=33 G=5, 1 thread(s)"
        and result["threads"] == "1"
    )


@pytest.mark.long
@pytest.mark.parametrize("provider", ["ours", "mlp-params", "mlp-widths"])
def test_a_gated_time_is_an_error(result: dict[str, Any], provider: str) -> None:
    """No row is made of a network that was not timed, and the error says why it was not."""
    module: Any = importlib.import_module("examples.figure_6_1")
    document = {
        "meta": result["meta"],
        "results": copy.deepcopy(result["results"]),
        "workloads": {"smoke-network": {"shape": "[5,4,3] B=33 G=5"}},
    }
    assert "of the MLP" in module.row(Table(document), "smoke-network", 1)["ours"]
    cell = next(cell for cell in document["results"] if cell["provider"] == provider)
    cell.update(status="gated", reason="time withheld: wrong numbers")
    with pytest.raises(RuntimeError, match="wrong numbers"):
        module.row(Table(document), "smoke-network", 1)


@pytest.mark.long
def test_picture(result: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn with all three series, and with those that have a time."""
    pytest.importorskip("matplotlib")
    module: Any = importlib.import_module("examples.figure_6_1")
    monkeypatch.setattr(common, "FIGURES", tmp_path)
    sizes = []
    for kinds in (("ours", "mlp", "unfused"), ("ours", "mlp")):
        document = {
            "meta": result["meta"],
            "results": [cell for cell in result["results"] if cell["kind"] in kinds],
            "workloads": {"smoke-network": {"shape": "[5,4,3] B=33 G=5"}},
        }
        module.picture(Table(document))
        sizes.append(len((tmp_path / "figure_6_1.svg").read_text()))
    assert sizes[0] > sizes[1] > 1000
