"""The instruction sets that were compiled, and those of them that this machine runs."""

import kan_kernels._C as _C

INFO = _C.build_info()

ORDER = ("avx512", "avx2", "baseline")  # best first, x86-64; elsewhere there is the baseline alone

COMPILED = tuple(INFO["cpu_isas"])

RUNNABLE = COMPILED[COMPILED.index(INFO["cpu_isa"]) :]
