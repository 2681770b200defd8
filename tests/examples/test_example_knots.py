"""Section 4.2: the table of knots is right, and the fast examples find what they claim to find in it."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import run_example

knots_data: Any = importlib.import_module("examples.knots_data")
knots_table: Any = importlib.import_module("examples.knots_table")


@pytest.fixture(scope="module")
def table() -> dict[str, np.ndarray]:
    with np.load(knots_data.TABLE) as file:
        return {name: file[name] for name in file.files}


def test_table_is_the_census(table: dict[str, np.ndarray]) -> None:
    """All prime knots of up to 13 crossings but the eight torus knots, the two satellites of 13 crossings
    (Hoste, Thistlethwaite, Weeks 1998), and K13a4725, on which SnapPy fails.
    """
    assert knots_data.TABLE.stat().st_size < 2_000_000
    assert len(set(table["name"].tolist())) == len(table["name"])
    prime = [0, 0, 0, 1, 1, 2, 3, 7, 21, 49, 165, 552, 2176, 9988]
    missing = np.array(prime) - np.bincount(table["crossings"], minlength=14)
    assert missing.tolist() == [0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1, 1, 0, 4]


def test_table_agrees_with_geometry(table: dict[str, np.ndarray]) -> None:
    """Signatures are even; a cusp's volume is half the area of its boundary; numbers are finite float32."""
    numbers = np.stack([table[name] for name in knots_data.NUMBERS])
    assert numbers.dtype == np.float32 and np.isfinite(numbers).all()
    assert not (table["signature"] % 2).any()
    area = table["longitudinal_translation"] * table["meridional_translation_imag"]
    np.testing.assert_allclose(table["cusp_volume"], area / 2, rtol=1e-5)


def test_figure_eight(table: dict[str, np.ndarray]) -> None:
    """Volume 2.0298832128, its longitude 2 sqrt(3) times as long as the meridian; amphichiral."""
    row = table["name"].tolist().index("K4a1")
    assert table["volume"][row] == pytest.approx(2.0298832128, rel=1e-6)
    length = table["longitudinal_translation"][row] / table["meridional_translation_imag"][row]
    assert length == pytest.approx(2 * 3**0.5, rel=1e-5)
    assert abs(table["meridional_translation_real"][row]) < 1e-6 and table["signature"][row] == 0


def test_split_is_fixed_and_complete() -> None:
    """Every knot is in one part, the same each time; the training inputs have mean 0 and deviation 1."""
    knots = knots_table.load()
    rows = torch.cat(list(knots.rows.values()))
    assert torch.equal(rows.sort().values, torch.arange(len(knots.x)))
    assert torch.equal(rows, torch.cat(list(knots_table.load().rows.values())))
    x, y = knots.part("train")
    assert x.mean(0).abs().max() < 1e-10 and (x.std(0) - 1).abs().max() < 1e-10
    assert torch.equal(knots.classes[y].double(), knots.signature[knots.rows["train"]])
    few = knots_table.load(crossings=9)
    assert len(few.x) < 100 and few.x.isfinite().all()


def test_slope_follows_the_signature() -> None:
    """Davies et al. (Nature 600, 2021): the signature is near half of the natural slope, in sign too."""
    knots = knots_table.load()
    slope, signature = knots.slope("test"), knots.signature[knots.rows["test"]]
    both = torch.stack([slope, signature])
    assert torch.corrcoef(both)[0, 1] > 0.9
    data, std = knots.scale_free()
    u, v = (data["test"][0] * std).T
    torch.testing.assert_close(u / (u**2 + v**2), slope)


def test_pack(tmp_path: Path) -> None:
    """Rows come out sorted by crossings; knots without a row are counted by their reasons."""
    row: dict[str, Any] = dict.fromkeys(knots_data.NUMBERS, 0.25)
    row |= {"alternating": 1, "signature": -2, "symmetry": "D4", "reason": ""}
    for crossings, index, name in ((10, 7, "K10a8"), (9, 2, "K9a3")):
        with (tmp_path / f"knots_{crossings}_0_of_1.csv").open("w", newline="") as file:
            rows = csv.DictWriter(file, ["index", "reason", *knots_data.COLUMNS])
            rows.writerow({**row, "index": index, "name": name, "crossings": crossings})
            rows.writerow({"index": index + 1, "reason": "contains flat tetrahedra"})
    counts = knots_data.pack(tmp_path, tmp_path / "packed.npz")
    assert counts == {"knots": 2, "contains flat tetrahedra": 2}
    with np.load(tmp_path / "packed.npz") as packed:
        assert packed["name"].tolist() == ["K9a3", "K10a8"]
        assert packed["volume"].dtype == np.float32 and packed["signature"].tolist() == [-2, -2]
        assert packed["symmetry_groups"][packed["symmetry"]].tolist() == ["D4", "D4"]


