"""What is published: the configuration of the wheels, the checks they pass, the workflows that make them."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kan_kernels._core import bases
from tools import wheel_check, wheel_smoke

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CPU = "kan_kernels-0.1.0-cp311-cp311-manylinux_2_28_x86_64.whl"
CUDA = CPU.replace("0.1.0", "0.1.0+cu130")


def wheel(folder: Path, name: str, *more: str, megabytes: int = 0) -> Path:
    """Make a wheel of this name with our libraries, further files and random bytes."""
    path = folder / name
    needed = ["kan_kernels/lib/libkan_kernels.so", "kan_kernels/_C.cpython-311.so", "kan_kernels/py.typed"]
    with zipfile.ZipFile(path, "w") as archive:
        for file in [*needed, *more]:
            archive.writestr(file, "..nv_fatbin." if "+cu" in name and file == needed[0] else "")
        archive.writestr("kan_kernels/weight", bytes(megabytes * 10**6))
    return path


def test_good_wheels(tmp_path: Path) -> None:
    """The two kinds, told apart by the local version, each within its own limit."""
    limits = wheel_check.LIMITS
    assert wheel_check.faults(wheel(tmp_path, CPU, megabytes=limits["CPU"] - 1), True) == []
    assert wheel_check.faults(wheel(tmp_path, CUDA, megabytes=limits["CUDA"] - 1), True) == []
    assert limits["CUDA"] <= 40
    assert [wheel_check.kind(Path(name)) for name in (CPU, CUDA)] == ["CPU", "CUDA"]


@pytest.mark.parametrize(
    ("name", "more", "megabytes", "says"),
    [
        (CPU, (), wheel_check.LIMITS["CPU"] + 1, "are more than the"),
        (CUDA, (), wheel_check.LIMITS["CUDA"] + 1, "are more than the 40 MB of a CUDA wheel"),
        (CPU, ("kan_kernels.libs/libtorch_cpu-1a2b.so",), 0, "libtorch_cpu-1a2b.so belongs to torch"),
        (CPU, ("kan_kernels.libs/libc10.so",), 0, "libc10.so belongs to torch"),
        (CPU.replace("manylinux_2_28", "linux"), (), 0, "the platform linux_x86_64 is none"),
    ],
)
def test_bad_wheels(name: str, more: tuple[str, ...], megabytes: int, says: str, tmp_path: Path) -> None:
    """Each fault is a sentence."""
    (fault,) = wheel_check.faults(wheel(tmp_path, name, *more, megabytes=megabytes), True)
    assert says in fault


def test_kernels_are_those_of_the_version(tmp_path: Path) -> None:
    """A wheel whose name says CUDA and holds no kernels is a fault, and so is the reverse."""
    for name, other, says in ((CPU, CUDA, "has none"), (CUDA, CPU, "KAN_KERNELS_CUDA=0")):
        path = wheel(tmp_path, name).rename(tmp_path / other)
        (fault,) = wheel_check.faults(path, True)
        assert says in fault


def test_incomplete_wheel(tmp_path: Path) -> None:
    """A wheel without our libraries fails on the command line, and so does a folder without wheels."""
    with zipfile.ZipFile(tmp_path / CPU, "w"):
        pass
    command = [sys.executable, str(ROOT / "tools" / "wheel_check.py")]
    run = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 1 and run.stdout.count("no file") == len(wheel_check.NEEDED)
    assert subprocess.run([*command, str(tmp_path / "empty")], capture_output=True).returncode == 1


def test_smoke_takes_the_wheel_that_fits(tmp_path: Path) -> None:
    """Of many wheels, the one for this Python; else a sentence."""
    ours = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    fits = wheel(tmp_path, CPU.replace("cp311", ours))
    wheel(tmp_path, CPU.replace("cp311", "cp39"))
    assert wheel_smoke.fitting(tmp_path, sys.executable) == fits
    fits.unlink()
    with pytest.raises(SystemExit, match=f"no wheel for {ours}"):
        wheel_smoke.fitting(tmp_path, sys.executable)


def test_versions_agree() -> None:
    """pyproject.toml and the package say one version."""
    import kan_kernels

    assert f'\nversion = "{kan_kernels.__version__}"\n' in PROJECT


def test_wheels_are_built_with_what_the_build_asks_for() -> None:
    """cibuildwheel has no isolation: it installs the oldest torch, and the other requirements by hand."""
    (requires,) = re.findall(r"^requires = (\[.*\])$", PROJECT, re.MULTILINE)
    needs = ast.literal_eval(requires)
    torch, others = re.findall(r'^  "pip install (?:--no-deps )?(.*)",$', PROJECT, re.MULTILINE)
    assert shlex.split(torch.replace("\\", "")) == [f"torch=={'.'.join(map(str, bases.MIN_TORCH))}.*"]
    assert shlex.split(others.replace("\\", "")) == [need for need in needs if "torch" not in need]
    (builds,) = re.findall(r"^build = (\[.*\])$", PROJECT, re.MULTILINE)
    assert ast.literal_eval(builds) == [f"cp3{minor}-*" for minor in range(10, 15)]


def steps(job: dict[str, Any]) -> list[str]:
    """Return the commands of a job."""
    return [step["run"] for step in job.get("steps", []) if "run" in step]


def test_workflows_run_what_is_there() -> None:
    """Each is YAML with jobs; their targets of make and their scripts exist, and torch is the oldest."""
    yaml = pytest.importorskip("yaml")
    assert {path.stem for path in WORKFLOWS} == {"docs", "release", "test", "wheels"}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = []
    for path in WORKFLOWS:
        flow = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert flow["name"] == path.stem and flow["jobs"] and True in flow  # YAML reads `on` as a bool
        assert flow["permissions"] == {"contents": "read"}, "more only where a job needs it"
        for job in flow["jobs"].values():
            assert "steps" in job or (ROOT / job["uses"]).exists()
            commands += steps(job)
    text = "\n".join(commands)
    assert {"make test", "make test-all", "make docs"} <= set(commands)
    for target in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE):
        assert target in targets
    for script in re.findall(r"python (\S+\.py)", text):
        assert (ROOT / script).exists(), script
    assert f"torch=={'.'.join(map(str, bases.MIN_TORCH))}.*" in text


def test_the_registry_is_trusted_without_a_password() -> None:
    """Publishing runs by OpenID Connect alone, and only of what was built in the same run."""
    yaml = pytest.importorskip("yaml")
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    publish = yaml.safe_load(text)["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["needs"] == "wheels"
    assert "secrets." not in text and "password" not in text.replace("no password", "")
