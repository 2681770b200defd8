"""Fast paths on and off: a stand-in that reads the switch in its own process, gated, timed and judged."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import paths
from benchmarks.measure import SMOKE
from benchmarks.paths import Call, FastPath, compare, side, table, verdicts


def stand_in(slow: float, wrong: float, on: bool) -> Call:
    """A path that takes `slow` seconds, and errs by `wrong`, where its word is in the environment."""
    off = os.environ.get(paths.SWITCH) == "stand_in"  # once, as a library does
    assert off is not on
    x = torch.rand(20)

    def call() -> list[torch.Tensor]:
        time.sleep(slow if off else 0.001)
        return [x * (1 + wrong * off)]

    return call


def keyword(on: bool) -> Call:
    return stand_in(0.002, 0.0, "stand_in" not in os.environ.get(paths.SWITCH, ""))


def failing(on: bool) -> Call:
    if on:
        return stand_in(0.0, 0.0, on)
    raise ValueError("no such tensor\nand more")


def killed(on: bool) -> Call:
    os._exit(3)


def path(**workloads: Any) -> FastPath:
    return FastPath("stand_in", "a stand-in", workloads)


@pytest.mark.long
def test_off_is_slower_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sides read the switch each for itself, whatever stands in our own environment, which stays."""
    monkeypatch.setenv(paths.SWITCH, "stand_in")
    row = compare(path(slow=partial(stand_in, 0.004, 0.0)), "slow", SMOKE)
    assert os.environ[paths.SWITCH] == "stand_in"
    assert "reason" not in row and row["error"] == 0.0
    assert row["on"]["samples"] >= SMOKE.least and row["ratio"]["p25"] <= row["ratio"]["median"]
    assert row["ratio"]["median"] > 2 and row["off"]["median_ms"] >= 4


def test_a_wrong_path_is_gated() -> None:
    row = compare(path(wrong=partial(stand_in, 0.0, 1e-3)), "wrong", SMOKE)
    assert "on and off differ by 1.0e-03" in row["reason"] and "ratio" not in row


@pytest.mark.parametrize(
    "make,said",
    [
        (failing, "ValueError: no such tensor"),
        pytest.param(killed, "ended with status 3", marks=pytest.mark.long),
    ],
)
def test_what_fails_says_so(make: Any, said: str) -> None:
    """A side that raises, or dies, costs its pair and is named."""
    row = compare(path(w=make), "w", SMOKE)
    assert said in row["reason"] and "ratio" not in row


def test_a_side_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "ANSWER", 0.01)
    with side(path(w=keyword), "w", on=True) as ask, pytest.raises(RuntimeError, match=r"answer in 0\.01 s"):
        ask(0)


def fabricated(*ratios: float) -> dict[str, Any]:
    times = {"median_ms": 1.0, "samples": 3}
    rows = [
        {"path": "p", "label": "a path", "workload": f"w{n}", "on": times, "off": times, "error": 0.0,
         "ratio": {"median": ratio, "p25": ratio, "p75": ratio}}
        for n, ratio in enumerate(ratios)
    ]  # fmt: skip
    meta = {"threads": 1, "cpu": "a CPU", "torch": "2", "isa_kan_kernels": "avx", "date": "today"}
    return {"format": 1, "meta": meta, "results": rows}


@pytest.mark.parametrize("ratios,stays", [((1.3, 1.31), True), ((1.3, 1.29, 1.0), False), ((5.0,), False)])
def test_two_wins_keep_a_path(ratios: tuple[float, ...], stays: bool) -> None:
    document = fabricated(*ratios)
    assert verdicts(document)["p"][0] is stays
    assert ("`p` stays" in table(document)) is stays and f"| w0 | 1 | 1 | {ratios[0]:.2f}x [" in table(
        document
    )


def test_main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    """A whole run writes, others do not; --check sees a stale page and a path that must go."""
    page, result = tmp_path / "page.md", tmp_path / "paths.json"
    page.write_text(f"before\n<!-- paths:begin -->\n{table(None)}<!-- paths:end -->\nafter\n")
    two = path(first=keyword, second=keyword)
    (row,) = fabricated(1.5)["results"]

    def pretend(one: FastPath, title: str, budget: Any) -> dict[str, Any]:
        return {**row, "path": one.name, "label": one.label, "workload": title}

    for name, value in {"PAGE": page, "COMMITTED": result, "PATHS": (two,), "compare": pretend}.items():
        monkeypatch.setattr(paths, name, value)
    threads = torch.get_num_threads()
    try:
        assert paths.main(False, check=True) == 0  # nothing was measured, and the page says so
        assert paths.main(True, False) == 0 and paths.main(False, False, ["stand_in"]) == 0
        assert "| a stand-in | first |" in capsys.readouterr().out and not result.exists()
        assert paths.main(False, False) == 0 and paths.main(False, True) == 0
        assert "`stand_in` stays: 1.3x or more on 2 of 2" in page.read_text() and page.read_text().endswith(
            "after\n"
        )
        page.write_text(page.read_text().replace("first", "fist"))
        assert paths.main(False, True) == 1
        monkeypatch.setattr(paths, "PATHS", (path(first=keyword),))
        assert paths.main(False, False) == 1 and paths.main(False, True) == 1  # one win is not enough
        with pytest.raises(ValueError, match="known: stand_in"):
            paths.main(True, False, ["stand_out"])
    finally:
        torch.set_num_threads(threads)


def test_the_paths() -> None:
    """Every word once, two workloads at least, and each builds: both sides of the smallest agree."""
    assert [one.name for one in paths.PATHS] == ["layer_norm_rbf", "kan_network", "lbfgs", "stacks"]
    assert all(len(one.workloads) >= paths.WANTED for one in paths.PATHS)
    for one in paths.PATHS:
        title, make = next(iter(one.workloads.items()))
        results = make(True)()
        assert len(results) > 2 and all(bool(t.isfinite().all()) for t in results), title
        if one.name == "layer_norm_rbf":  # y, then dx
            assert results[0].shape[0] == results[1].shape[0], title