def test_without_snappy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "snappy", None)
    with pytest.raises(ImportError, match="pip install snappy"):
        knots_data.write_part(5, 0, 1, tmp_path)


def test_snappy_gives_the_table(table: dict[str, np.ndarray], tmp_path: Path) -> None:
    """The script makes the committed rows again; the right-handed trefoil has signature -2."""
    snappy = pytest.importorskip("snappy", reason="SnapPy is not installed (pip install snappy)")
    trefoil = snappy.Link("K3a1")
    assert knots_data.signature(trefoil) * trefoil.writhe() == -6
    knots_data.write_part(8, 0, 2, tmp_path)
    knots_data.pack(tmp_path, tmp_path / "packed.npz")
    with np.load(tmp_path / "packed.npz") as packed:
        rows = [table["name"].tolist().index(name) for name in packed["name"]]
        assert len(rows) >= 10
        for name in (*knots_data.NUMBERS, "signature", "crossings", "alternating"):
            np.testing.assert_allclose(packed[name], table[name][rows], rtol=1e-5, atol=1e-6, err_msg=name)


def test_judge() -> None:
    """The nearest even number counts; correlations are squared."""
    judge: Any = importlib.import_module("examples.knots_formula").judge
    signature = torch.tensor([-4.0, -2.0, 0.0, 2.0])
    found = judge(torch.tensor([-4.9, -2.9, 1.1, 2.0]), signature, -signature)
    assert found["accuracy"] == 0.75 and found["r2_signature"] == pytest.approx(found["r2_slope"])


def test_simplest_ratio_within_one_standard_error() -> None:
    pytest.importorskip("sympy")
    simplest: Any = importlib.import_module("examples.knots_ratio").simplest
    noise = torch.tensor([0.5, 1.5]).repeat(50)  # mean 1, standard error 0.05
    best, near, far = ("x^2", "x", "x^2", "x"), ("x", "0", "x^2", "x"), ("x", "0", "0", "x")
    assert simplest({best: noise, near: noise + 0.04, far: noise + 0.1}) == near


@pytest.mark.long
def test_three_inputs_stand_out() -> None:
    """The largest scores are those of l, r and m, where the cusp's volume l m / 2 may stand for m."""
    found = run_example("knots")
    best = list(found["input_scores"])[:3]
    assert set(knots_table.TRANSLATIONS[:2]) < set(best)
    assert set(best) - set(knots_table.TRANSLATIONS[:2]) <= {"cusp_volume", knots_table.TRANSLATIONS[2]}
    accuracy = {name: n["runs"][n["way"]][0]["test_accuracy"] for name, n in found["networks"].items()}
    assert accuracy["imaginary"] < accuracy["real"] < accuracy["wider KAN"]
    assert accuracy["KAN"] > 0.65 and accuracy["KAN of three"] > 0.6
    assert found["networks"]["KAN"]["parameters"] < 200


@pytest.mark.long
def test_formulas_come_near_the_slope() -> None:
    pytest.importorskip("sympy")
    formulas = run_example("knots_formula")["formulas"]
    assert formulas["slope / 2"]["r2_slope"] == pytest.approx(1)
    for name in ("[3,1]", "[3,1,1]"):
        assert formulas[name]["r2_slope"] > 0.85 and formulas[name]["accuracy"] > 0.6


@pytest.mark.long
def test_slope_is_found_again() -> None:
    """Among the fast run's denominators that of the slope wins; u^2 and v^2 have nearly the same weight."""
    pytest.importorskip("sympy")
    found = run_example("knots_ratio")
    assert found["search"][0]["edges"] == ["x", "0", "x^2", "x^2"]
    assert min(f["r2_slope"] for f in found["formulas"].values()) > 0.99
