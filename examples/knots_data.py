"""The table of knots that examples/knots.py learns from, made with SnapPy (pip install snappy).

    python -m examples.knots_data parts --crossings 12 --part 0 --of 4 --folder PARTS
    python -m examples.knots_data pack --folder PARTS

Every knot of the Hoste-Thistlethwaite-Weeks table with so many crossings, one of each mirror pair, whose
complement has a hyperbolic structure of positively oriented tetrahedra. Of the paper's 17 invariants five
are left out: the two hyperbolic torsion degrees, which need Sage, and the injectivity radius and the complex
length of the shortest geodesic, for which SnapPy seldom finds a Dirichlet domain at 13 crossings.
`parts` continues a file that it did not finish; `pack` reads them all into examples/data/knots.npz. That has
12954 of the 12965 knots of 3 to 13 crossings, made in six minutes with SnapPy 3.3.2: it lacks the ten that
are not hyperbolic, and K13a4725, on which SnapPy fails. The right-handed trefoil's signature is -2.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np

TABLE = Path(__file__).parent / "data" / "knots.npz"
NUMBERS = (
    "chern_simons",
    "cusp_volume",
    "longitudinal_translation",
    "meridional_translation_imag",
    "meridional_translation_real",
    "volume",
)
COLUMNS = ("name", "crossings", "alternating", "signature", "symmetry", *NUMBERS)
RETRIES = 20  # triangulations of a complement


def snappy() -> Any:
    try:
        import snappy
    except ImportError as error:
        raise ImportError("the table of knots is made with SnapPy: pip install snappy") from error
    return snappy


class Unusable(Exception):
    """Why a knot is not in the table."""


def signature(link: Any) -> int:
    """Of the knot, from the eigenvalues of V + V^T of a Seifert matrix V; -2 for the right-handed trefoil.

    None of the eigenvalues is 0, as the determinant of a knot is odd.
    """
    seifert = np.array(link.seifert_matrix(), dtype=float)
    if not seifert.size:
        return 0
    values = np.linalg.eigvalsh(seifert + seifert.T)
    if np.abs(values).min() < 1e-9:
        raise ArithmeticError(f"{link}: the symmetric Seifert form is singular, {values}")
    return int((values < 0).sum() - (values > 0).sum())


def invariants(manifold: Any) -> dict[str, Any]:
    """A row of the table. The complement is built from the diagram, so that its chirality is the signature's.

    Raises:
        Unusable: not hyperbolic, or SnapPy did not find an invariant.
    """
    link = manifold.link()
    try:
        exterior = link.exterior()
        for _ in range(RETRIES):
            if exterior.solution_type() != "contains negatively oriented tetrahedra":
                break
            exterior.randomize()
        if exterior.solution_type() != "all tetrahedra positively oriented":
            raise Unusable(exterior.solution_type())
        cusp = exterior.cusp_neighborhood()
        cusp.set_displacement(cusp.stopping_displacement())
        meridian, longitude = map(complex, cusp.translations(0))
        return {
            "name": manifold.name(),
            "crossings": len(link.crossings),
            "alternating": int("a" in manifold.name()),
            "signature": signature(link),
            "symmetry": str(exterior.symmetry_group()),
            "chern_simons": float(exterior.chern_simons()),
            "cusp_volume": float(cusp.volume(0)),
            "longitudinal_translation": longitude.real,
            "meridional_translation_imag": meridian.imag,
            "meridional_translation_real": meridian.real,
            "volume": float(exterior.volume()),
        }
    except (RuntimeError, ValueError, snappy().exceptions.SnapPeaFatalError) as error:
        raise Unusable(str(error)) from error


def write_part(crossings: int, part: int, of: int, folder: Path) -> None:
    """The knots part, part + of, ... of those with so many crossings; a knot without a row has its reason."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"knots_{crossings}_{part}_of_{of}.csv"
    census = snappy().HTLinkExteriors(knots_vs_links="knots", crossings=crossings)
    with path.open("a+", newline="") as file:
        file.seek(0)
        done = sum(1 for _ in file)
        rows = csv.DictWriter(file, ["index", "reason", *COLUMNS])
        for index in range(part, len(census), of)[done:]:
            try:
                row = {"index": index, "reason": "", **invariants(census[index])}
            except Unusable as error:
                row = {"index": index, "reason": str(error)}
            rows.writerow(row)
            file.flush()


def pack(folder: Path, table: Path = TABLE) -> dict[str, int]:
    """All parts in one compressed table of float32 columns; how many knots, and why others are left out."""
    rows = []
    for path in folder.glob("knots_*.csv"):
        with path.open(newline="") as file:
            rows += csv.DictReader(file, ["index", "reason", *COLUMNS])
    rows.sort(key=lambda row: (int(row["crossings"] or 0), int(row["index"])))
    usable = [row for row in rows if not row["reason"]]
    counts = {"knots": len(usable)}
    for row in rows:
        if row["reason"]:
            counts[row["reason"]] = counts.get(row["reason"], 0) + 1
    groups = sorted({row["symmetry"] for row in usable})
    table.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        table,
        name=np.array([row["name"] for row in usable]),
        crossings=np.array([row["crossings"] for row in usable], dtype=np.int8),
        alternating=np.array([row["alternating"] == "1" for row in usable]),
        signature=np.array([row["signature"] for row in usable], dtype=np.int8),
        symmetry=np.array([groups.index(row["symmetry"]) for row in usable], dtype=np.int8),
        symmetry_groups=np.array(groups),
        **{name: np.array([row[name] for row in usable], dtype=np.float32) for name in NUMBERS},
    )
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="make examples/data/knots.npz")
    parser.add_argument("command", choices=["parts", "pack"])
    parser.add_argument("--folder", type=Path, required=True, help="of the partial files")
    parser.add_argument("--crossings", type=int)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--of", type=int, default=1)
    args = parser.parse_args()
    if args.command == "pack":
        print(pack(args.folder))
    elif args.crossings is None:
        parser.error("parts needs --crossings")
    else:
        write_part(args.crossings, args.part, args.of, args.folder)
