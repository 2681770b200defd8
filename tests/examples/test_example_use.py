"""The examples of convolution and of the other bases: they run and learn."""

from __future__ import annotations

import importlib
from typing import Any

import pytest


@pytest.mark.long
def test_convolution_reads_digits() -> None:
    """Far above one in ten, after a few steps; both networks see the same data."""
    pytest.importorskip("sklearn")
    example: Any = importlib.import_module("examples.use_convolution")
    accuracies = example.main(40)
    assert set(accuracies) == {"KANConv2d", "nn.Conv2d"}
    assert all(accuracy > 0.85 for accuracy in accuracies.values())


@pytest.mark.long
def test_bases_fit_a_function() -> None:
    """Each basis explains most of the variance, which is about 1.8."""
    example: Any = importlib.import_module("examples.use_bases")
    assert example.data()[1].var() > 1
    losses = example.main(150)
    assert len(losses) == 4 and all(loss < 0.1 for loss in losses.values())
