"""The benchmark harness runs: its correctness gate and its smallest sizes, without a word about speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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


def test_bad_arguments() -> None:
    """An unknown option is an error, not a long run."""
    done = run_benchmarks("--no-such-option")
    assert done.returncode != 0 and "no-such-option" in done.stderr
