"""Whether the CUDA kernels in the loaded library run on a GPU, and if not, the remedy, in one sentence."""

import re
from functools import cache

import torch

from . import library

OLDEST = (8, 0)  # the compute capability that brought bfloat16, TF32 and asynchronous copies
_DRIVERS = {12: 525, 13: 580}  # major of CUDA -> the first driver (Linux) that runs every minor version of it


def why_not(index: int | None = None) -> str | None:
    """Return None, or the reason with its remedy. index: of the CUDA device; None for the current one."""
    if "cuda" not in library.DEVICES:
        return (
            "this library was built without CUDA kernels; rebuild it where nvcc 12.1 or newer is on PATH "
            "(KAN_KERNELS_CUDA=1 insists on it)"
        )
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA; install a build of torch with CUDA"
    if not torch.cuda.is_available():
        return no_gpu()
    compiled, versions = built()
    return why_not_on(torch.cuda.get_device_capability(index), compiled, *versions)


why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]  # asks the driver: nothing to trace


def built() -> tuple[str, tuple[int, int]]:
    """Return what the library was built for, and the versions of CUDA of the driver and of its build."""
    return torch.ops.kan_kernels.cuda_architectures(), torch.ops.kan_kernels.cuda_versions()


def no_gpu() -> str:
    """Return what to do where torch has no GPU."""
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"torch sees no GPU here: torch {torch.__version__} is built for the CPU alone; install a build "
            "of torch for your GPU"
        )
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return f"torch sees no GPU here; if there is one, update its driver to one that has {built} or newer"


def too_old(capability: tuple[int, int]) -> str | None:
    """Return what to do on a GPU that no fused kernel runs on, or None."""
    if capability >= OLDEST:
        return None
    major, minor = capability
    return (
        f"the GPU has compute capability {major}.{minor}, below {OLDEST[0]}.{OLDEST[1]}; use a newer one, or "
        'the CPU, or plain torch with backend="reference"'
    )


@cache
def why_not_on(capability: tuple[int, int], compiled: str, driver: int, runtime: int) -> str | None:
    """Return None if a GPU of this compute capability runs code for "80-real 80-virtual ...", or why not.

    driver, runtime: versions of CUDA, 1000 major + 10 minor: the newest that the driver has, and that of the
    library's build.
    """
    major, minor = capability
    reason = too_old(capability)
    if reason is not None:
        return reason
    versions = f"this library was built with CUDA {_text(runtime)} and the driver has CUDA {_text(driver)}"
    known = _DRIVERS.get(runtime // 1000)
    update = "update the driver" if known is None else f"update the driver to {known} or newer"
    if driver // 1000 < runtime // 1000:  # within one major version, machine code runs on older drivers too
        return f"{versions}; {update}, or rebuild the library with nvcc {_text(driver)} or older"
    later = False
    for number, kind in re.findall(r"(\d+)-(real|virtual)", compiled):
        at = divmod(int(number), 10)
        if kind == "real":  # machine code runs on later ones of the same family
            if at[0] == major and at <= capability:
                return None
        elif at <= capability:
            if driver >= runtime:  # else it cannot read the PTX
                return None
            later = True
    if later:
        return (
            f"{versions}, which cannot compile its PTX for compute capability {major}.{minor}; update the "
            f"driver, or rebuild the library with TORCH_CUDA_ARCH_LIST={major}.{minor}"
        )
    return (
        f"the GPU has compute capability {major}.{minor} and the library holds code for {compiled}; "
        f"rebuild it with TORCH_CUDA_ARCH_LIST={major}.{minor}"
    )


def _text(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
