"""Files are written whole or not at all: errors have the path that was given, nothing is left behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kan_kernels import KAN, deploy, plotting, symbolic
from kan_kernels._core.files import replacing
from kan_kernels.training import fit


def trained(path: Path) -> None:
    x = torch.rand(20, 2)
    fit(KAN([2, 1]), (x, x[:, :1]), steps=1, checkpoint=path)


def searched(path: Path) -> None:
    pytest.importorskip("sympy")
    x = torch.rand(40, 1, dtype=torch.float64)
    symbolic.discover(
        x, x[:, 0] ** 2, seeds=[0], functions=["x", "x^2"], shapes=[[1, 1]], work=50, checkpoint=path
    )


def drawn(path: Path) -> None:
    pytest.importorskip("matplotlib")
    plotting.save(plotting.plot(KAN([2, 1]), torch.rand(9, 2)), path)


# a file's name, what writes it, and the function of a library that does so in the end
WRITERS: dict[str, tuple[str, Callable[[Path], None], tuple[Any, str]]] = {
    "text": ("kan.h", lambda path: deploy.write(path, "/**/"), (Path, "write_text")),
    "NumPy model": ("m.npz", lambda path: deploy.to_numpy_model(KAN([2, 1])).save(path), (np, "savez")),
    "picture": ("p.png", drawn, ("matplotlib.figure.Figure", "savefig")),
    "fit": ("run.pt", trained, (torch, "save")),
    "discover": ("search.pt", searched, (torch, "save")),
}


@pytest.mark.parametrize("name", WRITERS)
def test_error_halfway(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full halfway: what was there stays, to the byte, and nothing lies beside it."""
    file, write, (owner, function) = WRITERS[name]
    path = tmp_path / file
    write(path)
    before = path.read_bytes()
    assert before and list(tmp_path.iterdir()) == [path]

    def half(*args: Any, **_: Any) -> None:
        (partial,) = tmp_path.glob("*.partial")
        partial.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    at = f"{owner}.{function}" if isinstance(owner, str) else None
    monkeypatch.setattr(at, half) if at else monkeypatch.setattr(owner, function, half)
    with pytest.raises(OSError, match="No space left"):
        write(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", WRITERS)
def test_paths_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    """A folder of that name, or a file in the place of its folder: the error has the path as it was given."""
    file, write, _ = WRITERS[name]
    folder = tmp_path / file
    folder.mkdir()
    (tmp_path / "file").write_text("")
    for path, kind in ((folder, IsADirectoryError), (tmp_path / "file" / file, NotADirectoryError)):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(
            (kind, ValueError), match=rf"{re.escape(str(path if kind is IsADirectoryError else path.parent))}"
        ) as raised:
            write(path)
        assert ".partial" not in str(raised.value)
        assert sorted(tmp_path.rglob("*")) == before


def test_errors_of_other_files_stay(tmp_path: Path) -> None:
    """What somebody inside reads keeps its name, and errors of another kind are as they were."""
    with pytest.raises(FileNotFoundError, match="other"), replacing(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    with pytest.raises(KeyError, match="x"), replacing(tmp_path / "a"):
        raise KeyError("x")
    assert not list(tmp_path.iterdir())
