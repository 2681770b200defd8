"""Check finished wheels before they are published: size, tag, and what may not be inside.

    python tools/wheel_check.py [--released] WHEEL_OR_FOLDER ...

`--released` also asks for a platform tag that an index takes (manylinux, macosx).
"""

import argparse
import re
import sys
import zipfile
from pathlib import Path

MEGABYTE = 10**6
LIMITS = {"CPU": 8, "CUDA": 40}  # MB
NEEDED = (r"kan_kernels/lib/libkan_kernels\.so", r"kan_kernels/_C\.[^/]*\.so", r"kan_kernels/py\.typed")
DEVICE_CODE = b".nv_fatbin"  # the section of a library that holds machine code for GPUs
# Of torch and of the driver: they are in the process, or on the machine, that loads the library.
FOREIGN = re.compile(r"lib(torch\w*|c10\w*|shm|gomp|cuda|nvidia\w*|cublas\w*|cudnn\w*)[-.]")


def wheels(places: list[str]) -> list[Path]:
    """Return the wheels named, and those in the folders named."""
    found = []
    for place in map(Path, places):
        found += sorted(place.glob("kan_kernels-*.whl")) if place.is_dir() else [place]
    return found


def kind(wheel: Path) -> str:
    """Return "CUDA" for a wheel whose version has a local tag such as +cu130, else "CPU"."""
    return "CUDA" if "+cu" in wheel.name.split("-")[1] else "CPU"


def faults(wheel: Path, released: bool) -> list[str]:
    """Return what is wrong with a wheel, a sentence each."""
    wrong = []
    megabytes = wheel.stat().st_size / MEGABYTE
    if megabytes > LIMITS[kind(wheel)]:
        limit = LIMITS[kind(wheel)]
        wrong.append(f"{megabytes:.1f} MB are more than the {limit} MB of a {kind(wheel)} wheel")
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    wrong += [f"no file {need}" for need in NEEDED if not any(re.fullmatch(need, name) for name in names)]
    wrong += [f"{name} belongs to torch or the driver" for name in names if FOREIGN.match(Path(name).name)]
    library = "kan_kernels/lib/libkan_kernels.so"
    if library in names and (DEVICE_CODE in archive.read(library)) != (kind(wheel) == "CUDA"):
        which = "has none" if kind(wheel) == "CUDA" else "has some: build with KAN_KERNELS_CUDA=0"
        wrong.append(f"the version says {kind(wheel)}; of CUDA kernels the library {which}")
    platform = wheel.stem.split("-")[-1]
    if released and not platform.startswith(("manylinux", "macosx")):
        wrong.append(f"the platform {platform} is none that an index takes: repair it with auditwheel")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description="check wheels before they are published")
    parser.add_argument("places", nargs="+", metavar="WHEEL_OR_FOLDER")
    parser.add_argument("--released", action="store_true", help="ask for a tag that an index takes")
    options = parser.parse_args()
    found = wheels(options.places)
    if not found:
        print(f"no wheel in {' '.join(options.places)}", file=sys.stderr)
        return 1
    bad = False
    for wheel in found:
        wrong = faults(wheel, options.released)
        bad = bad or bool(wrong)
        megabytes = f"{wheel.stat().st_size / MEGABYTE:.1f} MB"
        print(f"{wheel.name}: {megabytes}, {kind(wheel)}: {'; '.join(wrong) or 'good'}")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
