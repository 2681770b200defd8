"""The comparison with pykan: its result file, its table, and the run itself where pykan is installed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.science.contests import SAME_R2, judged
from harness import PROJECT, run_benchmarks

RESULT = PROJECT / "benchmarks" / "results" / "science.json"


def rows() -> list[dict[str, Any]]:
    return json.loads(RESULT.read_text())["results"]


def test_page_is_up_to_date(tmp_path: Path) -> None:
    """docs/training.md has the table of the committed result; one digit more or less is noticed."""
    from benchmarks.readme import refresh
    from benchmarks.science import table

    document = json.loads(RESULT.read_text())
    assert run_benchmarks("science", "--check").returncode == 0
    page = tmp_path / "training.md"
    page.write_text(table.PAGE.read_text())
    assert refresh(page, table.markdown(document), True, "", "science") == 0
    document["results"][0]["ours"]["median_ms"] *= 1.5
    assert refresh(page, table.markdown(document), True, "", "science") == 1
    with pytest.raises(ValueError, match="science:begin"):
        page.write_text("a page without markers")
        refresh(page, "", True, "", "science")


def test_committed_result() -> None:
    """What was measured passed its check, has the ratio of its medians, and less memory than pykan."""
    from benchmarks.science.contests import contests

    found = {row["key"]: row for row in rows()}
    assert list(found) == [key for key in contests(False) if key in found]
    assert found.keys() >= {"lbfgs-4-5-1", "update_grid", "refine"}
    for row in found.values():
        assert row["status"] == "ok" and row["start"] < 1e-10, row["key"]
        ratio = row["theirs"]["median_ms"] / row["ours"]["median_ms"]
        assert row["times_faster"] == pytest.approx(ratio, rel=1e-4) and ratio > 1
        ours, theirs = row["peak_extra_bytes"]
        assert ours < theirs
        for edge in row.get("edges", ()):
            assert edge["ours"]["r2"] >= edge["theirs"]["r2"] - SAME_R2, edge


def test_terms_that_cancel_are_judged() -> None:
    """A term of 20 times the curve is twice what is allowed: it has to leave a quarter of the curve."""
    assert judged(0.9, 9.0, 1.0) == 0.9 and judged(0.9, 0.0, 0.0) == 0.9
    assert judged(0.9, 20.0, 1.0) == pytest.approx(0.6)


def test_says_where_pykan_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    """One line with what to install, status 2, and nothing written."""
    import sys

    from benchmarks.cli import main

    monkeypatch.setitem(sys.modules, "kan", None)
    assert main(["science", "--quick", "--output", str(tmp_path / "x.json")]) == 2
    assert "pip install pykan" in capsys.readouterr().err and not (tmp_path / "x.json").exists()


def test_a_mismatch_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that differ are not timed; work whose results differ is not either."""
    from benchmarks.science import run
    from benchmarks.science.contests import Contest, Job

    class Stop(Exception):
        pass

    def refuse(*args: Any, **options: Any) -> None:
        raise Stop

    monkeypatch.setattr(run.timing, "measure", refuse)
    job = Job(lambda: [], lambda model: model.append(1))
    other = copy.deepcopy(job)
    row = run._row(Contest("a", 8.0, job, other, lambda a, b: ({}, None), start=1e-3), run.QUICK)
    assert row["status"] == "failed" and "differ by 0.001" in row["reason"]
    row = run._row(Contest("a", 8.0, job, other, lambda a, b: ({"x": 1}, "not the same")), run.QUICK)
    assert row["status"] == "failed" and row["reason"] == "not the same" and row["x"] == 1
    with pytest.raises(Stop):
        run._row(Contest("a", 8.0, job, other, lambda a, b: ({}, None)), run.QUICK)


@pytest.mark.parametrize("failed", [False, True])
def test_check_sees_failed_rows(
    failed: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    """A committed result with a row that failed does not pass, though its table is up to date."""
    from benchmarks.science import run, table

    document = json.loads(RESULT.read_text())
    if failed:
        document["results"][0] |= {"status": "failed", "reason": "the losses differ"}
    result, page = tmp_path / "science.json", tmp_path / "training.md"
    result.write_text(json.dumps(document))
    page.write_text(table.PAGE.read_text())
    monkeypatch.setattr(run, "COMMITTED", result)
    monkeypatch.setattr(table, "PAGE", page)
    run.refresh(page, table.markdown(document), False, "", "science")
    assert run.main(result, quick=False, check=True) == int(failed)
    out = capsys.readouterr()
    assert "training.md is up to date" in out.out and ("the losses differ" in out.err) == failed


def test_rows_are_replaced() -> None:
    """A run of some contests goes into the result of the same machine and versions, in the old order."""
    from benchmarks.science.run import merged

    meta = {"cpu": "a", "torch": "2", "python": "3", "isa_kan_kernels": "avx2", "providers": {"pykan": "1"}}
    old = {"meta": meta, "results": [{"key": "x", "n": 1}, {"key": "y", "n": 1}]}
    new = {"meta": dict(meta), "results": [{"key": "z", "n": 2}, {"key": "x", "n": 2}]}
    found = [(row["key"], row["n"]) for row in merged(old, new, ["x", "y", "z"])["results"]]
    assert found == [("x", 2), ("y", 1), ("z", 2)]
    for name, value in (("cpu", "b"), ("providers", {"pykan": "2"})):
        with pytest.raises(ValueError, match=f"was measured with {name}"):
            merged(old, {**new, "meta": {**meta, name: value}}, ["x", "y", "z"])


def test_r2_is_one_formula() -> None:
    """1 for the curve itself, 0 for its mean, below 0 for worse, 0 where it is not finite."""
    from benchmarks.science.twin import explained

    x = torch.linspace(-1, 1, 50, dtype=torch.float64)
    y = 2 * torch.sin(3 * x + 1) - 0.5
    assert explained(torch.sin, (3.0, 1.0, 2.0, -0.5), x, y) == pytest.approx(1.0, abs=1e-14)
    assert explained(torch.sin, (3.0, 1.0, 0.0, float(y.mean())), x, y) == pytest.approx(0.0, abs=1e-14)
    assert explained(torch.sin, (3.0, 1.0, -2.0, 0.5), x, y) < -1
    assert explained(torch.log, (1.0, 0.0, 1.0, 0.0), x, y) == 0.0


@pytest.mark.long
def test_quick_run(tmp_path: Path) -> None:
    """The same code on tiny networks: the same losses, functions and formulas as pykan."""
    pytest.importorskip("kan")
    output = tmp_path / "quick.json"
    done = run_benchmarks("science", "--quick", "--output", str(output))
    assert done.returncode == 0, done.stdout + done.stderr
    results = {row["key"]: row for row in json.loads(output.read_text())["results"]}
    ours, theirs = results["lbfgs-2-2-1"]["rmse"]
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert len(set(results["lbfgs-2-2-1"]["evaluations"])) == 1
    assert all(e["chosen"][0] for e in results["auto_symbolic"]["edges"])
    assert "x** |" in done.stdout and str(output) in done.stdout
