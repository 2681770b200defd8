"""The GPT of three kinds of blocks, and digits and diabetes, at toy size: they learn, and compare alike."""

from __future__ import annotations

import importlib
import json
import math
from typing import Any

import pytest
import torch

from benchmarks.readme import refresh
from harness import run_example

gpt: Any = importlib.import_module("examples.language_model")


def test_blocks_have_the_same_number_of_parameters() -> None:
    """As near as their widths allow, and outputs of the same size at the start."""
    for width in (32, 128):
        torch.manual_seed(0)
        blocks = {kind: gpt.inner(kind, width) for kind in gpt.KINDS}
        counts = {kind: gpt.count(block) for kind, block in blocks.items()}
        near = 0.05 if width == 32 else 0.01
        assert all(abs(n - counts["MLP"]) < near * counts["MLP"] for n in counts.values()), counts
        for block in blocks.values():
            with torch.no_grad():
                size = block(torch.randn(500, width)).square().mean().sqrt()
            assert float(size) == pytest.approx(gpt.FIRST, rel=0.15)


def test_text_and_curves() -> None:
    """Paragraphs are in one part alone; targets follow their tokens; curves are read between two looks."""
    learnt, held_out = gpt.text()
    assert len(learnt) > 6 * len(held_out) > 100_000
    assert not set(learnt.split(b"\n\n")) & set(held_out.split(b"\n\n"))
    batches = gpt.Batches(learnt, bytes(sorted(set(learnt))), gpt.FAST, 0)
    tokens, following = batches.next()
    assert torch.equal(tokens[:, 1:], following[:, :-1]) and tokens.shape == (8, 32)
    curve = [[0, 0.0, 8.0], [100, 2.0, 4.0], [200, 4.0, 3.0]]
    assert gpt.loss_at(curve, 0, 150) == 3.5 and gpt.loss_at(curve, 1, 1.0) == 6.0
    assert math.isnan(gpt.loss_at(curve, 1, 5.0))


@pytest.mark.long
def test_toy_models_learn() -> None:
    """Every kind gets below the bits of a byte drawn evenly, and the tables and picture are made."""
    result = run_example("language_model")
    assert [r["kind"] for r in result["runs"]] == list(gpt.KINDS)
    for run in result["runs"]:
        first, last = run["curve"][0], run["curve"][-1]
        assert last[0] == gpt.FAST.steps * gpt.FAST.tokens and last[1] > 0
        assert last[2] < first[2] - 0.5 and last[2] < 6.5
    rows = gpt.summary(result)
    assert rows[0]["ratio"] == 1 and all(math.isfinite(r["same_time"][0]) for r in rows)
    assert all(kind in gpt.block(result) for kind in gpt.KINDS)
    pytest.importorskip("matplotlib")
    assert len(gpt.picture(result).axes) == 2


@pytest.mark.long
def test_images_and_a_table() -> None:
    """Models of a task are of one size, and better than guessing after a few epochs."""
    pytest.importorskip("sklearn")
    module: Any = importlib.import_module("examples.digits_and_diabetes")
    result = run_example("digits_and_diabetes")
    for task in module.TASKS:
        of = [r for r in result["runs"] if r["task"] == task.name]
        assert [r["kind"] for r in of] == list(module.KINDS)
        assert all(abs(r["parameters"] - task.parameters) < 0.1 * task.parameters for r in of), of
        assert all(r["score"] > (0.5 if task.name == "digits" else 0.1) for r in of), of
    assert "| digits | multi-head KAN |" in module.block(result)


@pytest.mark.parametrize(
    "name,marker", [("language_model", "language"), ("digits_and_diabetes", "small-data")]
)
def test_the_page_has_the_committed_results(name: str, marker: str) -> None:
    """docs/heads.md shows what the result files hold."""
    module: Any = importlib.import_module(f"examples.{name}")
    text = module.block(json.loads(module.PATH.read_text()))
    assert refresh(module.PAGE, text, True, module.COMMAND, marker) == 0
