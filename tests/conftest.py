"""Pytest set-up: markers, a deterministic hypothesis profile, the `backend` fixture."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import pytest
import torch

from harness import BACKENDS, FUSED

with contextlib.suppress(ModuleNotFoundError):  # only the fuzz tests need it
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "ci", derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    settings.register_profile("explore", deadline=None, suppress_health_check=list(HealthCheck))
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--edits", default=10, type=int, help="random edits of each peer's code to try")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs all tests of a file that write into the tree, hold gigabytes or share compilations."""
    for item in items:
        shares = item.path.parent.name == "examples" or item.path.stem.endswith("_machine_code")
        if shares or "beyond_32_bits" in item.name:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        elif item.name.startswith("test_sanitizers["):  # a kind is compiled once
            item.add_marker(pytest.mark.xdist_group(re.split(r"[][-]", item.name)[1]))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse a pytest whose groups xdist does not see: two processes would compile everything twice."""
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if session.config.getoption("loadgroup", False) and not all("@" in item.nodeid for item in grouped):
        raise pytest.UsageError(f"pytest-xdist does not form its groups with pytest {pytest.__version__}")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend under test."""
    return str(request.param)


@pytest.fixture(params=FUSED)
def fused(request: pytest.FixtureRequest) -> str:
    """Every backend under test but the reference."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _same_numbers() -> Iterator[None]:
    torch.manual_seed(20240430)
    yield
