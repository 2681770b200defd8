"""Where cubins come from: Triton's compiler, or the kernels inside a compiled library.

A provider is a function of a Selection that yields measure.Cubin. Add one to PROVIDERS.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from . import elf
from .measure import Cubin
from .tools import cubins_in, demangle

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "kan_kernels" / "lib" / "libkan_kernels.so"


class Unavailable(RuntimeError):
    """This provider has nothing to read here; the message says why."""


@dataclass(frozen=True)
class Selection:
    """What to read; an empty field means everything. ``options`` is text that the options must contain."""

    archs: Sequence[int] = ()
    kernels: Sequence[str] = ()
    dtypes: Sequence[str] = ()
    options: str = ""
    library: Path = LIBRARY

    @property
    def complete(self) -> bool:
        return not (self.archs or self.kernels or self.dtypes or self.options)

    def wants(self, kernel: str, dtype: str, options: str) -> bool:
        return (
            (not self.kernels or kernel in self.kernels)
            and (not self.dtypes or dtype in self.dtypes)
            and self.options in options
        )


def triton_cubins(selection: Selection) -> Iterator[Cubin]:
    """Every specialisation that the Triton backend names, for each of its architectures; no GPU needed."""
    try:
        triton = importlib.import_module("triton")
        compiler = importlib.import_module("kan_kernels.backends.triton.compile_only")
    except ModuleNotFoundError as error:
        raise Unavailable(f"triton: {error}") from error
    toolchain = f"triton {triton.__version__}"
    jobs = [
        (number, spec, arch)
        for number, spec in enumerate(compiler.specializations())
        if selection.wants(spec.kernel, spec.dtype, spec.options)
        for arch in selection.archs or spec.archs
    ]
    context = multiprocessing.get_context("fork")  # a specification holds closures: workers take its number
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        made_all = pool.map(_compile, [number for number, _, _ in jobs], [arch for _, _, arch in jobs])
        for (_, spec, arch), made in zip(jobs, made_all, strict=True):
            launch = {"shared": made.shared, "warps": made.num_warps, "toolchain": toolchain}
            flops = getattr(made, "flops_per_iteration", None)
            what = spec.kernel, spec.dtype, arch, spec.options, made.cubin
            yield Cubin(*what, flops_per_iteration=flops, **launch)


def _compile(number: int, arch: int) -> Any:
    compiler = importlib.import_module("kan_kernels.backends.triton.compile_only")
    return compiler.compile_spec(next(islice(compiler.specializations(), number, None)), arch)


_DTYPES = {"float": "fp32", "double": "fp64", "__nv_bfloat16": "bf16", "__half": "fp16"}


def split_name(demangled: str) -> tuple[str, str, str]:
    """(kernel, dtype, options) of a demangled template instance; its first type argument is the dtype.

    ``void kan::forward<3, float, true>(float const*)`` -> ("forward", "fp32", "3,true").
    """
    without_return = re.sub(r"^(?:void|auto)\s+", "", demangled.replace("(anonymous namespace)::", ""))
    name = re.match(r"[^<(]+", without_return)
    if name is None:
        return demangled, "", ""
    kernel = name[0].split("::")[-1].strip()
    arguments = _template_arguments(without_return[name.end() :])
    types = [a for a in arguments if a in _DTYPES]
    dtype = _DTYPES[types[0]] if types else ""
    if types:
        arguments.remove(types[0])
    options = (re.sub(r"^\((?:\w|:)+\)", "", a.replace("kan::cuda::", "")) for a in arguments)
    return kernel, dtype, ",".join(option.replace(" ", "") for option in options)


def _template_arguments(text: str) -> list[str]:
    """The top-level arguments between the angle brackets that ``text`` begins with."""
    if not text.startswith("<"):
        return []
    depth, part, parts = 0, "", []
    for letter in text:
        if letter in "<(":
            depth += 1
            if depth == 1:
                continue
        elif letter in ">)":
            depth -= 1
            if depth == 0:
                break
        if letter == "," and depth == 1:
            parts.append(part.strip())
            part = ""
        else:
            part += letter
    return [*parts, part.strip()]


def compiler_of(cubin: bytes) -> str:
    """The ptxas that made a cubin, from its note; '' where it has none."""
    release = re.search(rb"Cuda compilation tools, release ([\d.]+)", cubin)
    return f"ptxas {release[1].decode()}" if release else ""


def cuda_cubins(selection: Selection) -> Iterator[Cubin]:
    """The kernels inside the compiled library, which does not know of dynamic shared memory."""
    if not selection.library.exists():
        raise Unavailable(f"cuda: no library {selection.library.name}; build the package first")
    any_kernel = False
    for cubin in cubins_in(selection.library):
        arch = elf.architecture(cubin)
        names = list(elf.resources(cubin))
        any_kernel = any_kernel or bool(names)
        if selection.archs and arch not in selection.archs:
            continue
        for mangled, readable in sorted(demangle(names).items(), key=lambda pair: pair[1]):
            kernel, dtype, options = split_name(readable)
            if selection.wants(kernel, dtype, options):
                yield Cubin(
                    kernel, dtype, arch, options, cubin, function=mangled, toolchain=compiler_of(cubin)
                )
    if not any_kernel:
        raise Unavailable(f"cuda: {selection.library.name} carries no CUDA kernel; it was built without nvcc")


PROVIDERS: dict[str, Callable[[Selection], Iterator[Cubin]]] = {"triton": triton_cubins, "cuda": cuda_cubins}
