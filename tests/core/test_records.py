"""The records of the bases: Python's and C++'s are twins, and who asks for a basis hears of all of them."""

from __future__ import annotations

import ast
import re

import pytest
import torch

from harness import ROOT
from kan_kernels import _C, explain
from kan_kernels import functional as F
from kan_kernels._core.bases import BASES, BY_CODE, FULL_SUPPORT


def test_twins() -> None:
    """Name, code, support, columns of the grid, limits and devices agree."""
    twins = {record["name"]: record for record in _C.bases()}
    assert list(twins) == list(BASES)
    for code, basis in enumerate(BY_CODE):
        twin = twins[basis.name]
        order = 3 if basis.local else 0
        assert (basis.code, twin["code"]) == (code, code)
        assert twin["local"] == basis.local and twin["columns"] == basis.columns(4, order)
        assert twin["even"] == (basis.even is not None) and twin["cuda"] == basis.cuda
        assert basis.most is None or twin["most_functions"] == basis.most


def test_a_reference_for_each() -> None:
    """Every record has plain functions, which give R numbers for an x."""
    from kan_kernels.backends.reference import basis_values

    for basis in BY_CODE:
        order, functions = (3, 8) if basis.local else (0, 8)
        grid = torch.linspace(-1, 1, basis.columns(functions, order)).expand(2, -1).contiguous()
        assert basis_values(torch.zeros(5, 2), grid, functions, order, 0, basis.code).shape == (5, 2, 8)


def test_records_speak_for_themselves() -> None:
    """Docstrings have the formula and limit of every record; no other line of `functional` names a basis."""
    said = " ".join((F.basis_linear.__doc__ or "").split())
    for name in FULL_SUPPORT:
        assert BASES[name].formula and f'- "{name}": {BASES[name].said}.' in said, name
    for file in (ROOT / "kan_kernels" / "functional").glob("*.py"):
        literals = {
            node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)
        }
        assert not literals & set(BASES), file


def test_nobody_else_compares_codes() -> None:
    """Code outside of the records asks them: it compares no basis with a number or a name of its own."""
    asked = r"\b(if|or|and|not) ([\w.]+\.)?basis( and| or| else|:|\))"
    compared = re.compile(rf"""(?i)\bbasis\s*[!=]=\s*[\d"']|{asked}""")
    for file in (ROOT / "kan_kernels").rglob("*.py"):
        found = [text for text in file.read_text().splitlines() if compared.search(text.split("#")[0])]
        assert not found, (file, found)


def test_unknown_names_list_the_known() -> None:
    for call in (
        lambda: F.basis_linear(torch.zeros(1, 1), torch.zeros(1, 2, 1), basis="sine"),
        lambda: explain((2, 1), basis="sine"),
    ):
        with pytest.raises(ValueError, match=r"basis: got 'sine', expected one of .*'orthogonal'"):
            call()
    with pytest.raises(ValueError, match=r"B-splines: kan_linear"):
        F.basis_linear(torch.zeros(1, 1), torch.zeros(1, 2, 1), basis="bspline")
    assert "bspline" not in FULL_SUPPORT
