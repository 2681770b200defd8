"""The notebooks: their cells run in order and print what is stored; no pictures are.

A few lines read the JSON and run the sources, which hold no magic commands: nothing is installed for it.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from documents import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LIBRARIES = {"digits": "sklearn", "hello_kan": "sympy", "poisson": "sympy"}  # beside matplotlib


def cells(path: Path, kind: str) -> list[Any]:
    """Return the cells of a kind."""
    return [
        cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind
    ]


def test_there_are_notebooks() -> None:
    """The page names each of them."""
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 3
    assert all(f"(notebooks/{path.name})" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_text(path: Path) -> None:
    """Stored are words alone, of no execution: a picture would change at every run."""
    for cell in cells(path, "code"):
        assert cell["execution_count"] is None and "".join(cell["source"]).strip()
        assert [output["output_type"] for output in cell["outputs"]] in ([], ["stream"])
    assert cells(path, "markdown")[0]["source"][0].startswith("# ")


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one namespace and an empty folder, as a reader runs them."""
    for library in ("matplotlib", LIBRARIES.get(path.stem)):
        if library is not None and importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    import matplotlib.pyplot as plt

    names: dict[str, Any] = {"__name__": "__main__"}
    dtype = torch.get_default_dtype()
    drawn = 0
    try:
        for number, cell in enumerate(cells(path, "code")):
            source, printed = "".join(cell["source"]), io.StringIO()
            tree = ast.parse(source)
            shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            with contextlib.redirect_stdout(printed):
                exec(compile(tree, f"{path.name}[{number}]", "exec"), names)
                if isinstance(shown, ast.Expr):  # a notebook shows what its last expression is
                    value = eval(compile(ast.Expression(shown.value), path.name, "eval"), names)
                    drawn += isinstance(value, plt.Figure)
            stored = "".join(line for output in cell["outputs"] for line in output["text"])
            assert printed.getvalue() == stored, source
            drawn += len(plt.get_fignums())
            plt.close("all")
    finally:
        torch.set_default_dtype(dtype)
    assert drawn
