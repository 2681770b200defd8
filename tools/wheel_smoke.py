"""Install a wheel into fresh environments and run a layer there, forward and backward.

    python tools/wheel_smoke.py [--torch REQUIREMENT ...] [--python PROGRAM] WHEEL_OR_FOLDER

One environment for each requirement, such as `--torch torch==2.11.* --torch torch`. pip finds torch where its
own settings say: PIP_FIND_LINKS, PIP_INDEX_URL. Of a folder, the wheel is taken that fits the Python.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CHECK = """
import pathlib, sys
import torch
import kan_kernels
from kan_kernels import KAN, available_backends, to_numpy_model, use_backend

home = pathlib.Path(sys.prefix).resolve()
assert home in pathlib.Path(kan_kernels.__file__).resolve().parents, kan_kernels.__file__
assert available_backends("cpu")["native"] is None, available_backends("cpu")
torch.manual_seed(0)
model, x = KAN([3, 8, 2]), torch.rand(50, 3) * 2 - 1
results = []
for backend in ("native", "reference"):
    with use_backend(backend):
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        (slope,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        leaves = [leaf, *model.parameters()]
        results.append([y, slope, *torch.autograd.grad(slope.square().sum(), leaves, allow_unused=True)])
for ours, theirs in zip(*results):
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
torch.testing.assert_close(torch.from_numpy(to_numpy_model(model)(x.numpy())), model(x))
version = kan_kernels._C.build_info()["version"]
print(f"kan_kernels {version} runs beside torch {torch.__version__}, Python {sys.version.split()[0]}")
"""


def fitting(place: Path, python: str) -> Path:
    """Return the wheel, or the one of a folder that is for this Python."""
    if not place.is_dir():
        return place
    ask = "import sys; print(f'cp{sys.version_info[0]}{sys.version_info[1]}')"
    tag = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    found = sorted(place.glob(f"kan_kernels-*-{tag}-{tag}-*.whl"))
    if not found:
        sys.exit(f"{place} has no wheel for {tag}")
    return found[0]


def smoke(wheel: Path, torch: str, python: str) -> None:
    """Raise CalledProcessError unless the wheel installs beside this torch, and runs."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", f"{folder}/venv"], check=True)
        inside = f"{folder}/venv/bin/python"
        pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, torch, str(wheel.resolve())], check=True)
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        for command in (["-c", CHECK], ["-m", "kan_kernels"]):
            subprocess.run([inside, *command], cwd=folder, env=env, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="run a wheel in fresh environments")
    parser.add_argument("place", type=Path, metavar="WHEEL_OR_FOLDER")
    parser.add_argument("--torch", action="append", help="a requirement; torch==2.11.*, say")
    parser.add_argument("--python", default=sys.executable, help="whose environments are made")
    options = parser.parse_args()
    wheel = fitting(options.place, options.python)
    for torch in options.torch or ["torch"]:
        print(f"{wheel.name} beside {torch}", flush=True)
        try:
            smoke(wheel, torch, options.python)
        except subprocess.CalledProcessError as error:
            print(f"FAILED beside {torch}: {' '.join(map(str, error.cmd[:3]))} ...", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
