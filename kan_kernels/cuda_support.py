"""Whether the CUDA kernels in the loaded library can run on the GPU that is there, and if not, the remedy."""

import re
from functools import cache

import torch

from . import ops


def why_not() -> str | None:
    """None, or the reason with its remedy. Looks at the current device."""
    if "cuda" not in ops.DEVICES:
        return (
            "this library was built without CUDA kernels; rebuild it where nvcc is on PATH "
            "(KAN_KERNELS_CUDA=1 insists on it)"
        )
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA; install a build of torch with CUDA"
    if not torch.cuda.is_available():
        return "torch finds no usable NVIDIA GPU; is there one, and is its driver as new as torch's CUDA?"
    return why_not_on(torch.cuda.get_device_capability(), torch.ops.kan_kernels.cuda_architectures())


why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]  # asks the driver: nothing to trace


@cache
def why_not_on(capability: tuple[int, int], compiled: str) -> str | None:
    """None if a GPU of this compute capability runs code for "80-real 80-virtual ...", or why not."""
    major, minor = capability
    for number, own, kind in re.findall(r"(\d+)(a?)-(real|virtual)", compiled):
        at = divmod(int(number), 10)
        if own:  # code for one architecture and no later one
            runs = at == capability
        elif kind == "real":  # machine code runs on later ones of the same family
            runs = at[0] == major and at <= capability
        else:
            runs = at <= capability
        if runs:
            return None
    return (
        f"the GPU has compute capability {major}.{minor} and the library holds code for {compiled}; "
        f"rebuild it with TORCH_CUDA_ARCH_LIST={major}.{minor}"
    )
