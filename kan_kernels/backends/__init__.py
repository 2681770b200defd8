"""One file or folder a backend. A backend is a module with

NAME            its public name;
DIFFERENTIABLE  whether plain autograd differentiates its forward (else the Functions of autograd.py do);
can_run(case)   None, or the exact reason why it cannot run a `dispatch.Case`;
why(case)       what speaks for it where it is the first that can run;
forward, input, weight, backward   the four contractions, with the signatures of `reference`;
NAMESPACE       of its torch.library ops, which autograd.py gives their gradients; None where it has none;
forward_op      if it has a NAMESPACE, the op behind forward, for torch.compile.

To add one: write it and put its module in BACKENDS, at its place in the order of preference.
"""

from types import ModuleType

from . import native, reference, triton

BACKENDS: dict[str, ModuleType] = {module.NAME: module for module in (native, triton, reference)}
