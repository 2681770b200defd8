"""A thin driver: CMakeLists.txt is the build description, this only calls it.

Environment: KAN_KERNELS_CUDA=auto|0|1 (build the CUDA C++ kernels: where nvcc is, never, or not without),
TORCH_CUDA_ARCH_LIST (for which GPUs; default: all that the kernels run on), MAX_JOBS (parallel compilations),
KAN_KERNELS_WERROR=1 (warnings are errors: for our own checks, no compiler of a user's is to fail on one),
KAN_KERNELS_LOCAL_VERSION=cu130 (makes the version 0.1.0+cu130, which tells wheels with CUDA kernels apart),
CMAKE_ARGS (anything else for CMake).
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.resolve()
sys.path.append(str(ROOT / "tools"))
import build_needs  # noqa: E402

lacks = build_needs.lacking()
compiles = not {"sdist", "egg_info", "dist_info"} & set(sys.argv)
if any(compiles or need.startswith(("Python>", "setuptools>")) for need in lacks):
    sys.exit(build_needs.sentence(lacks))

from setuptools import Extension, setup  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402


class CMakeBuild(build_ext):
    def run(self) -> None:
        prefix = ROOT if self.inplace else Path(self.build_lib).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        configure = [
            "cmake",
            *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_INSTALL_PREFIX={prefix}",
            f"-DKAN_KERNELS_VERSION={self.distribution.get_version()}",
            f"-DKAN_KERNELS_CUDA={os.environ.get('KAN_KERNELS_CUDA', 'auto')}",
            f"-DTORCH_CUDA_ARCH_LIST={os.environ.get('TORCH_CUDA_ARCH_LIST', '')}",
            f"-DKAN_KERNELS_WERROR={os.environ.get('KAN_KERNELS_WERROR', 'OFF')}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        jobs = os.environ.get("MAX_JOBS")
        compile_all = ["cmake", "--build", str(build), *(["-j", jobs] if jobs else [])]
        # What the last build found may be gone: pip builds beside another torch, cmake and ninja each time.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        for command in (configure, compile_all, ["cmake", "--install", str(build)]):
            if subprocess.run(command, env={**os.environ, "PATH": build_needs.search_path()}).returncode != 0:
                sys.exit(f"kan_kernels was not built: `{' '.join(command[:2])} ...` says why above")

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "kan_kernels"
        return [str(path) for path in package.rglob("*.so")]


local = os.environ.get("KAN_KERNELS_LOCAL_VERSION", "")
if not re.fullmatch(r"[a-z0-9]*", local):
    sys.exit(
        f"KAN_KERNELS_LOCAL_VERSION: got {local!r}, expected lower-case letters and digits, such as cu130"
    )

setup(
    ext_modules=[Extension("kan_kernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    options={"egg_info": {"tag_build": f"+{local}"}} if local else {},
)
