"""The fastest tile of a kernel for a class of shapes: measured once on each kind of device, kept on
disk.

Nothing is measured with torch.use_deterministic_algorithms(True) or KAN_KERNELS_TUNING=0: the first candidate
is fixed. The order in which a result's terms are added does not depend on the tile, but which matrix
instruction adds them may.
"""

import json
import os
import tempfile
from pathlib import Path

import torch

from ..._core import graphs
from .blocking import power_of_two

_chosen: dict[str, dict] = {}  # class of shapes -> the tile, without its EVEN_*
_loaded: set[Path] = set()


def cache_file() -> Path:
    """Return KAN_KERNELS_CACHE, or a folder beside Triton's own compiled kernels."""
    folder = os.environ.get("KAN_KERNELS_CACHE")
    if folder is None:
        import triton

        folder = os.path.join(triton.knobs.cache.dir, "kan_kernels")
    return Path(folder) / "tiles.json"


def best(name: str, device: torch.device, case, constants: dict, tiles: list[dict], run) -> dict:
    """Return the tile to use; `run(tile)` launches the kernel and may overwrite its results many times."""
    if (
        len(tiles) == 1
        or device.type != "cuda"
        or torch.are_deterministic_algorithms_enabled()
        or os.environ.get("KAN_KERNELS_TUNING") == "0"
    ):
        return tiles[0]
    key = _key(name, device, case, constants)
    if key not in _chosen:
        _load()
    for candidate in tiles:
        if _shape(candidate) == _chosen.get(key):
            return candidate
    if graphs.captured_without("measured tiles"):
        return tiles[0]
    with torch.cuda.device(device):
        fastest = _measure(tiles, run)
    if fastest is None:
        return tiles[0]
    _chosen[key] = _shape(fastest)
    _save()
    return fastest


def _shape(tile: dict) -> dict:
    """Return what is kept of a tile: not whether it divides the sizes of one case of its class."""
    return {name: value for name, value in tile.items() if not name.startswith("EVEN_")}


def _key(name: str, device: torch.device, case, constants: dict) -> str:
    """Return shapes in powers of two: the launches of one class share a tile."""
    import triton

    shape = [power_of_two(max(16, n)) for n in (case.rows, case.features, case.width)]
    facts = [
        name,
        torch.cuda.get_device_name(device),
        f"triton {triton.__version__}",
        str(case.dtype).removeprefix("torch."),
        constants["PRECISION"],
        *shape,
        case.basis_rows,
        case.order,
        constants["M"],
        constants["BASE"],
        "uniform" if constants.get("POLY") is not None else "exact",
        "one pass" if constants.get("ONE_PASS") else "",
    ]
    if not case.local:
        facts.append(f"basis {case.basis}")
    return " | ".join(map(str, facts))


def _measure(tiles: list[dict], run) -> dict | None:
    """Return the tile of the smallest median time, of those that compile and fit; None if measuring fails."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    times = []
    for tile in tiles:
        try:
            times.append(do_bench(lambda tile=tile: run(tile), warmup=5, rep=20, return_mode="median"))
        except (OutOfResources, RuntimeError):  # too large, no memory to measure in, or it does not compile
            times.append(float("inf"))
    return tiles[times.index(min(times))] if min(times) < float("inf") else None


def _load() -> None:
    path = cache_file()
    if path in _loaded:
        return
    _loaded.add(path)
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError):  # absent, unreadable or half written by an older version: measure again
        return
    if isinstance(stored, dict):
        for key, tile in stored.items():
            _chosen.setdefault(key, tile)


def _save() -> None:
    """Replace the file in one step. Where that fails, the next process measures again."""
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(_chosen.copy(), file, indent=1)
        os.replace(file.name, path)
    except OSError:
        return
